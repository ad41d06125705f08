"""How work on a run ends: in order on a signal, with words and an exit code on an error."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from vapo.errors import ConfigError, StoppedError, VapoError

if TYPE_CHECKING:
    from vapo.trainer.run import Run

INTERRUPTED = 130


class InterruptedRunError(StoppedError):
    """Ctrl-C: the run saved and stopped."""

    exit_code = INTERRUPTED


def exit_code_of(work: Callable[[], object], *, debug: bool = False) -> int:
    """Do the work; errors become one line on stderr and their exit code. SIGTERM ends it like a stop in order."""

    def stop(*_: Any) -> None:
        raise StoppedError("Stopped by SIGTERM.")

    signal.signal(signal.SIGTERM, stop)
    try:
        try:
            work()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # how it ends is decided; a late one must not spoil that
    except VapoError as error:
        if debug:
            raise
        _say_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        from vapo.trainer.memory import out_of_memory  # torch waits until something needs it

        if debug or not out_of_memory(error):
            raise
        reason = str(error).split("\n")[0] or "no words"
        _say(
            f"[bold red]error:[/bold red] Out of memory ({escape(reason)}). Sampling takes less with a lower "
            "rollout.engine.slots or rollout.max_response_tokens, training with adapters (model.policy_lora, "
            "model.critic_lora) or model.dtype=bfloat16. A run goes on from its last "
            "checkpoint with: vapo resume RUN --set ..."
        )
        return ConfigError.exit_code
    except KeyboardInterrupt:
        _say("Interrupted. A run goes on from its last checkpoint with: vapo resume RUN")
        return INTERRUPTED
    return 0


def end_in_one_line(error: VapoError) -> None:
    """Have the interpreter, if this very error ends it, say one line and exit with the error's code, as the command
    line does. Other errors are shown as before."""
    before = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is not error:
            before(kind, value, traceback)
            return
        _say_error(error)
        raise SystemExit(error.exit_code)

    sys.excepthook = hook


def _say_error(error: VapoError) -> None:
    label = "" if isinstance(error, StoppedError) else "[bold red]error:[/bold red] "
    _say(f"{label}{escape(str(error))}")


def _say(text: str) -> None:
    # stderr may be a file on the very disk that is full, or a closed pipe, over which rich exits; the exit code must
    # come through all the same
    with contextlib.suppress(OSError, SystemExit):
        Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def carry_out(prepare: Callable[[], Run], finish: Callable[[Run], object]) -> None:
    """Prepare a run and take it to the end; SIGTERM, SIGHUP and the first Ctrl-C save and stop, the second quits."""
    interrupted, asked, run = False, False, None
    early = StoppedError(
        "Stopped before the run went on; nothing is lost. Start it again, or resume it if it has a folder."
    )

    def stop(number: int, _: Any) -> None:
        nonlocal interrupted, asked
        interrupted, asked = interrupted or number == signal.SIGINT, True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if run is None:
            raise early
        run.stop_requested = True
        with contextlib.suppress(RuntimeError):  # a signal in the middle of a print may not print
            run.observer.note("saving, then stopping; Ctrl-C again quits at once")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else nohup asked to outlive the terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        run = prepare()
        run.stop_requested = asked  # a library may have swallowed what the handler raised
        finish(run)
    except StoppedError as error:
        raise InterruptedRunError(str(error)) if interrupted else error from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main_exit(app: Callable[[], object]) -> None:
    """The process's end: `app` under `exit_code_of`, with a traceback where `--debug` asks for one."""
    if code := exit_code_of(app, debug="--debug" in sys.argv):
        sys.exit(code)
