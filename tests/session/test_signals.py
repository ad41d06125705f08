import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, StoppedError), (signal.SIGINT, InterruptedRunError)])
def test_a_stop_while_a_run_is_prepared_is_no_failure_of_its_model(number, kind):
    with pytest.raises(StoppedError, match="nothing is lost") as stop:
        carry_out(lambda: signalled(number), lambda run, take_over: None)
    assert type(stop.value) is kind


def test_a_command_ended_by_sigterm_says_so(capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code_of(lambda: signalled(signal.SIGTERM)) == StoppedError.exit_code
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
