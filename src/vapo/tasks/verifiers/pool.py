"""A pool of worker processes that judge responses, each within limits on time and memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from vapo.errors import ConfigError, UnguardedError, VerifierBrokenError, counted
from vapo.tasks.verifiers.functions import MEMORY_LIMIT, refuse_while_importing
from vapo.types import KINDS, Prompt, Verdict

MAX_RESPONSE_CHARACTERS = 1_000_000
"""Longest response that is judged. It is far above any real response, and takes milliseconds to judge."""
START_LIMIT_S = 120.0
"""Seconds that a worker may take to import its verifier."""
MAX_WORKERS = 8
"""Largest default number of workers."""


@dataclass(frozen=True)
class Limits:
    """Limits for the judging of one response."""

    time_s: float = 1.0
    """Limit on wall-clock seconds, and, rounded up, on processor seconds."""
    memory_mb: int = 2048
    """Limit on the address space of a worker, in MiB."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.time_s <= 600:
            raise ConfigError(f"task.verifier_timeout_s must lie in [0.05, 600] seconds, got {self.time_s}.")
        if not 256 <= self.memory_mb <= 1 << 20:
            raise ConfigError(f"task.verifier_memory_mb must lie in [256, 1048576] MiB, got {self.memory_mb}.")

    @property
    def time(self) -> str:
        """The time limit and how to raise it, for the reason of an invalid verdict."""
        limit = f"task.verifier_timeout_s={self.time_s:g}"
        return f"the limit for each response is {limit}; raise it if the verifier needs longer"

    @property
    def memory(self) -> str:
        """The memory limit and how to raise it, for the reason of an invalid verdict."""
        return MEMORY_LIMIT.format(mb=self.memory_mb)


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, in order, their token ids if known, and the trainer's step."""

    prompt: Prompt
    responses: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...] | None = None
    step: int = 0

    def only(self, indices: Sequence[int]) -> Group:
        """A group of the responses with these indices."""
        ids = None if self.token_ids is None else tuple(self.token_ids[at] for at in indices)
        return replace(self, responses=tuple(self.responses[at] for at in indices), token_ids=ids)


