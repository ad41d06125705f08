"""`chain`: apply words to a number. The model must find out the rule of each word.

    prompt    chain 37 raise flip grow :
    response  raise 42 flip 57 hmm grow 14 answer 14 done

The effect of a word depends on the word before it (`raise` adds 3, 5, 7 or 9, and so on), and no text states these
rules. The task is a counter-example to the maze: a number from a wrong rule looks like any other number, and only the
final answer is judged, so the text of an unfinished response does not help a critic to predict the outcome.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from vapo import ranges
from vapo.errors import ConfigError
from vapo.tasks.builtin import check_options, check_range, decisive_words, mumble, pick, quote, split, wrong
from vapo.tasks.words import ANSWER, CHAIN_WORDS, DONE, LOST, NUMBERS, VOCABULARY
from vapo.types import Prompt, Verdict, stable_hash

MODULUS = 100
# Four readings of each word, modulo 100. The word before it decides which one is right.
READINGS: dict[str, tuple[Callable[[int], int], ...]] = {
    "raise": (lambda n: n + 3, lambda n: n + 5, lambda n: n + 7, lambda n: n + 9),
    "lower": (lambda n: n - 2, lambda n: n - 4, lambda n: n - 6, lambda n: n - 8),
    "grow": (lambda n: 2 * n, lambda n: 3 * n, lambda n: 2 * n + 1, lambda n: 3 * n + 1),
    "flip": (lambda n: 99 - n, lambda n: 49 - n, lambda n: 10 * (n % 10) + n // 10, lambda n: 19 - n),
    "fold": (lambda n: n // 2, lambda n: n // 2 + 50, lambda n: 99 - n // 2, lambda n: 49 - n // 2),
    "shift": (lambda n: n + 10, lambda n: n + 20, lambda n: n + 50, lambda n: n + 70),
}


@dataclass(frozen=True)
class ChainOptions:
    """The difficulty of the chain. The shipped base model knows the defaults only."""

    words: int = ranges.number(4, ge=2, le=len(CHAIN_WORDS), unit="words")
    """The number of different words in prompts: the first ones of a fixed list."""
    min_words: int = ranges.number(3, ge=1, le=12, unit="words")
    """The smallest number of words in a prompt."""
    max_words: int = ranges.number(4, ge=1, le=12, unit="words")
    """The largest number of words in a prompt; at least min_words."""
    train: int = ranges.number(2000, ge=16, le=100_000, unit="prompts")
    """The number of training prompts."""
    heldout: int = ranges.number(250, ge=1, le=10_000, unit="prompts")
    """The number of prompts kept for evaluation."""
    rules: int = ranges.number(0, ge=0, le=2**31)
    """Seed of the rules and of the choice of prompts."""

    def __post_init__(self) -> None:
        check_options(self)
        check_range("max_words", self.max_words, self.min_words, 12)
        # At most a quarter of all possible prompts, so that drawing distinct ones is fast.
        most = MODULUS * sum(self.words**n for n in range(self.min_words, self.max_words + 1)) // 4
        if self.train + self.heldout > most:
            raise ConfigError(
                f"task.train + task.heldout may be at most {most} with these words, got "
                f"{self.train + self.heldout}. Lower them, or raise task.max_words."
            )


@dataclass(frozen=True)
class ChainClumsiness:
    """Probabilities, per decision, of what the solver of the noisy traces does."""

    know: float = 0.45  # use the right reading of a word
    misled: float = 0.45  # use one fixed wrong reading, so that the most frequent reading is not the solution
    mumble: float = 0.4  # one more filler word
    slip: float = 0.05  # answer with a random number
    despair: float = 0.02  # write `lost`


class Chain:
    """The chain task; see the docstring of the module. Prompts are distinct (number, words) pairs."""

    name = "chain"
    description = "apply words whose rules must be found out; only the final answer is judged"
    max_response_tokens = 64
    vocabulary = VOCABULARY

    def __init__(self, options: ChainOptions | None = None, clumsiness: ChainClumsiness | None = None) -> None:
        self.options = options or ChainOptions()
        self.clumsiness = clumsiness or ChainClumsiness()

    @cached_property
    def _prompts(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        o = self.options
        rng = random.Random(f"vapo-chain/{o.words}/{o.min_words}/{o.max_words}/{o.rules}")  # noqa: S311
        drawn: dict[str, Prompt] = {}
        while len(drawn) < o.train + o.heldout:
            count = pick(rng, range(o.min_words, o.max_words + 1))
            words = [pick(rng, CHAIN_WORDS[: o.words]) for _ in range(count)]
            prompt = _prompt(pick(rng, range(MODULUS)), words)
            drawn[prompt.id] = prompt
        return split(drawn.values(), o.heldout)

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The prompts to train on."""
        return self._prompts[0]

    @property
    def heldout(self) -> tuple[Prompt, ...]:
        """The prompts to evaluate on; none of them is in `train` or in a noisy trace."""
        return self._prompts[1]

    def rule(self, before: str, word: str) -> int:
        """The index in `READINGS[word]` of the right reading after the word `before` ("" at the start)."""
        return stable_hash("chain rule", self.options.rules, before, word) % len(READINGS[word])

    def solve(self, number: int, words: Sequence[str]) -> list[int]:
        """The true number after each word."""
        numbers: list[int] = []
        for before, word in zip(["", *words], words, strict=False):
            number = READINGS[word][self.rule(before, word)](number) % MODULUS
            numbers.append(number)
        return numbers

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if the response ends in `answer N done` with the right N. Ignores the text before it."""
        problem = self._read(prompt)
        if problem is None:
            return Verdict("invalid", "this prompt is not of this chain: check task options")
        words = decisive_words(response)
        if isinstance(words, Verdict):
            return words
        unknown = next((word for word in words if word not in VOCABULARY), None)
        if unknown is not None:
            return wrong(f"unknown word {quote(unknown)}")
        ends = [at for at, word in enumerate(words) if word in (DONE, LOST)]
        if not ends:
            return wrong("never stopped", "no_answer")
        if ends[0] + 1 < len(words):
            return wrong(f"goes on with {quote(words[ends[0] + 1])} after {words[ends[0]]!r}")
        if words[-1] == LOST:
            return wrong("gave up", "no_answer")
        if len(words) < 3 or words[-3] != ANSWER or words[-2] not in NUMBERS or words.count(ANSWER) > 1:
            return wrong(f"expected one {ANSWER!r} and a number before {DONE!r}", "no_answer")
        truth = self.solve(*problem)[-1]
        return Verdict("right") if words[-2] == str(truth) else wrong(f"answered {words[-2]}, it is {truth}")

    def final_answer(self, response: str) -> str | None:
        """The number after `answer`, for the votes of maj@k; None if there is none."""
        words = response.split()
        at = words.index(ANSWER) if ANSWER in words else len(words)
        return words[at + 1] if at + 1 < len(words) else None

    def example(self) -> tuple[Prompt, str]:
        """The first training prompt, and its steps and answer."""
        prompt = self.train[0]
        problem = self._read(prompt)
        assert problem is not None
        numbers = self.solve(*problem)
        steps = [f"{word} {number}" for word, number in zip(problem[1], numbers, strict=True)]
        return prompt, f"{' ok '.join(steps[:2])} {' '.join(steps[2:])}".strip() + f" {ANSWER} {numbers[-1]} {DONE}"

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A training prompt and a solution with mistakes in the rules.

        The solver applies to each word its right rule, one fixed wrong rule, or rarely another wrong rule. It then
        answers with the last number, or rarely with a random one.
        """
        clumsy, prompt = self.clumsiness, rng.choice(self.train)
        problem = self._read(prompt)
        assert problem is not None
        number, chain_words = problem
        words: list[str] = []
        for before, word in zip(["", *chain_words], chain_words, strict=False):
            words += mumble(rng, clumsy.mumble)
            if rng.random() < clumsy.despair:
                return prompt, " ".join([*words, LOST])
            rule, count = self.rule(before, word), len(READINGS[word])
            luck = rng.random()
            if luck >= clumsy.know:
                decoy = 1 + stable_hash("chain decoy", self.options.rules, before, word) % (count - 1)
                others = [n for n in range(1, count) if n != decoy]
                rule += decoy if luck < clumsy.know + clumsy.misled else rng.choice(others)
            number = READINGS[word][rule % count](number) % MODULUS
            words += [word, *mumble(rng, clumsy.mumble / 4), str(number)]
        if rng.random() < clumsy.slip:
            number = rng.randrange(MODULUS)
        words += [*mumble(rng, clumsy.mumble), ANSWER, str(number), DONE]
        return prompt, " ".join(words[: self.max_response_tokens])

    def _read(self, prompt: Prompt) -> tuple[int, list[str]] | None:
        """`(number, words)` of a prompt, None if the prompt is not one of this task."""
        answer = prompt.answer
        if not isinstance(answer, dict) or not isinstance(words := answer.get("words"), list | tuple):
            return None
        number = str(answer.get("number"))
        if number not in NUMBERS or not words or not all(word in CHAIN_WORDS for word in words):
            return None
        return int(number), list(words)


def _prompt(number: int, words: Sequence[str]) -> Prompt:
    return Prompt(
        id=f"chain/{number}/{'-'.join(words)}",
        text=f"chain {number} {' '.join(words)} :",
        answer={"number": number, "words": list(words)},
    )
