"""Signals while Ray works in the main thread."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from vapo.scale.ray_signals import group_of_their_own, held_signals, raised_by_signals


class Stop(BaseException):
    """What the handler raises."""


@pytest.fixture
def stopping():
    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, before)


def fake_ray():
    return SimpleNamespace(
        _private=SimpleNamespace(
            utils=SimpleNamespace(set_sigterm_handler=lambda handler: signal.signal(signal.SIGTERM, handler))
        )
    )


def test_a_signal_waits_for_the_end_of_the_call_and_replaces_its_error(stopping):
    ray, reached = fake_ray(), []

    @held_signals(ray)
    def start() -> None:
        ray._private.utils.set_sigterm_handler(signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(True)
        raise ValueError("Ray did not start")

    with pytest.raises(Stop):
        start()
    assert reached
    assert signal.getsignal(signal.SIGTERM) is stopping
    ray._private.utils.set_sigterm_handler(signal.SIG_IGN)  # Ray's own again
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_without_a_signal_an_error_is_what_it_was(stopping):
    with pytest.raises(ValueError, match="no GPU"), held_signals(fake_ray()):
        raise ValueError("no GPU")


@pytest.mark.parametrize(("cause", "raised"), [(Stop(), Stop), (KeyboardInterrupt(), KeyboardInterrupt),
                                               (ValueError(), SystemError), (None, SystemError)])  # fmt: skip
def test_what_a_handler_raised_comes_out_of_a_compiled_call(cause, raised):
    with pytest.raises(raised), raised_by_signals():
        raise SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set") from cause


def test_processes_leave_the_group_only_within():
    def group() -> int:
        process = subprocess.Popen(["sleep", "10"], preexec_fn=lambda: None)  # as Ray starts its own
        try:
            return os.getpgid(process.pid)
        finally:
            process.kill()
            process.wait()

    with group_of_their_own():
        assert group() != os.getpgid(0)
    assert group() == os.getpgid(0)
