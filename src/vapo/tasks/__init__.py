"""Tasks, which provide the prompts, and the verifiers that judge the responses."""

from vapo.tasks.builtin import BuiltinTask
from vapo.tasks.registry import BUILTIN, Family, make_task

__all__ = ["BUILTIN", "BuiltinTask", "Family", "make_task"]
