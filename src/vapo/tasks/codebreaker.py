"""`codebreaker`: a game of several turns. Find a hidden code from the answers to the guesses.

    prompt       break 4 pegs of 6 colours in 5 guesses :
    policy       red blue green red
    environment  red=exact blue=absent green=misplaced red=absent left=4
    policy       red green purple orange
    ...

The policy ends each guess with its stop token, and the environment marks every peg. The text always states what is
known of the code and how many guesses are left, so a critic can foresee the outcome: the guesses so far were lucky and
informative, or they were not. The prompt does not tell the code, so all of that differs within a group.

Marks for each peg, where the board game only counts them, are what a model of 0.1M parameters can read: taught with
counts, it learned to guess at random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vapo.errors import ConfigError
from vapo.ranges import number
from vapo.tasks.builtin import check_options, pick, quote, split, wrong
from vapo.tasks.code_space import Code, CodeSpace, Mark, mark
from vapo.tasks.verifiers.pool import MAX_RESPONSE_CHARACTERS
from vapo.tasks.words import CODE_VOCABULARY, COLOURS, MALFORMED, MAX_GUESSES, MAX_PEGS
from vapo.types import Prompt, Reply, Verdict

MAX_CODES = 4096
MAX_GUESS_CHARACTERS = 1000
PRACTICE = 2
"""Guesses that a practice game has beyond those of the task."""


@dataclass(frozen=True)
class CodebreakerOptions:
    """The difficulty of the game. The shipped base model knows the defaults only."""

    pegs: int = number(4, ge=2, le=MAX_PEGS, unit="pegs")
    """The length of the code."""
    colours: int = number(6, ge=2, le=len(COLOURS), unit="colours")
    """The colours that each peg can have. A colour may come twice in a code."""
    guesses: int = number(5, ge=1, le=MAX_GUESSES, unit="guesses")
    """The number of guesses, one a turn. A guess that is not well-formed counts, too."""
    heldout: int = number(200, ge=1, le=2000, unit="codes")
    """The number of codes kept for evaluation."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.colours**self.pegs > MAX_CODES:
            raise ConfigError(
                f"task.pegs={self.pegs} and task.colours={self.colours} make {self.colours**self.pegs} codes, and the "
                f"game takes {MAX_CODES} at most. Lower one of them."
            )


@dataclass(frozen=True)
class Forgetfulness:
    """The players of the noisy traces. They differ: an episode's player recalls a mark with one probability."""

    exponent: float = 2.0  # that probability is u**exponent, with u uniform in [0, 1): 0.33 on average, seldom high
    practice: float = 0.5  # share of traces of games with more guesses, whose players recall every mark


class CodeGame:
    """One hidden code: the environment of an episode (`vapo.types.Environment`)."""

    def __init__(self, code: Code, options: CodebreakerOptions, space: CodeSpace, guesses: int | None = None) -> None:
        self.code = code
        self.options = options
        self.space = space
        self.guesses = guesses or options.guesses
        self.guessed = 0
        self.said: list[tuple[Code, tuple[Mark, ...]]] = []
        """The guesses and their marks."""

    def reset(self) -> str:
        """Nothing follows the prompt but the first guess."""
        return ""

    def step(self, response: str) -> Reply:
        """The answer to a guess; `malformed` to a text that is none."""
        self.guessed += 1
        guess = read_code(response, self.options)
        if guess == self.code:
            return Reply(done=True, verdict=Verdict("right"))
        left = self.guesses - self.guessed
        if left <= 0:
            return Reply(done=True, verdict=self._lost(guess, response))
        if guess is None:
            return Reply(f"{MALFORMED} left={left}")
        marks = mark(self.code, guess)
        self.said.append((guess, marks))
        return Reply(" ".join([*(f"{COLOURS[c]}={m}" for c, m in zip(guess, marks, strict=True)), f"left={left}"]))

    def redraw(self, seed: int) -> None:
        """Hide another code that agrees with all marks so far; to one who reads the text all such are as likely."""
        possible = self.space.all
        for guess, marks in self.said:
            possible &= self.space.agreeing(guess, marks)
        self.code = self.space.draw(possible, seed % 2**32 / 2**32)

    def close(self) -> None:
        """Nothing to end."""

    def _lost(self, guess: Code | None, response: str) -> Verdict:
        where = f"in {self.guesses} guesses; it was {code_text(self.code)}"
        if guess is None:
            return wrong(f"the last guess, {quote(response)}, is not a code; not found {where}", "unreadable")
        return wrong(f"not found {where}")


