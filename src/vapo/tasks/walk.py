"""`walk`: reach a number from another with three operations, and write every step.

    prompt    reach 37 with +3 -8 x2 from 5 :
    response  x2 10 hmm x2 20 x2 40 +3 43 so -8 35 ... 37 done

Each move is an operation and its outcome: the new number, or `out` if the operation would leave the number line (the
number then stays the same). As in the maze, the text states the position. The rules are those of arithmetic.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from vapo import ranges
from vapo.tasks.builtin import check_options, check_range, decisive_words, judge_moves, last_word, mumble, quote, split
from vapo.tasks.words import DONE, MAX_NUMBER, NUMBERS, OUT, VOCABULARY, WALK_OPERATIONS
from vapo.types import Prompt, Verdict, stable_hash

# The sets of operations in the prompts. Each can raise and lower the number, so that a random walk can reach every
# target.
KITS = (
    ("+3", "-8", "x2"),
    ("+4", "-9", "x2"),
    ("+5", "-9", "x2"),
    ("+5", "-8", "x2"),
    ("+4", "-9", "x3"),
    ("+3", "-8", "x3"),
)


@dataclass(frozen=True)
class WalkOptions:
    """The difficulty of the walk. The shipped base model knows the defaults only."""

    limit: int = ranges.number(99, ge=20, le=MAX_NUMBER)
    """The largest number; the smallest is 0."""
    kits: int = ranges.number(2, ge=1, le=len(KITS), unit="sets of operations")
    """The number of sets of operations in prompts: the first ones of a fixed list."""
    targets: int = ranges.number(6, ge=1, le=MAX_NUMBER, unit="numbers")
    """The number of targets; at most limit."""
    min_distance: int = ranges.number(6, ge=1, le=MAX_NUMBER, unit="operations")
    """The smallest number of operations from a prompt's start to its target."""
    max_distance: int = ranges.number(14, ge=1, le=MAX_NUMBER, unit="operations")
    """The largest number of operations from a prompt's start to its target; at least min_distance."""
    heldout: int = ranges.number(250, ge=1, le=10_000, unit="prompts")
    """The number of prompts kept for evaluation."""
    layout: int = ranges.number(0, ge=0, le=2**31)
    """Seed of the choice of targets."""

    def __post_init__(self) -> None:
        check_options(self)
        check_range("targets", self.targets, 1, self.limit)
        check_range("max_distance", self.max_distance, self.min_distance, MAX_NUMBER)


@dataclass(frozen=True)
class WalkClumsiness:
    """Probabilities, per decision, of what the solver of the noisy traces does."""

    compass: float = 0.02  # take the operation whose result is nearest to the target
    mumble: float = 0.3  # one more filler word
    notice: float = 0.7  # write `done` on the target
    err: float = 0.015  # write `done` anywhere else
    despair: float = 0.005  # write `lost`
    practice: float = 0.7  # share of traces that need fewer operations than any prompt


