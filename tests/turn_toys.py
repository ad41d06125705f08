"""A task of several turns that a tiny policy learns in seconds."""

from __future__ import annotations

import toys
from vapo.types import Prompt, Reply, Verdict


class Repeat:
    """Says a digit of its own after each turn; it is over, and right, when a turn names a digit that was said."""

    def __init__(self, seed: int) -> None:
        self.digit, self.said, self.closed = str(seed % 10), False, False

    def reset(self) -> str:
        return ""

    def step(self, response: str) -> Reply:
        if self.said and self.digit in response.split():
            return Reply("ignored", done=True, verdict=Verdict("right"))
        self.said = True
        return Reply(f"x {self.digit} x")

    def close(self) -> None:
        self.closed = True


class RepeatTask(toys.EchoTask):
    name = "repeat"
    max_response_tokens = 24
    max_turns = 3

    def environment(self, prompt: Prompt, seed: int) -> Repeat:
        return Repeat(seed)

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict("wrong", "not named")
