"""The worker process of a verifier: `python -P -m vapo.tasks.verifiers.worker '{"verifier": ..., ...}'`.

It loads the verifier once and forks a child that judges. After a child was killed (over its time or memory limit), the
next one is ready in milliseconds. Requests and verdicts are lines of JSON, so a verifier that a response has taken
over can only send text.

    to it      {"number": 7, "prompt": {"id", "text", "answer", "columns"}, "responses": ["..."],
                "token_ids": [[5, 2]] or null, "step": 0}
    from it    {"ready": pid, "together": false, "needs_tokens": false}   {"died": "SIGKILL"}
               {"number": 7, "verdicts": [["right", "", "unspecified", 1.0]], "raised": false, "last": false}
               {"failed": "why the verifier cannot be loaded", "unguarded": false}

It ends when the trainer ends for any reason, because then the pipe with the requests closes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from vapo.errors import UnguardedError, VapoError
from vapo.tasks.verifiers.functions import MEMORY_LIMIT, RewardFunction, load_verifier
from vapo.types import Prompt, Verdict, Verifier

RECYCLE_AFTER = 5000
"""Verdicts of one child before a new one replaces it, which frees what libraries have cached or leaked."""
RECYCLED, LIMITS_REFUSED = 17, 18
"""Exit codes of a child: it gave `RECYCLE_AFTER` verdicts, or its limits cannot be set on this machine."""
POLL_S = 0.02
"""Seconds between two checks whether the child has ended."""
GRACE_S = 0.05
"""Seconds between the end of the trainer and the killing of the child."""

MAX_OPEN_FILES = 1 << 16
"""Open files that `allow_open_files` asks for at most: some programs walk through all that they may have."""


def main() -> None:
    """Load the verifier and judge requests until the trainer closes the pipe."""
    spec = json.loads(sys.argv[1])
    import_from_here_last()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # output of the verifier must not be read as verdicts
        os.dup2(silence, stream)
    try:
        with ending_with_trainer(requests.fileno()):
            verify = load_verifier(spec["verifier"], **spec.get("options", {}))
    except Exception as error:
        failed = str(error) if isinstance(error, VapoError) else f"{type(error).__name__}: {error}"
        send(replies, {"failed": failed, "unguarded": isinstance(error, UnguardedError)})
        return
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = serve(verify, requests, replies, float(spec["limit_s"]), int(spec["memory_mb"]))
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(wait_for(child, requests.fileno()))
        end_group(child)
        if code in (0, LIMITS_REFUSED):
            return
        if code != RECYCLED:
            send(replies, {"died": signal.Signals(-code).name if code < 0 else f"exit code {code}"})


@contextlib.contextmanager
def ending_with_trainer(requests: int) -> Iterator[None]:
    """While the block runs, kill this process and all processes it started as soon as the trainer ends.

    A thread watches the pipe. It has ended when the block ends, so that no thread runs when the process forks.
    """
    done, finished = os.pipe()

    def watch() -> None:
        if wait_for_end(requests, None, done):
            end_group(os.getpid())
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(finished)
        thread.join()
        os.close(done)


def wait_for(child: int, requests: int) -> int:
    """The wait status of a child after it ended. If the trainer ends first, kill the child and exit."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if wait_for_end(requests, POLL_S):
            time.sleep(GRACE_S)  # a child that waits for requests exits by itself
            end_group(child)
            os._exit(0)


def wait_for_end(requests: int, timeout_s: float | None, other: int | None = None) -> bool:
    """Whether the other end of `requests` closes within the time (None: no limit).

    With `other`, waits for one of two pipes, and returns whether the first to close was `requests`.
    """
    poll = select.poll()
    poll.register(requests, 0)  # 0: report only that it closed
    if other is not None:
        poll.register(other, 0)
    return any(pipe == requests for pipe, _ in poll.poll(None if timeout_s is None else 1000 * timeout_s))


