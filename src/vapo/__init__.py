"""Reinforcement learning with a critic for reasoning language models.

`run = vapo.train(config, run_dir)`, `vapo.evaluate(...)`, `vapo.VAPOTrainer(...)`; the mathematics alone is in
`vapo.algo`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vapo.api import evaluate as evaluate
    from vapo.api import judge_critic as judge_critic
    from vapo.api import judge_training as judge_training
    from vapo.api import resume as resume
    from vapo.api import train as train
    from vapo.api.trained_run import TrainedRun as TrainedRun
    from vapo.api.trainer_config import VAPOConfig as VAPOConfig
    from vapo.api.vapo_trainer import VAPOTrainer as VAPOTrainer
    from vapo.rollout.engine import RolloutEngine as RolloutEngine
    from vapo.trainer.observer import Observer as Observer
    from vapo.types import Prompt as Prompt
    from vapo.types import Task as Task
    from vapo.types import Verdict as Verdict
    from vapo.types import Verifier as Verifier

__version__ = "0.1.0"
__all__ = ["Observer", "Prompt", "RolloutEngine", "Task", "TrainedRun", "VAPOConfig", "VAPOTrainer", "Verdict",
           "Verifier", "evaluate", "judge_critic", "judge_training", "resume", "train"]  # fmt: skip

_MODULES = ("types", "trainer.observer", "api.trainer_config", "rollout.engine", "api", "api.vapo_trainer")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names load on first use: `import vapo` and `vapo --help` need no torch."""
    if name in __all__:
        for module in _MODULES:  # the lightest first
            if found := getattr(import_module(f"vapo.{module}"), name, None):
                return found
    raise AttributeError(f"module 'vapo' has no attribute {name!r}")