class Codebreaker:
    """The code-breaking task; see the docstring of the module. A prompt is a hidden code, in `answer`."""

    name = "codebreaker"
    description = "break a hidden code in several turns, from the answers to the guesses"
    vocabulary = CODE_VOCABULARY
    base_steps = 3000  # half as many as other bases take: it shall win now and then, and be taught by winning

    def __init__(self, options: CodebreakerOptions | None = None, forgetfulness: Forgetfulness | None = None) -> None:
        self.options = options or CodebreakerOptions()
        self.clumsiness = forgetfulness or Forgetfulness()
        self.space = CodeSpace(self.options.pegs, self.options.colours)

    @property
    def max_turns(self) -> int:
        """One turn for each guess."""
        return self.options.guesses

    @property
    def max_response_tokens(self) -> int:
        """All turns of the policy with their stop tokens, and the answers between them."""
        return self.options.guesses * 2 * (self.options.pegs + 1)

    @cached_property
    def _prompts(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        return split((self._prompt(code, self.options.guesses) for code in self.space.codes), self.options.heldout)

    @cached_property
    def _train_codes(self) -> list[Code]:
        return [self.environment(prompt, 0).code for prompt in self.train]

    @property
    def train(self) -> tuple[Prompt, ...]:
        """The codes to train on."""
        return self._prompts[0]

    @property
    def heldout(self) -> tuple[Prompt, ...]:
        """The codes to evaluate on; none of them is in `train` or in a noisy trace."""
        return self._prompts[1]

    def environment(self, prompt: Prompt, seed: int) -> CodeGame:
        """The game of a prompt; nothing in it is random. ConfigError if the prompt is not of this game."""
        game = self._game(prompt)
        if game is None:
            raise ConfigError(f"The prompt {prompt.id} is not of this code-breaking game: check the task's options.")
        return game

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if the guesses, one on each line, find the code. An episode's own environment judges it like this."""
        game, lines = self._game(prompt), response.splitlines()
        if game is None:
            return Verdict("invalid", "this prompt is not of this game: check task options")
        if len(response) > MAX_RESPONSE_CHARACTERS:
            return wrong("too long to judge", "unreadable")
        for at, line in enumerate(lines):
            reply = game.step(line)
            if reply.verdict:
                return reply.verdict if at + 1 == len(lines) else wrong(f"goes on after guess {at + 1}, the last one")
        return wrong(f"stopped after {game.guessed} of {game.guesses} guesses", "no_answer")

    def example(self) -> tuple[Prompt, str]:
        """The first training code, and the guesses of a player who heeds every mark."""
        rng = random.Random(0)  # noqa: S311 - not for secrets
        while True:
            guesses = self._guesses(rng, self.train[0], recall=1.0)
            if self.verify(self.train[0], guesses).right:
                return self.train[0], guesses

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A training prompt and the guesses of a forgetful player, one on each line.

        The player guesses a random code among those that agree with the marks that he recalls; he recalls each mark
        on its own and anew for every guess. Most players recall little, a few nearly all. How careful a player is shows
        in his second guess already, so the outcome of an episode can be foreseen from its text.

        Half of the traces are practice: games of `PRACTICE` more guesses, as their prompt says, by careful players.
        Without them a model of 0.1M parameters hardly learns what marks mean.
        """
        code = pick(rng, self._train_codes)
        if rng.random() < self.clumsiness.practice:
            prompt = self._prompt(code, min(MAX_GUESSES, self.options.guesses + PRACTICE))
            return prompt, self._guesses(rng, prompt, recall=1.0)
        prompt = self._prompt(code, self.options.guesses)
        return prompt, self._guesses(rng, prompt, recall=rng.random() ** self.clumsiness.exponent)

    def _guesses(self, rng: random.Random, prompt: Prompt, recall: float) -> str:
        game = self.environment(prompt, 0)
        marked: list[int] = []  # for each mark so far, the codes that it leaves
        guesses: list[str] = []
        while True:
            possible = self.space.all
            for codes in marked:
                if rng.random() < recall:
                    possible &= codes
            guess = self.space.draw(possible, rng.random())
            guesses.append(code_text(guess))
            if game.step(guesses[-1]).done:
                return "\n".join(guesses)
            marked += self.space.left_by(guess, mark(game.code, guess))

    def _prompt(self, code: Code, guesses: int) -> Prompt:
        o = self.options
        return Prompt(
            id=f"codebreaker/{o.pegs}/{o.colours}/{guesses}/{'-'.join(COLOURS[colour] for colour in code)}",
            text=f"break {o.pegs} pegs of {o.colours} colours in {guesses} guesses :",
            answer={"code": code_text(code), "guesses": guesses},
            columns={"code": code_text(code)},  # for a critic that may read it: algorithm.credit.privileged=code
        )

    def _game(self, prompt: Prompt) -> CodeGame | None:
        """The game of a prompt, None if the prompt is not one of this task."""
        answer: Any = prompt.answer if isinstance(prompt.answer, dict) else {}
        code, guesses = answer.get("code"), answer.get("guesses")
        if not isinstance(code, str) or not isinstance(guesses, int) or not 1 <= guesses <= MAX_GUESSES:
            return None
        read = read_code(code, self.options)
        return None if read is None else CodeGame(read, self.options, self.space, guesses)


def read_code(text: str, options: CodebreakerOptions) -> Code | None:
    """The code in a text, None if the text is not one colour of the game for each peg."""
    if len(text) > MAX_GUESS_CHARACTERS:
        return None
    words = text.split()
    colours = COLOURS[: options.colours]
    if len(words) != options.pegs or not set(words) <= set(colours):
        return None
    return tuple(colours.index(word) for word in words)


def code_text(code: Sequence[int]) -> str:
    """The colours of a code."""
    return " ".join(COLOURS[colour] for colour in code)
