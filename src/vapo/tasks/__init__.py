"""Where problems come from, and the verifiers that judge answers."""

from vapo.tasks.builtin import BuiltinTask
from vapo.tasks.registry import BUILTIN, Family, make_task

__all__ = ["BUILTIN", "BuiltinTask", "Family", "make_task"]
