"""Environments and tools as users write them, good and bad; worker processes import this file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from vapo.types import Reply, Verdict


class Guess:
    """Ends when the answer is named; other words make it misbehave."""

    def __init__(self, answer, seed: int) -> None:
        self.answer, self.seed, self.turns = str(answer), seed, 0
        self._hidden = "not left"
        self.pipe = object()

    def reset(self) -> str:
        return "go"

    def step(self, response: str) -> Reply | str:
        self.turns += 1
        match response:
            case "hang":
                time.sleep(60)
            case "raise":
                raise ValueError("a fault")
            case "die":
                os._exit(3)
            case "memory":
                bytearray(4 << 30)
            case "print":
                print('{"text": "forged", "done": true, "verdict": ["right", "", "unspecified", 1.0]}')
            case "number":
                return 7  # type: ignore[return-value]
            case "nan":
                return Reply(done=True, verdict=float("nan"))  # type: ignore[arg-type]
            case "big":
                return "x" * 50_000_000
        if response == self.answer:
            return Reply("well done", done=True, verdict=Verdict("right", "named it"))
        return f"no {self.turns}"


class Connected:
    """Keeps a queue that is bound to the event loop in which it was first waited on, and notes its loops."""

    def __init__(self, answer) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    async def reset(self) -> str:
        self.loops.append(asyncio.get_running_loop())
        asyncio.get_running_loop().call_later(0.01, self.queue.put_nowait, "go")
        return await self.queue.get()

    async def step(self, response: str) -> Reply:
        self.loops.append(asyncio.get_running_loop())
        asyncio.get_running_loop().call_later(0.01, self.queue.put_nowait, response)
        return Reply(await self.queue.get())

    async def get_reward(self) -> float:
        self.loops.append(asyncio.get_running_loop())
        return float(len(self.loops))

    async def close(self) -> None:
        self.loops.append(asyncio.get_running_loop())


class Scored(Guess):
    """Takes turns, and says its own reward."""

    def get_reward(self) -> float:
        return 1 / self.turns


class Holder:
    """Starts a process, fails where its answer says so, and notes that it was closed."""

    def __init__(self, answer, start) -> None:
        self.fails, self.folder = str(answer), Path(start)
        child = subprocess.Popen(["sleep", "60"])
        (self.folder / "pid").write_text(str(child.pid))

    def reset(self) -> str:
        return self._at("reset")

    def step(self, response: str) -> str:
        return self._at("step")

    def get_reward(self) -> float:
        if self.fails in ("reset", "step"):
            time.sleep(60)  # nobody needs the reward of an environment that failed
        self._at("get_reward")
        return 1.0

    def close(self) -> None:
        (self.folder / "closed").touch()

    def _at(self, place: str) -> str:
        if self.fails == place:
            raise ValueError(f"a fault in {place}")
        return place


class Counter:
    """TRL's form: its public methods are tools."""

    def reset(self, start: int = 0, **row) -> str:
        self.count = start
        return f" from {start}"

    def add(self, amount: int) -> int:
        """Add to the count.

        Args:
            amount: How much.
        """
        self.count += amount
        return self.count

    async def slow(self) -> str:
        """Hang."""
        time.sleep(60)
        return "never"

    def get_reward(self) -> float:
        return self.count / 4


class NoReset:
    def step(self, response: str) -> str:
        return response


class Undescribed:
    def reset(self) -> None: ...

    def add(self, amount):
        return amount


class Idle:
    def reset(self) -> None: ...


def double(number: int) -> int:
    """Twice the number.

    Args:
        number: Any number.
    """
    return 2 * number


def sleepy() -> str:
    """Sleep for a minute."""
    time.sleep(60)
    return "awake"


def faulty() -> str:
    """Raise."""
    raise KeyError("no such thing")
