"""A process that judges: `python -m vapo.tasks.verifiers.worker '{"verifier": ..., ...}'`.

It loads the verifier once and then forks a child that does the judging, so that after a child was killed
(too slow, too large) the next one is ready in milliseconds. Requests and verdicts are lines of JSON: a
verifier that was taken over by what it reads can send nothing but words back.

    to it      {"number": 7, "prompt": {"id", "text", "answer", "columns"}, "responses": ["..."],
                "token_ids": [[5, 2]] or null, "step": 0}
    from it    {"ready": pid, "together": false, "needs_tokens": false}   {"died": "SIGKILL"}
               {"number": 7, "verdicts": [["right", ""]], "raised": false, "last": false}
               {"failed": "why the verifier cannot be loaded"}
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from vapo.errors import VapoError
from vapo.tasks.verifiers.functions import RewardFunction, load_verifier
from vapo.types import Prompt, Verdict, Verifier

RECYCLE_AFTER = 5000
"""Verdicts of one child: whatever a verifier's libraries cache or leak goes with it."""
RECYCLED, UNFIT = 17, 18


def main() -> None:
    """Serve until the other end closes."""
    spec = json.loads(sys.argv[1])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a verifier prints must not be taken for verdicts
        os.dup2(silence, stream)
    try:
        verify = load_verifier(spec["verifier"], **spec.get("options", {}))
    except Exception as error:
        known = isinstance(error, VapoError)
        send(replies, {"failed": str(error) if known else f"{type(error).__name__}: {error}"})
        return
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = serve(verify, requests, replies, float(spec["limit_s"]), int(spec["memory_mb"]))
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        if code == UNFIT:
            return
        if code != RECYCLED:
            send(replies, {"died": signal.Signals(-code).name if code < 0 else f"exit code {code}"})


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
        verdicts, raised = judge(verify, prompt, responses, token_ids, step)
        signal.setitimer(signal.ITIMER_REAL, 0)
        told = [[verdict.status, verdict.reason[:300]] for verdict in verdicts]
        send(replies, {"number": number, "verdicts": told, "raised": raised, "last": judged >= RECYCLE_AFTER})
    return RECYCLED


def judge(
    verify: Verifier, prompt: Prompt, responses: list[str], token_ids: list[list[int]] | None = None, step: int = 0
) -> tuple[list[Verdict], bool]:
    """The verdicts, and whether the verifier raised: then none of these responses could be judged."""
    try:
        if isinstance(verify, RewardFunction):
            return verify.together(prompt, responses, token_ids, step), False
        return [verify(prompt, response) for response in responses], False
    except Exception as error:
        return [Verdict("invalid", f"the verifier raised {type(error).__name__}: {error}")] * len(responses), True


def limit_processor_time(limit_s: float) -> None:
    """Death by SIGXCPU after so many more seconds (rounded up) of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + limit_s) + 1)


def limit(what: int, amount: int) -> None:
    """Set a soft limit, as far as the hard one of this machine allows."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def send(replies: int, message: dict[str, Any]) -> None:
    """One line to the trainer."""
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(replies, left) :]


if __name__ == "__main__":
    main()
