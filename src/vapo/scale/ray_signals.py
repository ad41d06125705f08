"""What signals do while Ray works for us in the main thread: they stop a run in the end, and never Ray halfway."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_signals(ray: Any) -> Iterator[None]:
    """Note signals that stop a run, and hand the first to its handler at the end, in place of an error of Ray's.

    For Ray's start and end. Ray sets a handler of SIGTERM there that ends a run without a save, and fails in its own
    words where a handler raises. In other threads than the main one signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {number: handler for number in _STOPPING if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, _: noted.append(number))
    utils = ray._private.utils  # Ray 2.60 has no setting that leaves SIGTERM alone
    set_handler, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            before[signal.Signals(noted[0])](noted[0], None)


class _Forks:
    """Whether forked processes leave this process group; Python has no way to end a hook on forks."""

    apart = False

    @classmethod
    def leave(cls) -> None:
        if cls.apart:
            os.setpgid(0, 0)


os.register_at_fork(after_in_child=_Forks.leave)


@contextlib.contextmanager
def group_of_their_own() -> Iterator[None]:
    """Processes forked by Python in here leave this process group, those of Ray's start too.

    A terminal, `timeout` and batch systems send signals to a whole group. SIGTERM would end Ray's store while this
    process needs it: to begin (Ray waits a minute for it, then ends the interpreter), or to save.
    """
    _Forks.apart = True
    try:
        yield
    finally:
        _Forks.apart = False


@contextlib.contextmanager
def raised_by_signals() -> Iterator[None]:
    """Raise what a signal's handler raised in a call of Ray's.

    Ray's compiled functions wrap it in a SystemError ("returned a result with an exception set").
    """
    try:
        yield
    except SystemError as error:
        cause = error.__cause__ or error.__context__
        if cause is None or isinstance(cause, Exception):
            raise
        raise cause from None
