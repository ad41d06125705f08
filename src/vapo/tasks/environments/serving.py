"""The process behind environments of users: `python -P -m vapo.tasks.environments.serving '{"environment": ..., ...}'`.

It imports the user's code once, and forks a child for each episode, which answers its requests (`host`). The trainer
sends messages of 16 bytes through a socket, its standard input:

    o + number      open: begin an episode; the message brings the child's end of a socket for requests
    k + number      kill the child of that episode, which was too slow

and the process answers once, with a line of JSON: {"tools": [...], "takes_turns": true, "rewards": false} or
{"failed": "why the environment cannot be loaded", "unguarded": false}. It ends, with all children, when the trainer
ends for any reason, because then the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from vapo.errors import ConfigError, UnguardedError, VapoError
from vapo.tasks.environments.host import Host
from vapo.tasks.environments.offers import Offer, described, load_offer
from vapo.tasks.verifiers.worker import allow_open_files, end_group, ending_with_trainer, import_from_here_last, limit

MESSAGE_BYTES = 16
"""The length of a message of the trainer: a letter and a number."""
REAP_S = 0.5
"""Seconds between two looks for children that have ended."""


def main() -> None:
    """Load what the user gave, and serve episodes until the trainer closes the socket."""
    spec = json.loads(sys.argv[1])
    import_from_here_last()
    door = socket.socket(fileno=os.dup(0))
    allow_open_files()
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    try:
        with ending_with_trainer(door.fileno()):
            offer = load_offer(spec["environment"], spec["tools"], spec["form"], spec["arguments"])
            tools = _in_child(lambda: described(offer)) if offer.functions or offer.methods else []
    except Exception as error:
        failed = str(error) if isinstance(error, VapoError) else f"{type(error).__name__}: {error}"
        _send(door, {"failed": failed, "unguarded": isinstance(error, UnguardedError)})
        return
    _send(door, {"tools": tools, "takes_turns": offer.takes_turns, "rewards": offer.rewards})
    gc.freeze()  # children share what is there
    children: dict[int, bytes] = {}
    try:
        _serve_door(door, offer, spec, children)
    finally:
        for child in children:
            _kill(child)


def _in_child(work: Callable[[], Any]) -> Any:
    """What the work gives, as JSON, done in a child: this process stays small, and its children with it.

    Raises ConfigError with the message of a VapoError of the work.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            _send(theirs, {"done": work()})
        except VapoError as error:
            _send(theirs, {"failed": str(error)})
        finally:
            os._exit(0)
    theirs.close()
    with ours.makefile("rb") as lines:
        answer = json.loads(lines.readline() or b'{"failed": "the process that describes the tools ended"}')
    os.waitpid(child, 0)
    if "failed" in answer:
        raise ConfigError(answer["failed"])
    return answer["done"]


def _serve_door(door: socket.socket, offer: Offer, spec: dict[str, Any], children: dict[int, bytes]) -> None:
    poll = select.poll()
    poll.register(door, select.POLLIN)
    while True:
        if poll.poll(1000 * REAP_S):
            message, descriptors, _, _ = socket.recv_fds(door, MESSAGE_BYTES, 1)
            if len(message) < MESSAGE_BYTES:
                return  # the trainer has ended
            number = message[1:]
            if message[:1] == b"o":
                if descriptors and (child := _fork(door, descriptors[0], offer, spec)):
                    children[child] = number
            else:
                for child in [child for child, of in children.items() if of == number]:
                    _kill(child)
        while children and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            if children.pop(ended, None) is not None:  # else a process that the user's code started at its import
                end_group(ended)


def _fork(door: socket.socket, descriptor: int, offer: Offer, spec: dict[str, Any]) -> int | None:
    """The id of a new child that serves an episode; None where the machine gives no process, which the trainer is told
    as the episode's answer."""
    try:
        child = os.fork()
    except OSError as error:
        reason = f"the machine gave the environment no process: {error.strerror}. Sample fewer responses in a step"
        with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as connection:
            _send(connection, {"failed": reason})
        return None
    if child:
        os.close(descriptor)
        return child
    try:
        door.close()
        _serve_episode(socket.socket(fileno=descriptor), offer, spec)
    finally:
        os._exit(0)


def _serve_episode(connection: socket.socket, offer: Offer, spec: dict[str, Any]) -> None:
    """Answer requests, one to a line, until the trainer closes the connection."""
    os.setpgid(0, 0)  # so that the processes it starts can be killed with it
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, int(spec["memory_mb"]) << 20)
    host = Host(offer, right_at=spec["right_at"], max_characters=spec["max_characters"])
    for line in connection.makefile("rb"):
        # ends a slow child whose trainer has ended; otherwise the trainer has it killed
        signal.setitimer(signal.ITIMER_REAL, 3 * float(spec["limit_s"]) + 1)
        answer = host.answer(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(connection, answer)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _kill(child: int) -> None:
    """Kill a child that was not waited for, and what it started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