class VerifierPool:
    """Runs a verifier in worker processes; `functions.load_verifier` lists the names of verifiers.

    If a worker exceeds its time or memory limit on a response, or dies, the verdict is *invalid* with the reason, and
    the worker is killed and replaced. Raises ConfigError if the verifier cannot be loaded. Use it from one thread at a
    time, and close it or use it as a context manager.
    """

    def __init__(
        self,
        verifier: str,
        options: Mapping[str, Any] | None = None,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        refuse_while_importing("a verifier's worker processes")
        self.verifier, self.limits = verifier, limits or Limits()
        self.num_workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        if self.num_workers < 1:
            raise ConfigError(f"task.verifier_workers must be at least 1, got {workers}.")
        spec = json.dumps({"verifier": verifier, "options": dict(options or {}), "limit_s": self.limits.time_s,
                           "memory_mb": self.limits.memory_mb})  # fmt: skip
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="verifier")
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._all: list[Worker] = []
        self._finalizer = weakref.finalize(self, _close, self._threads, self._all)
        try:
            for worker in self._threads.map(lambda _: Worker(spec, self.limits, self._all), range(self.num_workers)):
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise

    def judge(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """Verdicts on (prompt, response) pairs, in order. A reward function is called once per pair."""
        return self.judge_groups([Group(prompt, (response,)) for prompt, response in items], on_progress)

    def judge_groups(
        self, groups: Sequence[Group], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """Verdicts on all responses, in order. A reward function is called once per group.

        The time limit of such a call is the limit of one response times their number. If the call fails, each response
        is judged alone: those that fail alone are invalid, and the others are judged together again.
        """
        total = sum(len(group.responses) for group in groups)
        if not self.together:  # single responses, to use all workers
            groups = [group.only([at]) for group in groups for at in range(len(group.responses))]
        verdicts: list[Verdict] = []
        for group_verdicts in self._threads.map(self._judge_group, groups):
            verdicts += group_verdicts
            if on_progress:
                on_progress(len(verdicts), total)
        return verdicts

    @property
    def together(self) -> bool:
        """Whether the verifier judges all responses to a prompt in one call."""
        return self._all[0].together

    @property
    def needs_tokens(self) -> bool:
        """Whether the verifier requires the token ids of the responses."""
        return self._all[0].needs_tokens

    def close(self) -> None:
        """Kill the worker processes."""
        self._finalizer()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge_group(self, group: Group) -> list[Verdict]:
        """The verdicts on a group; see `judge_groups`."""
        sizes = [len(response) for response in group.responses]
        verdicts = {
            at: Verdict("wrong", f"a response of {size} characters", "unreadable") for at, size in enumerate(sizes)
        }
        left = [at for at, size in enumerate(sizes) if size <= MAX_RESPONSE_CHARACTERS]
        worker = self._idle.get()
        try:
            judged, failed = self._call(worker, group.only(left)) if left else ([], False)
            if failed and len(left) > 1:
                alone = {at: self._call(worker, group.only([at])) for at in left}
                verdicts |= {at: single[0] for at, (single, single_failed) in alone.items() if single_failed}
                left = [at for at in left if not alone[at][1]]
                judged = self._call(worker, group.only(left))[0] if left else []
            verdicts |= dict(zip(left, judged, strict=True))
        finally:
            self._idle.put(worker)
        return [verdicts[at] for at in range(len(sizes))]

    def _call(self, worker: Worker, group: Group) -> tuple[list[Verdict], bool]:
        """The verdicts of one call of the verifier, and whether it failed; if so, all are invalid with the reason."""
        prompt, count = group.prompt, len(group.responses)
        fields = {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "columns": prompt.columns}
        request = {
            "prompt": fields,
            "responses": group.responses,
            "token_ids": group.token_ids if self.together else None,
            "step": group.step,
        }
        verdicts, failed = worker.judge(request, self.limits.time_s * count)
        if isinstance(verdicts, Verdict):
            return [verdicts] * count, True
        if len(verdicts) != count:
            return [
                Verdict(
                    "invalid",
                    f"the verifier wrote {counted(len(verdicts), 'verdict')} for {counted(count, 'response')}",
                )
            ] * count, True
        return verdicts, failed


Reply = list[Verdict] | Verdict
"""The verdicts in order, or a single invalid verdict that stands for all of them."""


class Worker:
    """One worker process and its two pipes."""

    def __init__(self, spec: str, limits: Limits, register: list[Worker]) -> None:
        self._limits = limits
        self._spec, self._number, self.closed, self._raised = spec, 0, False, False
        self._child: int | None = None
        self.together = self.needs_tokens = False
        self._start()
        register.append(self)
        try:
            self._child = self._await_child()
        except EOFError as error:
            raise ConfigError("Cannot load the verifier: its process ended without an error message.") from error

    def judge(self, request: dict[str, Any], limit_s: float) -> tuple[Reply, bool]:
        """The verdicts on one request, or an invalid one after `limit_s` seconds; and whether the verifier raised.

        If the process dies, the request is sent once more if enough of the time limit is left, because the process may
        have been killed from outside.
        """
        self._number += 1
        try:
            line = json.dumps({"number": self._number, **request}).encode() + b"\n"
        except (TypeError, ValueError) as error:
            return Verdict("invalid", f"this prompt cannot be sent to a verifier: {error}"), False
        started = time.monotonic()
        self._raised = False
        verdicts, died = self._judge_once(line, limit_s)
        left = limit_s - (time.monotonic() - started)
        if died and left > limit_s / 2:
            verdicts, _ = self._judge_once(line, left)
        return verdicts, self._raised

    def _judge_once(self, line: bytes, limit_s: float) -> tuple[Reply, bool]:
        """The verdicts on a request that is sent once, and whether the process died during it."""
        try:
            self._wait_for_child()
            deadline = time.monotonic() + limit_s
            if not self._send(line, deadline):
                self._restart()  # the pipe holds half a request
                return Verdict(
                    "invalid", f"the verifier's process did not read its request in time: {self._limits.time}"
                ), False
            while (message := self._receive(deadline)) is not None:
                if "died" in message:
                    self._child = None
                    return Verdict("invalid", _death_reason(message["died"], self._limits)), True
                if message.get("number") == self._number:
                    self._child = None if message.get("last") else self._child
                    self._raised = bool(message.get("raised"))
                    return _read_verdicts(message), False
            self._kill_child()
            return Verdict("invalid", f"no verdict within {limit_s:.3g} s: {self._limits.time}"), False
        except (BrokenPipeError, EOFError):
            self._restart()
            # no second try: the new process must load the verifier first
            return Verdict("invalid", "the verifier's process died"), False

    def close(self) -> None:
        """Kill the process for good."""
        self.closed = True
        self._end()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "vapo.tasks.verifiers.worker", self._spec]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, start_new_session=True,  # Ctrl-C reaches only the trainer, which then ends its workers
            )  # fmt: skip
        except OSError as error:
            raise VerifierBrokenError(
                f"Cannot start a verifier's process: {error}. Free memory or end other processes."
            ) from error
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process, self._lines = process, _Lines(process.stdout.fileno())

    def _wait_for_child(self) -> None:
        """Wait for a new child if the last one was killed, died or was recycled."""
        if self._child is None:
            try:
                self._child = self._await_child()
            except EOFError:  # the process that forks the children has ended
                self._restart()
                self._child = self._await_child()

    def _restart(self) -> None:
        """Replace the worker process and its child."""
        if self.closed:
            raise VerifierBrokenError("The verifier was closed while it judged.")
        self._end()
        self._start()

    def _end(self) -> None:
        """Kill the worker process and its child, and close the pipes."""
        if self._process.returncode is not None:
            return  # its process id may belong to another process now
        for process_group in (self._child, self._process.pid):
            if process_group is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process_group, signal.SIGKILL)
        self._process.wait()
        self._child = None
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _kill_child(self) -> None:
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)
        self._child = None

    def _await_child(self) -> int:
        """The process id of a child that is ready; EOFError if the worker process ends first."""
        deadline = time.monotonic() + START_LIMIT_S
        while (message := self._receive(deadline)) is not None:
            if "failed" in message:
                error = UnguardedError if message.get("unguarded") else ConfigError
                raise error(f"Cannot load the verifier: {message['failed']}")
            if "ready" in message:
                self.together, self.needs_tokens = bool(message.get("together")), bool(message.get("needs_tokens"))
                return int(message["ready"])
        raise VerifierBrokenError(
            f"The verifier's process was not ready after {START_LIMIT_S:g} s: importing its file takes too long. "
            'Move code outside of functions under `if __name__ == "__main__":`.'
        )

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message of the worker, empty if it is malformed; None after the deadline."""
        line = self._lines.line(deadline)
        if line is None:
            return None
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        return message if isinstance(message, dict) else {}

    def _send(self, request: bytes, deadline: float) -> bool:
        """Whether the whole request was written before the deadline."""
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        left = memoryview(request)
        while left:
            if not _wait_for(pipe, select.POLLOUT, deadline):
                return False
            left = left[os.write(pipe, left) :]
        return True


def _wait_for(pipe: int, event: int, deadline: float) -> bool:
    """Whether the pipe is ready for reading or writing before the deadline."""
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(1000 * max(0.0, deadline - time.monotonic())))


@dataclass
class _Lines:
    """Reads lines from a pipe with a deadline."""

    pipe: int
    pending: bytearray = field(default_factory=bytearray)

    def line(self, deadline: float) -> bytes | None:
        """The next line, None after the deadline; EOFError at the end of the pipe."""
        while (end := self.pending.find(b"\n")) < 0:
            if not _wait_for(self.pipe, select.POLLIN, deadline):
                return None
            more = os.read(self.pipe, 1 << 16)
            if not more:
                raise EOFError
            self.pending += more
        line = bytes(self.pending[:end])
        del self.pending[: end + 1]
        return line


_DEATH_CAUSES = {
    "SIGXCPU": "too much processor time: {time}",
    "SIGALRM": "too slow: {time}",
    "SIGKILL": "killed, perhaps because the machine ran out of memory: lower task.verifier_workers",
    "SIGSEGV": "its stack or memory ran out: {memory}",
    "SIGABRT": "perhaps its memory ran out: {memory}",
}


def _death_reason(died: str, limits: Limits) -> str:
    """The reason for a verdict after a process died of a signal or an exit code, with the probable cause."""
    cause = _DEATH_CAUSES.get(died, "").format(time=limits.time, memory=limits.memory)
    return f"the verifier's process died of {died}" + (f": {cause}" if cause else "")


def _read_verdicts(message: dict[str, Any]) -> Reply:
    """The verdicts in a worker's message, which a response may have forged: nothing in it is trusted."""
    missing = Verdict("invalid", "the verifier wrote no verdict")
    found = message.get("verdicts")
    return [read_verdict(fields) or missing for fields in found] if isinstance(found, list) else missing


def read_verdict(fields: Any) -> Verdict | None:
    """The verdict that `worker.verdict_fields` has sent; None for anything else."""
    match fields:
        case ["right" | "wrong" | "invalid" as status, str(reason), kind, score]:
            kind = kind if kind in KINDS else "unspecified"
            reason = reason.encode(errors="replace").decode()  # half a pair of surrogates cannot be printed
            return Verdict(status, reason, kind, score if isinstance(score, float) and math.isfinite(score) else None)
    return None


def _close(threads: ThreadPoolExecutor, workers: list[Worker]) -> None:
    """End all workers and threads."""
    for worker in list(workers):
        worker.close()  # before the threads, which may wait for a verdict
    threads.shutdown(wait=True, cancel_futures=True)
    for worker in workers:  # workers that started since
        worker.close()
