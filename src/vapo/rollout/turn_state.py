"""An episode of several turns while it is played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vapo.types import NOT_JUDGED, Environment, FinishReason, Prompt, Turn, Verdict, stable_hash


@dataclass(frozen=True)
class Start:
    """Where an episode goes on: after these turns, the last of which may be one that the policy has only `begun`.

    The environment is made anew, with the seed of the episode that the turns are from, and answers them again.
    """

    turns: tuple[Turn, ...]
    begun: Turn | None
    episode_seed: int


def start_after(turns: Sequence[Turn], length: int, episode_seed: int) -> Start:
    """The start after the first `length` tokens of an episode; a token of the policy follows them."""
    taken: list[Turn] = []
    for turn in turns:
        if length <= 0:
            break
        if length < len(turn.token_ids):
            begun = Turn(turn.author, turn.token_ids[:length], turn.logprobs[:length])
            return Start((*taken, begun), begun, episode_seed)
        taken.append(turn)
        length -= len(turn.token_ids)
    return Start(tuple(taken), None, episode_seed)


@dataclass
class Player:
    """An episode that goes on until `finish` is set."""

    prompt: Prompt
    sample: int
    seed: int
    limit: int
    """Tokens that may follow the prompt."""
    opened: int = 0
    """Tokens of the limit that the environment's first words took inside the prompt."""
    start: Start | None = None
    environment: Environment | None = None
    turns: list[Turn] = field(default_factory=list)
    num_turns: int = 0
    tokens: tuple[int, ...] = ()
    verdict: Verdict = NOT_JUDGED
    finish: FinishReason | None = None
    version: int | None = None
    left: dict[str, Any] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self.limit - len(self.tokens)

    @property
    def state(self) -> Prompt:
        """What the engine goes on from."""
        return replace(self.prompt, token_ids=self.prompt.token_ids + self.tokens)

    @property
    def turn_seed(self) -> int:
        """The first turn has the episode's own seed: an episode of one turn is what it is without an environment.

        A turn that is written on has its own number, not that of the next one, which would draw with the same numbers.
        """
        turn = self.num_turns - self._goes_on_in_turn
        return stable_hash("turn", self.seed, turn) if turn else self.seed

    @property
    def environment_seed(self) -> int:
        """The seed of its environment: that of the episode from whose turns it goes on, if it does."""
        return stable_hash("environment", self.seed if self.start is None else self.start.episode_seed)

    def add(self, turn: Turn) -> None:
        """Go on after this turn."""
        self.turns.append(turn)
        self.tokens += turn.token_ids
        self.num_turns += turn.author == "policy"

    def take_begun(self) -> Turn:
        """The turn that the policy has only begun, taken back to be written on; an empty one if there is none."""
        if not self._goes_on_in_turn:
            return Turn("policy", ())
        turn = self.turns.pop()
        self.tokens = self.tokens[: len(self.tokens) - len(turn.token_ids)]
        self.num_turns -= 1
        return turn

    @property
    def _goes_on_in_turn(self) -> bool:
        """Whether the last turn is one that the policy has only begun."""
        begun = None if self.start is None else self.start.begun
        return begun is not None and self.turns[-1] is begun

    def end(self, finish: FinishReason, verdict: Verdict | None = None) -> None:
        """The episode is over."""
        self.finish = finish
        if verdict is not None:
            self.verdict = verdict
