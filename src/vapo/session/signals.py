"""Signals and exit codes: a signal saves and stops a run; an error prints one line and sets the exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from threading import current_thread, main_thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from vapo.errors import ConfigError, StoppedError, VapoError, command
from vapo.reports.formatting import folded

if TYPE_CHECKING:
    from vapo.trainer.run import Run

INTERRUPTED = 130
RUNS = ("train", "resume", "fork", "pretrain-critic")
"""The commands that make a run."""


class TerminatedError(BaseException):
    """A signal asked to stop before there was a run to save.

    Like KeyboardInterrupt it is no Exception: neither a library nor code of ours that catches what a user's model or
    verifier may raise takes it for a failure of theirs. A library that does not unwind from it may still turn it into
    an error of its own (torch's modes do), so any error that comes after the signal counts as the stop.
    """


class InterruptedRunError(StoppedError):
    """Ctrl-C: the run saved and stopped."""

    exit_code = INTERRUPTED


def exit_code_of(work: Callable[[], object], *, debug: bool = False) -> int:
    """Do the work and return the exit code. Errors print one line on stderr. SIGTERM raises TerminatedError."""

    terminated = False

    def stop(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        raise TerminatedError

    signal.signal(signal.SIGTERM, stop)
    try:
        try:
            work()
        except Exception as error:
            if terminated and not isinstance(error, StoppedError):
                raise TerminatedError from error
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the exit code is decided; a later signal must not change it
    except VapoError as error:
        if debug:
            raise
        _print_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        from vapo.trainer.memory import out_of_memory  # imports torch, so only when needed

        if debug or not out_of_memory(error):
            raise
        reason = str(error).split("\n")[0] or "no message"
        _print(
            f"[bold red]error:[/bold red] Out of memory ({escape(reason)}). Sampling takes less with a lower "
            "rollout.engine.slots or rollout.max_response_tokens, training with adapters (model.policy_lora, "
            f"model.critic_lora) or model.dtype=bfloat16. {escape(_way_on(sys.argv[1:], settings=True))}"
        )
        return ConfigError.exit_code
    except TerminatedError:
        _print("Stopped by SIGTERM.")
        return StoppedError.exit_code
    except KeyboardInterrupt:
        _print(f"Interrupted. {escape(_way_on(sys.argv[1:]))}")
        return INTERRUPTED
    return 0


def _way_on(words: Sequence[str], *, settings: bool = False) -> str:
    """How to go on after this command: a run resumes, and any other command is given again; with other `settings`."""
    name = words[0] if words else ""
    more = " --set ..." if settings and name in (*RUNS, "eval") else ""
    if name in RUNS:
        return f"A run goes on from its last checkpoint with: {command('resume', 'RUN')}{more}"
    return f"Go on with: {command(*words)}{more}"


def end_in_one_line(error: VapoError) -> None:
    """If this error ends the interpreter, print it as one line and exit with its code, as the command line does.

    Other errors are shown as before.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is not error:
            before(kind, value, traceback)
            return
        _print_error(error)
        raise SystemExit(error.exit_code)

    sys.excepthook = hook


def _print_error(error: VapoError) -> None:
    label = "" if isinstance(error, StoppedError) else "[bold red]error:[/bold red] "
    _print(f"{label}{escape(str(error))}")


def _print(text: str) -> None:
    # stderr may be a file on the full disk, or a closed pipe, for which rich exits; keep the exit code
    with contextlib.suppress(OSError, SystemExit):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(folded(text, console.width) if console.is_terminal else text)


def carry_out(prepare: Callable[[], Run], finish: Callable[[Run, Callable[[Run], None]], object]) -> None:
    """Prepare a run and finish it. SIGTERM, SIGHUP and the first Ctrl-C save and stop; the second Ctrl-C quits.

    `finish` gets the run, and a function to call with a run that takes its place. In another thread than the main one
    signals go where they went before: only the main thread may set their handlers.
    """
    if current_thread() is not main_thread():
        finish(prepare(), lambda _: None)
        return
    interrupted, stopping, run = False, False, None

    def stop(number: int, _: Any) -> None:
        nonlocal interrupted, stopping
        interrupted, stopping = interrupted or number == signal.SIGINT, True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if run is None:
            raise TerminatedError
        run.stop_requested = True
        with contextlib.suppress(RuntimeError):  # a signal handler cannot print in the middle of a print
            run.observer.note("saving, then stopping; Ctrl-C again quits at once")

    def take_over(new: Run) -> None:
        nonlocal run
        run = new
        run.stop_requested = stopping  # a library may have caught what the handler raised

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else started with nohup, to outlive the terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        made = prepare()
        take_over(made)
        finish(made, take_over)
    except StoppedError as error:
        raise InterruptedRunError(str(error)) if interrupted else error from None
    except (TerminatedError, Exception):
        if run is not None or not stopping:
            raise
        kind = InterruptedRunError if interrupted else StoppedError
        raise kind(
            "Stopped before the run went on; nothing is lost. Start it again, or resume it if it has a folder."
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main_exit(app: Callable[[], object]) -> None:
    """Run `app` and exit with its code; `--debug` shows the traceback of an error."""
    if code := exit_code_of(app, debug="--debug" in sys.argv):
        sys.exit(code)
