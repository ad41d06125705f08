"""A process that answers commands: one JSON object per line, each way. Its stderr goes to a file.

No signal of the terminal reaches it (Ctrl-C is the parent's to handle), and it has to end by itself when its stdin
closes: that also happens when the parent is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vapo.json_text import json_text

_WAIT_S = 0.5
"""Seconds between two calls of `on_wait`."""
_CLOSE_S = 3.0
"""Seconds in which the process may end by itself."""


class WorkerLostError(Exception):
    """The process ended, or was silent for too long, which ends it; the text says which."""


class CommandFailedError(Exception):
    """The process answered a command with an error; the text is its own."""


class WorkerProcess:
    """The running process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own file, run by the interpreter that the user names
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                start_new_session=True,
            )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ask(
        self,
        command: Mapping[str, Any],
        *,
        limit_s: float,
        on_part: Callable[[dict[str, Any]], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """The answer to a command; `on_part` gets what is sent before it, `on_wait` is called from time to time.

        Raises WorkerLostError if the process ends or says nothing for `limit_s` seconds, CommandFailedError if the
        command failed there.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json_text(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerLostError(self._end()) from error
        while True:
            message = json.loads(self._line(limit_s, on_wait))
            if "ok" in message:
                return message["ok"]
            if "error" in message:
                raise CommandFailedError(message["error"])
            if on_part:
                on_part(message)

    def _line(self, limit_s: float, on_wait: Callable[[], None] | None) -> bytes:
        assert self._process.stdout is not None
        pipe, heard = self._process.stdout.fileno(), time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if selector.select(_WAIT_S):
                    part = os.read(pipe, 1 << 20)
                    if not part:
                        raise WorkerLostError(self._end())
                    self._buffer += part
                    heard = time.monotonic()
                elif time.monotonic() - heard > limit_s:
                    self.kill()
                    raise WorkerLostError(f"gave no sign of life for {limit_s:g} seconds and was ended")
                if on_wait:
                    on_wait()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end(self) -> str:
        """How the process ended, in words; it is gone afterwards."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe closes a moment before it ends
            self._process.wait(_CLOSE_S)
        code = self._process.poll()
        self.kill()
        if code is None:
            return "closed its output"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close_pipes()

    def close(self) -> None:
        """Let the process end, or end it."""
        self._close_pipes()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        self.kill()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent stays unsent
                    pipe.close()
