"""Reinforcement learning with a critic for reasoning language models.

`vapo.train(config, run_dir)`, `vapo.evaluate(...)`; the mathematics alone is in `vapo.algo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vapo.api import evaluate as evaluate
    from vapo.api import resume as resume
    from vapo.api import train as train
    from vapo.rollout.engine import RolloutEngine as RolloutEngine
    from vapo.types import Prompt as Prompt
    from vapo.types import Task as Task
    from vapo.types import Verdict as Verdict
    from vapo.types import Verifier as Verifier

__version__ = "0.1.0"
__all__ = ["Prompt", "RolloutEngine", "Task", "Verdict", "Verifier", "evaluate", "resume", "train"]

_HOMES = {
    "train": "vapo.api",
    "resume": "vapo.api",
    "evaluate": "vapo.api",
    "RolloutEngine": "vapo.rollout.engine",
    "Prompt": "vapo.types",
    "Task": "vapo.types",
    "Verdict": "vapo.types",
    "Verifier": "vapo.types",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names load on first use: `import vapo` and `vapo --help` need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vapo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
