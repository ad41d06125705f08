"""Ways to a user's environment: `EnvironmentServer` in processes of its own, `ThreadServer` in this process.

Both open a channel for each episode, which passes requests to a `host` and raises `EnvironmentFaultError` when there is
no answer in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from vapo.errors import ConfigError, UnguardedError
from vapo.tasks.environments.host import Host
from vapo.tasks.environments.offers import Form, Offer, described
from vapo.tasks.verifiers.functions import RIGHT_AT, refuse_while_importing
from vapo.tasks.verifiers.pool import MAX_WORKERS, START_LIMIT_S
from vapo.tasks.verifiers.worker import allow_open_files

MAX_ANSWER_BYTES = 1 << 24
"""An answer that is longer comes from an environment that has taken over its process."""


@dataclass(frozen=True)
class EnvironmentLimits:
    """Limits of one call of an environment or a tool."""

    time_s: float = 10.0
    memory_mb: int = 2048
    max_characters: int = 10_000
    settings: tuple[str, str] = ("task.environment_timeout_s", "task.environment_memory_mb")
    """The names of the first two, for messages."""

    @property
    def late(self) -> str:
        """The reason of a verdict on an episode whose environment was too slow."""
        return (
            f"the environment gave no answer within {self.settings[0]}={self.time_s:g} s; raise it if a call needs "
            "longer"
        )


class EnvironmentFaultError(Exception):
    """An environment gave no answer, or none that can be read. The message is the reason of an invalid verdict."""


class EnvironmentRaisedError(EnvironmentFaultError):
    """The user's code raised; its process goes on and answers."""


class Channel(Protocol):
    """The way to the environment of one episode."""

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; raises EnvironmentFaultError after the time limit, and for an answer that failed."""
        ...

    def close(self) -> None:
        """End the environment's process."""
        ...


class EnvironmentServer:
    """A process that has imported the user's environment and tools, and forks a child for each episode.

    `environment` and `tools` are names as in `functions.import_function`; for `form` and `arguments` see
    `offers.load_offer`. A child that exceeds a limit is killed, and costs its own episode only. `open` may be called
    from several threads.

    Raises ConfigError if the environment cannot be loaded.
    """

    def __init__(
        self,
        environment: str | None,
        tools: Sequence[str] = (),
        *,
        form: Form = "auto",
        arguments: Mapping[str, Any] | None = None,
        right_at: float = RIGHT_AT,
        limits: EnvironmentLimits | None = None,
        workers: int | None = None,
    ) -> None:
        refuse_while_importing("an environment's processes")
        self.limits = limits or EnvironmentLimits()
        self.workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._spec = json.dumps({
            "environment": environment, "tools": list(tools), "form": form, "arguments": arguments,
            "right_at": right_at,
            "limit_s": self.limits.time_s, "memory_mb": self.limits.memory_mb,
            "max_characters": self.limits.max_characters,
        })  # fmt: skip
        self._numbers, self._lock = count(), Lock()
        self._parts: dict[str, Any] = {}
        allow_open_files()
        weakref.finalize(self, _end, self._parts)
        offer = self._start()
        self.tools: tuple[Mapping[str, Any], ...] = tuple(offer["tools"])
        """JSON schemas of the tools."""
        self.takes_turns: bool = offer["takes_turns"]
        self.rewards: bool = offer["rewards"]
        """Whether the environment says its own reward."""

    def open(self) -> Channel:
        """A channel to a new child."""
        ours, theirs = socket.socketpair()
        with self._lock:
            if "door" not in self._parts:  # closed after an earlier run
                self._start()
            number = b"%015d" % next(self._numbers)
            try:
                socket.send_fds(self._parts["door"], [b"o" + number], [theirs.fileno()])
            except OSError:  # the process was killed from outside
                self._start()
                socket.send_fds(self._parts["door"], [b"o" + number], [theirs.fileno()])
        theirs.close()
        return ProcessChannel(self, number, ours, self.limits)

    def kill(self, number: bytes) -> None:
        """Kill the child of that episode."""
        with self._lock, contextlib.suppress(OSError):
            self._parts["door"].sendall(b"k" + number)

    def close(self) -> None:
        """Kill all processes; `open` starts them again."""
        with self._lock:
            _end(self._parts)

    def _start(self) -> dict[str, Any]:
        """Start the process; what it says of the user's environment."""
        _end(self._parts)
        door, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "vapo.tasks.environments.serving", self._spec]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the trainer, which then ends it
        )  # fmt: skip
        theirs.close()
        self._parts |= {"door": door, "process": process}
        try:
            answer = json.loads(_line(door, bytearray(), time.monotonic() + START_LIMIT_S))
        except TimeoutError as error:
            raise ConfigError(
                f"The environment was not loaded after {START_LIMIT_S:g} s: importing its file takes too long. Move "
                'code outside of functions under `if __name__ == "__main__":`.'
            ) from error
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError("Cannot load the environment: its process ended without an error message.") from error
        if "failed" in answer:
            kind = UnguardedError if answer.get("unguarded") else ConfigError
            raise kind(f"Cannot load the environment: {answer['failed']}")
        return answer