def end_group(leader: int) -> None:
    """Kill the process group that a process leads, or led before it ended, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def serve(verify: Verifier, requests: BinaryIO, replies: int, limit_s: float, memory_mb: int) -> int:
    """Judge one request per line under the limits. Returns the child's exit code."""
    try:
        os.setpgid(0, 0)  # so that the processes it starts can be killed with it
        limit(resource.RLIMIT_CORE, 0)
        limit(resource.RLIMIT_AS, memory_mb << 20)
    except (OSError, ValueError) as error:
        send(replies, {"failed": f"the limits of its process cannot be set on this machine: {error}"})
        return LIMITS_REFUSED
    grouped = isinstance(verify, RewardFunction)
    send(replies, {"ready": os.getpid(), "together": grouped, "needs_tokens": grouped and verify.needs_tokens})
    judged = 0
    while judged < RECYCLE_AFTER:
        line = requests.readline()
        if not line:
            return 0
        try:
            request = json.loads(line)
            number, prompt, responses = request["number"], Prompt(**request["prompt"]), request["responses"]
            token_ids, step = request["token_ids"], request["step"]
        except (ValueError, TypeError, KeyError):
            continue  # the rest of a line that a killed child had started to read
        judged += len(responses)
        time_limit_s = limit_s * len(responses)
        limit_processor_time(time_limit_s)
        # ends a slow child whose trainer has ended; otherwise the trainer kills it
        signal.setitimer(signal.ITIMER_REAL, 3 * time_limit_s + 1)
        verdicts, raised = verdicts_of(verify, prompt, responses, token_ids, step)
        signal.setitimer(signal.ITIMER_REAL, 0)
        rows = [verdict_fields(verdict) for verdict in verdicts]
        send(replies, {"number": number, "verdicts": rows, "raised": raised, "last": judged >= RECYCLE_AFTER})
    return RECYCLED


def verdicts_of(
    verify: Verifier, prompt: Prompt, responses: list[str], token_ids: list[list[int]] | None = None, step: int = 0
) -> tuple[list[Verdict], bool]:
    """The verdicts on the responses, and whether the verifier raised; if so, all verdicts are invalid."""
    try:
        if isinstance(verify, RewardFunction):
            return verify.together(prompt, responses, token_ids, step), False
        return [verify(prompt, response) for response in responses], False
    except (Exception, SystemExit) as error:
        reason = f"the verifier raised {type(error).__name__}{memory_advice(error)}: {error}"
        return [Verdict("invalid", reason)] * len(responses), True


def verdict_fields(verdict: Verdict) -> list[str | float | None]:
    """A verdict as it is sent to the trainer: status, reason, kind and score."""
    score = None if verdict.score is None else float(verdict.score)
    return [verdict.status, verdict.reason[:300], verdict.kind, score]


def memory_advice(error: BaseException) -> str:
    """The memory limit and how to raise it, for an error caused by too little memory; "" for other errors."""
    # torch raises a RuntimeError that only its message tells from others
    if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
        return ""
    return f" ({MEMORY_LIMIT.format(mb=resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)})"


def limit_processor_time(limit_s: float) -> None:
    """Let SIGXCPU end the process after this many more seconds of processor time, rounded up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + limit_s) + 1)


def limit(what: int, amount: int) -> None:
    """Set a soft resource limit, at most to the machine's hard limit."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def import_from_here_last() -> None:
    """Let the user's code import modules of the current folder, after all others.

    The process starts with -P, which keeps the folder off the path: a random.py there must not replace Python's.
    """
    sys.path.append("")


def allow_open_files() -> None:
    """Raise the soft limit of open files, often 1,024, to the hard one: each open episode of a user's environment
    takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # a system may allow fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def send(replies: int, message: dict[str, Any]) -> None:
    """Send one line to the trainer."""
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(replies, left) :]


if __name__ == "__main__":
    main()
