import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import vapo
from vapo.cli.judging import naming_the_command
from vapo.errors import EngineError, ModelError, StoppedError
from vapo.session.signals import InterruptedRunError, TerminatedError, carry_out, exit_code_of


def signalled(number: int) -> Any:
    """Send a signal to this process inside code that takes any Exception for a failure of the user's model."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except Exception as error:
        raise ModelError("this model cannot be trained here") from error


def not_unwound(number: int) -> Any:
    """Send a signal to this process inside a library that cannot unwind from what the handler raises."""
    try:
        signalled(number)
    finally:
        raise RuntimeError("trying to pop from empty mode stack")


WORK = pytest.mark.parametrize("work", [signalled, not_unwound])


@WORK
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, StoppedError), (signal.SIGINT, InterruptedRunError)])
def test_a_stop_while_a_run_is_prepared_is_no_failure_of_its_model(work, number, kind):
    with pytest.raises(StoppedError, match="nothing is lost") as stop:
        carry_out(lambda: work(number), lambda run, take_over: None)
    assert type(stop.value) is kind


def test_an_error_without_a_signal_stays_what_it_is():
    def fails() -> Any:
        raise RuntimeError("no signal")

    with pytest.raises(RuntimeError, match="no signal"):
        carry_out(fails, lambda run, take_over: None)


@WORK
def test_a_command_ended_by_sigterm_says_so(work, capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code_of(lambda: work(signal.SIGTERM)) == StoppedError.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "Stopped by SIGTERM.\n"


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (TerminatedError(), StoppedError, "kept in there. Go on with: vapo"),
        (KeyboardInterrupt(), InterruptedRunError, "kept in there. Go on with: vapo"),
        (EngineError("vLLM died; vllm.log has the details"), EngineError, "^vLLM died; vllm.log has the details$"),
    ],
)
def test_a_signal_names_the_command_that_goes_on_and_a_failure_of_the_engine_its_reason(raised, kind, words):
    with pytest.raises(StoppedError, match=words) as stop, naming_the_command(Path("there")):
        raise raised
    assert type(stop.value) is kind


@pytest.mark.parametrize(
    ("words", "way", "settings"),
    [
        (["train", "maze"], "A run goes on from its last checkpoint with: vapo resume RUN", " --set ..."),
        (["eval", "runs/one", "--out", "kept"], "Go on with: vapo eval runs/one --out kept", " --set ..."),
        (["export", "runs/one", "there"], "Go on with: vapo export runs/one there", ""),
    ],
)
def test_ctrl_c_and_no_memory_name_the_command_that_goes_on(words, way, settings, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vapo", *words])
    before = signal.getsignal(signal.SIGTERM)

    def work(error: BaseException) -> None:
        raise error

    try:
        for error, rest in ((KeyboardInterrupt(), ""), (MemoryError(), settings)):
            exit_code_of(lambda error=error: work(error))
            assert capsys.readouterr().err.rstrip().endswith(way + rest)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_comes_through_the_command_line(capsys, monkeypatch):
    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("vapo.session.layers.recipes", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert vapo(monkeypatch, "recipes") == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "Interrupted. Go on with: vapo recipes\n"
