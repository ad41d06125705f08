"""All state that is carried from step to step, besides weights and optimizer moments.

There is no random-number position here: every draw derives from the run's seed and these counters
(`vapo.types.stable_hash`), so equal counters mean equal draws.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vapo.errors import CheckpointError
from vapo.metrics import Phase


@dataclass
class State:
    """The run's counters. Mutable: the loop updates it in place."""

    phase: Phase = Phase.PRETRAIN
    evaluated: int = -1
    """The joint step after which the policy was last evaluated; -1 for never, 0 is before training."""
    pretrain_step: int = 0
    """Pretraining steps finished."""
    step: int = 0
    """Joint steps finished."""
    gradient_steps: int = 0
    """Policy gradient steps taken; the x axis of the paper's figures."""
    reference_age: int = 0
    """Policy gradient steps since the KL reference was set."""
    prompts_seen: int = 0
    """Position in the endless shuffled stream of training prompts; dynamic sampling moves it by more."""
    num_samples: int = 0
    """Responses sampled for training so far, pretraining included."""
    num_tokens: int = 0
    """Their tokens."""
    skipped_in_a_row: int = 0
    """Steps in a row with a skipped gradient step."""
    explained_variance: float | None = None
    """Held-out explained variance after the last pretraining step; None where it is undefined."""
    best_explained_variance: float | None = None
    """The best so far, for the stop rule."""
    best_pretrain_step: int = 0
    recent: dict[str, list[float]] = field(default_factory=dict)
    """The last steps' gradient norms, by network: a spike is compared with them."""
    streaks: dict[str, int] = field(default_factory=dict)
    """For how many steps in a row the condition of each alarm has held."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """How the responses came out of the last steps that were all wrong, or all right, in a row."""
    mixture: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sums of earlier steps that a fitted baseline takes the critic's share from (`vapo.algo.mixture_sums`)."""
    head_started: bool = False
    """Whether the critic's head was set to where the method starts it."""
    rollbacks: int = 0
    """Rollbacks after alarms so far; samples after a rollback use other seeds."""
    micro_batch_tokens: dict[str, int] = field(default_factory=dict)
    """Token budgets that were lowered after running out of memory, by the work that needed it."""
    log_bytes: dict[str, int] = field(default_factory=dict)
    """Length of each log file when this state was saved; a resume cuts the logs to it."""

    @property
    def serial(self) -> int:
        """Steps of both phases; orders checkpoints."""
        return self.pretrain_step + self.step

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)

    def copy(self) -> State:
        """A copy that shares nothing."""
        return copy.deepcopy(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> State:
        """The state `to_json` wrote, now or under an older format; raises CheckpointError on any other field."""
        data = _from_format_1(data) if "started" in data else data
        data = {"verdicts": {}, "mixture": [0.0, 0.0], "head_started": True, **data}  # of versions before these
        names = {f.name for f in dataclasses.fields(cls)}
        if set(data) != names:
            raise CheckpointError(
                f"state.json does not fit this version: missing {sorted(names - set(data))}, "
                f"unknown {sorted(set(data) - names)}. Resume with the version that wrote it."
            )
        return cls(**{**data, "phase": Phase(data["phase"])})


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 (0.1) saved after evaluations that were due, but for the last, and had no alarms."""
    later: dict[str, Any] = {"recent": {}, "streaks": {}, "rollbacks": 0, "micro_batch_tokens": {}}
    data = {**data, **later, "evaluated": data["step"] if data["started"] else -1}
    del data["started"]
    return data