class Walk:
    """The number walk; see the docstring of the module. Prompts are distinct (operations, start, target) triples."""

    name = "walk"
    description = "reach a number with three operations, every step written down"
    max_response_tokens = 256
    vocabulary = VOCABULARY

    def __init__(self, options: WalkOptions | None = None, clumsiness: WalkClumsiness | None = None) -> None:
        self.options = options or WalkOptions()
        self.clumsiness = clumsiness or WalkClumsiness()
        numbers = range(self.options.limit + 1)
        by_hash = sorted(numbers, key=lambda n: stable_hash("target", self.options.layout, n))
        self.targets = by_hash[: self.options.targets]

    @cached_property
    def _prompts(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        o = self.options
        return split(self._between(self.targets, o.min_distance, o.max_distance), o.heldout)

    @cached_property
    def _practice(self) -> list[Prompt]:
        """Prompts with short walks, about four in five of them to targets; see `Maze._practice`."""
        task_ids = {prompt.id for prompts in self._prompts for prompt in prompts}
        short = self._between(range(self.options.limit + 1), 1, max(1, self.options.min_distance - 1))
        others = [prompt for prompt in short if prompt.id not in task_ids]
        to_targets = [prompt for prompt in others if prompt.answer["target"] in self.targets]
        return others + to_targets * (4 * len(others) // max(1, len(to_targets)))

    def _between(self, targets: Iterable[int], nearest: int, farthest: int) -> list[Prompt]:
        return [
            _prompt(kit, start, target)
            for kit in KITS[: self.options.kits]
            for target in targets
            for start, distance in _distances(kit, target, self.options.limit).items()
            if nearest <= distance <= farthest
        ]

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The prompts to train on."""
        return self._prompts[0]

    @property
    def heldout(self) -> tuple[Prompt, ...]:
        """The prompts to evaluate on; none of them is in `train` or in a noisy trace."""
        return self._prompts[1]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if operations are allowed, outcomes are true, and the last word is `done`, written on the target."""
        problem = self._read(prompt)
        if problem is None:
            return Verdict("invalid", "this prompt is not of this number walk: check task options")
        words = decisive_words(response)
        if isinstance(words, Verdict):
            return words
        kit, number, target = problem
        return judge_moves(
            words,
            number,
            target,
            moves=kit,
            expected=f"one of {' '.join(kit)}",
            named=lambda number, operation: f"{number} {operation}",
            make=lambda number, operation, written: _move(number, operation, written, self.options.limit),
            stopped=lambda number: f"stopped at {number}, not at {target}",
        )

    def example(self) -> tuple[Prompt, str]:
        """The first training prompt and a shortest solution."""
        prompt = self.train[0]
        problem = self._read(prompt)
        assert problem is not None
        kit, number, target = problem
        limit = self.options.limit
        to_target = _distances(kit, target, limit)
        words: list[str] = []
        while number != target:
            reach = [(o, n) for o in kit if (n := _outcome(number, o, limit)) is not None and n in to_target]
            operation, number = min(reach, key=lambda pair: to_target[pair[1]])
            words += [operation, str(number)] if words else [operation, str(number), "ok"]
        return prompt, " ".join([*words, DONE])

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A prompt and a mostly random walk; the rest is as in `Maze.noisy_trace`.

        At each move the solver takes a random operation, or sometimes the one whose result is nearest to the target.
        It never looks up a path.
        """
        clumsy, limit = self.clumsiness, self.options.limit
        prompt = rng.choice(self._practice if rng.random() < clumsy.practice else self.train)
        problem = self._read(prompt)
        assert problem is not None
        kit, number, target = problem
        words: list[str] = []
        while len(words) < self.max_response_tokens:
            if last := last_word(rng, clumsy, arrived=number == target):
                words.append(last)
                break
            words += mumble(rng, clumsy.mumble)
            operation = rng.choice(kit)
            if number != target and rng.random() < clumsy.compass:
                operation = _toward(kit, number, target, limit)
            outcome = _outcome(number, operation, limit)
            words += [operation, OUT if outcome is None else str(outcome)]
            number = number if outcome is None else outcome
        return prompt, " ".join(words[: self.max_response_tokens])

    def _read(self, prompt: Prompt) -> tuple[tuple[str, ...], int, int] | None:
        """`(operations, start, target)` of a prompt, None if the prompt is not one of this task."""
        answer, line = prompt.answer, NUMBERS[: self.options.limit + 1]
        if not isinstance(answer, dict) or not isinstance(kit := answer.get("with"), list | tuple):
            return None
        start, target = str(answer.get("start")), str(answer.get("target"))
        if start not in line or target not in line or not all(o in WALK_OPERATIONS for o in kit) or not kit:
            return None
        return tuple(kit), int(start), int(target)


def _prompt(kit: Sequence[str], start: int, target: int) -> Prompt:
    return Prompt(
        id=f"walk/{''.join(kit)}/{start}/{target}",
        text=f"reach {target} with {' '.join(kit)} from {start} :",
        answer={"start": start, "target": target, "with": list(kit)},
    )


def _outcome(number: int, operation: str, limit: int) -> int | None:
    """The result of an operation, None if it is not in 0 to `limit`."""
    amount = int(operation[1:])
    result = {"+": number + amount, "-": number - amount, "x": number * amount}[operation[0]]
    return result if 0 <= result <= limit else None


def _move(number: int, operation: str, written: str, limit: int) -> tuple[int, str]:
    """The number after a move, and the error in its written outcome, "" if there is none."""
    outcome = _outcome(number, operation, limit)
    if written == (OUT if outcome is None else str(outcome)):
        return (number if outcome is None else outcome), ""
    truth = "off the number line" if outcome is None else outcome
    return number, f"{number} {operation} is {truth}, wrote {quote(written)}"


def _toward(kit: Sequence[str], number: int, target: int, limit: int) -> str:
    """The operation whose result is nearest to the target."""
    outcomes = [(o, n) for o in kit if (n := _outcome(number, o, limit)) is not None]
    return min(outcomes, key=lambda pair: abs(pair[1] - target))[0] if outcomes else kit[0]


def _distances(kit: Sequence[str], target: int, limit: int) -> dict[int, int]:
    """The number of operations from each number that can reach the target."""
    before: dict[int, list[int]] = {number: [] for number in range(limit + 1)}
    for number in before:
        for operation in kit:
            outcome = _outcome(number, operation, limit)
            if outcome is not None:
                before[outcome].append(number)
    found, queue = {target: 0}, deque([target])
    while queue:
        number = queue.popleft()
        for earlier in before[number]:
            if earlier not in found:
                found[earlier] = found[number] + 1
                queue.append(earlier)
    return found
