"""The command line: parse, build, call. Commands import heavy packages only when they need them."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from vapo.cli.branching import fork, pretrain_critic
from vapo.cli.breaking import chaos
from vapo.cli.comparing import ablate, compare
from vapo.cli.completing import complete, completion
from vapo.cli.diagnosing import doctor
from vapo.cli.evaluating import evaluate
from vapo.cli.exporting import export
from vapo.cli.judging import critic
from vapo.cli.listing import recipes, settings, tasks
from vapo.cli.meant_options import meant
from vapo.cli.planning import check, plan
from vapo.cli.training import make_base, report, resume, train
from vapo.cli.viewing import view
from vapo.errors import ConfigError
from vapo.session.signals import INTERRUPTED, main_exit


def _show_version(wanted: bool) -> None:
    if wanted:
        import vapo

        print(f"vapo {vapo.__version__}")
        raise typer.Exit


app = typer.Typer(
    help="Reinforcement learning with a critic for reasoning language models: VAPO, PPO, VC-PPO, GRPO, DAPO.\n\n"
    "Start with [bold]vapo train[/bold]: it learns on a laptop in minutes, without a download.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of `vapo` itself."""


for command in (train, plan, check, resume, fork, pretrain_critic, export, evaluate, critic, report, view, doctor,
                compare, ablate, recipes, settings, tasks, make_base, chaos, completion):  # fmt: skip
    app.command("eval" if command is evaluate else None)(command)
app.command(hidden=True)(complete)


def main() -> None:
    """Run the command line; an error prints one line and sets the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # Latin-1 has no λ; stderr escapes what it cannot encode
        sys.stdout.reconfigure(errors="replace")
    main_exit(_run_app)


USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""click's error for a wrong option or argument; newer versions of typer contain a copy of click."""

PLAIN_WORDS = {
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    "Input should be a valid integer": "it takes a whole number",
    "Input should be a valid number": "it takes a number",
    "Input should be greater than or equal to": "it must be at least",
    "Input should be less than or equal to": "it must be at most",
}
"""typer's words for a value of another type or out of range, and ours."""


def _run_app() -> None:
    """Run the command that was typed. A wrong option or argument is a ConfigError, so it prints one line as well."""
    if len(sys.argv) == 1:
        app(["--help"], prog_name="vapo", standalone_mode=False)
        raise SystemExit(ConfigError.exit_code)
    try:
        code = app(prog_name="vapo", standalone_mode=False)
    except USAGE_ERROR as error:
        problem: Any = error
        message = " ".join(problem.format_message().split()).rstrip(".")
        for theirs, ours in PLAIN_WORDS.items():
            message = message.replace(theirs, ours)
        if known := meant(problem, sys.argv[1:]):
            message = known
        end = "" if message.endswith(("?", ".")) else "."
        name = problem.ctx.command_path if problem.ctx is not None else "vapo"
        raise ConfigError(f"{message}{end} All options: {name} --help") from error
    if code == INTERRUPTED:  # typer's code for Ctrl-C, which it keeps to itself
        raise KeyboardInterrupt
    if isinstance(code, int) and code:
        raise SystemExit(code)