class ProcessChannel:
    """Requests and answers, lines of JSON, through a socket to a child of the server."""

    def __init__(
        self, server: EnvironmentServer, number: bytes, ours: socket.socket, limits: EnvironmentLimits
    ) -> None:
        self._server, self._number, self._socket, self._limits = server, number, ours, limits
        self._pending = bytearray()
        self._socket.setblocking(False)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `Channel.ask`."""
        try:
            data = json.dumps(request, default=_plain).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise EnvironmentFaultError(f"this prompt cannot be sent to an environment: {error}") from error
        deadline = time.monotonic() + self._limits.time_s
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it ended
                _send(self._socket, data, deadline)
            answer = json.loads(_line(self._socket, self._pending, deadline))
        except TimeoutError as error:
            self._server.kill(self._number)
            self.close()
            raise EnvironmentFaultError(self._limits.late) from error
        except (OSError, EOFError) as error:
            self.close()
            raise EnvironmentFaultError(
                f"the environment's process died; {self._limits.settings[1]}={self._limits.memory_mb} is its limit"
            ) from error
        except ValueError as error:
            raise EnvironmentFaultError("the environment's process wrote what is no answer") from error
        return _checked(answer)

    def close(self) -> None:
        """See `Channel.close`: the child ends when its connection does."""
        self._socket.close()


class ThreadServer:
    """Environments and tools that are objects of this process, and cannot be imported by another one: defined in a
    notebook, or in a script that runs whole when it is imported.

    Each episode has a thread, so that a call that takes too long is left behind, running. Memory has no limit.
    """

    def __init__(self, offer: Offer, *, right_at: float = RIGHT_AT, limits: EnvironmentLimits | None = None) -> None:
        self.limits, self._offer, self._right_at = limits or EnvironmentLimits(), offer, right_at
        self.workers = MAX_WORKERS
        self.tools, self.takes_turns, self.rewards = tuple(described(offer)), offer.takes_turns, offer.rewards

    def open(self) -> Channel:
        """A channel to a new thread."""
        host = Host(self._offer, right_at=self._right_at, max_characters=self.limits.max_characters)
        return ThreadChannel(host, self.limits)

    def close(self) -> None:
        """Threads end with their episodes."""


class ThreadChannel:
    """Requests and answers through queues to a thread."""

    def __init__(self, host: Host, limits: EnvironmentLimits) -> None:
        self._limits = limits
        self._requests: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        Thread(target=self._serve, args=(host,), name="environment", daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `Channel.ask`."""
        self._requests.put(request)
        try:
            return _checked(self._answers.get(timeout=self._limits.time_s))
        except Empty:
            self.close()
            raise EnvironmentFaultError(self._limits.late) from None

    def close(self) -> None:
        """See `Channel.close`."""
        self._requests.put(None)

    def _serve(self, host: Host) -> None:
        while (request := self._requests.get()) is not None:
            self._answers.put(host.answer(request))


def _checked(answer: Any) -> dict[str, Any]:
    """An answer that is one. Raises EnvironmentFaultError."""
    if not isinstance(answer, dict):
        raise EnvironmentFaultError("the environment's process wrote what is no answer")
    if "failed" in answer:
        raise EnvironmentRaisedError(str(answer["failed"]))
    return answer


def _plain(value: Any) -> Any:
    """A value of a column that JSON does not know: numbers of numpy and torch as numbers, others as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    """Send everything before the deadline, or raise TimeoutError."""
    left = memoryview(data)
    while left:
        _wait(connection, select.POLLOUT, deadline)
        left = left[connection.send(left) :]


def _line(connection: socket.socket, pending: bytearray, deadline: float) -> bytes:
    """The next line; TimeoutError after the deadline, EOFError at the end, ValueError for one that has no end."""
    while (end := pending.find(b"\n")) < 0:
        if len(pending) > MAX_ANSWER_BYTES:
            raise ValueError("too long")
        _wait(connection, select.POLLIN, deadline)
        more = connection.recv(1 << 16)
        if not more:
            raise EOFError
        pending += more
    line = bytes(pending[:end])
    del pending[: end + 1]
    return line


def _wait(connection: socket.socket, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(connection, event)
    if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def _end(parts: dict[str, Any]) -> None:
    """Close the door, which ends the children, and the process."""
    if (door := parts.pop("door", None)) is not None:
        door.close()
    if (process := parts.pop("process", None)) is not None:
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
