"""A step's responses as a value, and the protocols of the sources of such values.

A source only reads the run's state. The state moves when the loop consumes a rollout, so a rollout that is dropped
(a stop, a crash) changes nothing, and one may be made ahead of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vapo.errors import VapoError
from vapo.trainer.state import State
from vapo.types import Episode


@dataclass(frozen=True)
class Rollout:
    """Judged responses, sampled from one version of the policy. Groups are neighbours."""

    drawn: tuple[Episode, ...]
    """Everything that was sampled."""
    kept: tuple[int, ...]
    """Which of them to learn from: places in `drawn`, in order."""
    prompts_seen: int
    """Position in the stream of training prompts behind this rollout."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long sampling (`rollout`) and judging (`verify`) took."""

    @property
    def episodes(self) -> list[Episode]:
        """The responses to learn from."""
        return [self.drawn[i] for i in self.kept]

    @property
    def weight_version(self) -> int:
        """The trainer's step whose weights sampled all of it; raises VapoError if there were several."""
        versions = sorted({episode.policy_version for episode in self.drawn})
        if len(versions) != 1:
            raise VapoError(f"One rollout was sampled from several weight versions, {versions}: a bug of the engine.")
        return versions[0]

    @property
    def num_samples(self) -> int:
        """Responses sampled."""
        return len(self.drawn)

    @property
    def num_tokens(self) -> int:
        """Their tokens that were sampled; those of environments are left out."""
        turns = (turn for episode in self.drawn for turn in episode.turns)
        return sum(len(turn.token_ids) for turn in turns if turn.author == "policy")


class RolloutSource(Protocol):
    """Makes rollouts: at once (`SynchronousSource`), ahead of time, or on other machines."""

    @property
    def max_age(self) -> int:
        """How many steps older than the trainer's weights a rollout's may be; 0 for a synchronous source."""
        ...

    def next(self, state: State) -> Rollout:
        """The rollout of the step that follows `state`, which it leaves as it is. Equal states give equal rollouts.

        Raises AbandonedError when the run is to stop, and VerifierBrokenError.
        """
        ...

    def settle(self) -> None:
        """Return when nothing is being sampled: then the engine may take other weights, or sample for an evaluation."""
        ...

    def waiting(self) -> Rollout | None:
        """What was made ahead for the next step, when it is ready; a checkpoint keeps it. None if nothing was.

        Raises what its sampling or judging raised.
        """
        ...

    def restart(self, waiting: Rollout | None) -> None:
        """Go on with what a checkpoint kept, or without: what was made ahead since is dropped."""
        ...

    def close(self) -> None:
        """Drop what is being sampled, and end the source's threads. The source cannot be used afterwards."""
        ...


class PretrainingSource(Protocol):
    """Makes the rollouts of value pretraining. The policy is fixed, so any step's can be made again."""

    @property
    def max_age(self) -> int:
        """See `RolloutSource`."""
        ...

    def next(self, state: State) -> Rollout:
        """The rollout of pretraining step `state.pretrain_step + 1`; see `RolloutSource`."""
        ...

    def at(self, step: int, state: State) -> Rollout:
        """The rollout of the pretraining step that follows `step` finished ones."""
        ...

    def heldout(self, state: State) -> Rollout:
        """Responses to held-out prompts, the same each time; they are never learned from."""
        ...

    def close(self) -> None:
        """Drop what is being sampled ahead, and end the source's threads: pretraining is over, or the run ends."""
        ...


def consume(state: State, rollout: Rollout) -> None:
    """Count a rollout that is learned from: prompts, samples and tokens."""
    state.prompts_seen = rollout.prompts_seen
    state.num_samples += rollout.num_samples
    state.num_tokens += rollout.num_tokens


def check_age(rollout: Rollout, state: State, max_age: int) -> int:
    """By how many steps the rollout's weights are older than the trainer's.

    Raises VapoError if they are too old, or newer.
    """
    age = state.step - rollout.weight_version
    if not 0 <= age <= max_age:
        raise VapoError(
            f"The rollout engine sampled from the weights of step {rollout.weight_version}, the trainer is at step "
            f"{state.step} and allows an age of {max_age}. load_weights must take effect before generate; this is a "
            "bug of the engine."
        )
    return age
