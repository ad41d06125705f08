"""A worker process that judges: `python -m vapo.tasks.verifiers.worker '{"verifier": ..., ...}'`.

It loads the verifier once and forks a child that judges, so that after a child was killed (too slow, too large) the
next one is ready in milliseconds. Requests and verdicts are lines of JSON: a verifier that a response has taken over
can send back text only.

    to it      {"number": 7, "prompt": {"id", "text", "answer", "columns"}, "responses": ["..."],
                "token_ids": [[5, 2]] or null, "step": 0}
    from it    {"ready": pid, "together": false, "needs_tokens": false}   {"died": "SIGKILL"}
               {"number": 7, "verdicts": [["right", "", "unspecified", 1.0]], "raised": false, "last": false}
               {"failed": "why the verifier cannot be loaded", "unguarded": false}

It ends when its trainer ends, for any reason: then the pipe it reads requests from closes.
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
"""Verdicts of one child; a new child starts without what the verifier's libraries cached or leaked."""
RECYCLED, UNFIT = 17, 18
LOOK_EVERY_S = 0.02
GRACE_S = 0.05
"""Seconds between two checks whether the child has ended, and between the trainer's end and the child's."""


def main() -> None:
    """Serve until the other end closes."""
    spec = json.loads(sys.argv[1])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a verifier prints must not be taken for verdicts
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
        if code == 0:
            return
        if code == UNFIT:
            return
        if code != RECYCLED:
            send(replies, {"died": signal.Signals(-code).name if code < 0 else f"exit code {code}"})


@contextlib.contextmanager
def ending_with_trainer(requests: int) -> Iterator[None]:
    """What is inside, and this process with all it has started, ends at once when the trainer is gone.

    A thread, which is over before anything is forked.
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
    """The status a child ended with. If the trainer is gone before, child and process end at once."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if wait_for_end(requests, LOOK_EVERY_S):
            time.sleep(GRACE_S)  # a child that waits for requests sees the end itself
            end_group(child)
            os._exit(0)


def wait_for_end(requests: int, timeout_s: float | None, other: int | None = None) -> bool:
    """Whether the other end of `requests` closed within that time (None: any), or before that of `other` did."""
    poll = select.poll()
    poll.register(requests, 0)  # 0: nothing but its end is reported
    if other is not None:
        poll.register(other, 0)
    return any(pipe == requests for pipe, _ in poll.poll(None if timeout_s is None else 1000 * timeout_s))


def end_group(leader: int) -> None:
    """Kill a process group, if the process leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)


def serve(verify: Verifier, requests: BinaryIO, replies: int, limit_s: float, memory_mb: int) -> int:
    """Judge line by line under the limits; the child's exit code."""
    try:
        os.setpgid(0, 0)  # so that whatever it starts can be killed with it
        limit(resource.RLIMIT_CORE, 0)
        limit(resource.RLIMIT_AS, memory_mb << 20)
    except (OSError, ValueError) as error:
        send(replies, {"failed": f"its limits cannot be set here: {error}"})
        return UNFIT
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
            continue  # the rest of what a child before this one was reading when it was killed
        judged += len(responses)
        allowed_s = limit_s * len(responses)
        limit_processor_time(allowed_s)
        # the trainer kills a slow child; this is for children whose trainer is gone
        signal.setitimer(signal.ITIMER_REAL, 3 * allowed_s + 1)
        verdicts, raised = verdicts_of(verify, prompt, responses, token_ids, step)
        signal.setitimer(signal.ITIMER_REAL, 0)
        rows = [verdict_fields(verdict) for verdict in verdicts]
        send(replies, {"number": number, "verdicts": rows, "raised": raised, "last": judged >= RECYCLE_AFTER})
    return RECYCLED


def verdicts_of(
    verify: Verifier, prompt: Prompt, responses: list[str], token_ids: list[list[int]] | None = None, step: int = 0
) -> tuple[list[Verdict], bool]:
    """The verdicts, and whether the verifier raised: then none of these responses could be judged."""
    try:
        if isinstance(verify, RewardFunction):
            return verify.together(prompt, responses, token_ids, step), False
        return [verify(prompt, response) for response in responses], False
    except Exception as error:
        reason = f"the verifier raised {type(error).__name__}{memory_advice(error)}: {error}"
        return [Verdict("invalid", reason)] * len(responses), True


def verdict_fields(verdict: Verdict) -> list[str | float | None]:
    """A verdict as it is sent to the trainer: status, reason, kind and score."""
    score = None if verdict.score is None else float(verdict.score)
    return [verdict.status, verdict.reason[:300], verdict.kind, score]


def memory_advice(error: Exception) -> str:
    """The limit that an error for want of memory met, and what to do; empty for other errors."""
    if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # torch's, and errno's words
        return ""
    return f" ({MEMORY_LIMIT.format(mb=resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)})"


def limit_processor_time(limit_s: float) -> None:
    """Death by SIGXCPU after so many more seconds (rounded up) of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + limit_s) + 1)


def limit(what: int, amount: int) -> None:
    """Set a soft limit, as far as the hard one of this machine allows."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def send(replies: int, message: dict[str, Any]) -> None:
    """Send one line to the trainer."""
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(replies, left) :]


if __name__ == "__main__":
    main()
