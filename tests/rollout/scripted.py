"""An engine that writes what a test says, and an environment that is told what to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vapo.types import Completion, Prompt, Reply

STOP = 1


class ScriptedEngine:
    """`write(state, seed)` gives the tokens of a turn; a call keeps what it was asked."""

    exact = True
    version = 3

    def __init__(self, write: Callable[[tuple[int, ...], int], Sequence[int]]) -> None:
        self._write = write
        self.calls: list[tuple[list[tuple[int, ...]], int]] = []

    def load_weights(self, weights, version: int) -> None:
        raise NotImplementedError

    def generate(self, prompts: Sequence[Prompt], how, seeds, on_progress=None) -> list[Completion]:
        self.calls.append(([prompt.token_ids for prompt in prompts], how.max_tokens))
        return [self._completion(prompt, how, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _completion(self, prompt: Prompt, how, seed: int) -> Completion:
        tokens = tuple(self._write(prompt.token_ids, seed))
        ends = [i for i, token in enumerate(tokens) if token in how.stop_token_ids]
        cut = tokens[: min([how.max_tokens, *(i + 1 for i in ends[:1])])]
        finish = "stop" if cut[-1] in how.stop_token_ids else "length"
        return Completion(cut, tuple(-float(t) for t in cut), finish, self.version)

    def close(self) -> None:
        raise NotImplementedError


class Numbers:
    """A text of numbers is those tokens."""

    def opening(self, prompt: Prompt, text: str) -> tuple[Prompt, tuple[int, ...]]:
        return prompt, self._ids(text)

    def reply(self, prompt: Prompt, reply: Reply, last: int) -> tuple[int, ...]:
        return self._ids(reply.text)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split())


class Told:
    """Answers what it was told, turn by turn; an exception among the answers is raised."""

    def __init__(self, *answers, begin="") -> None:
        self.answers, self.begin = list(answers), begin
        self.heard: list[str] = []
        self.closed = 0

    def reset(self) -> str:
        if isinstance(self.begin, Exception):
            raise self.begin
        return self.begin

    def step(self, response: str) -> Reply:
        self.heard.append(response)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


def words(token_ids: Sequence[int]) -> str:
    """Tokens as the text that `Numbers` reads."""
    return " ".join(map(str, token_ids))
