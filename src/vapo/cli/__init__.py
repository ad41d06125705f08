"""The command line: parse, build, call. Commands import heavy packages only when they need them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vapo.cli.breaking import chaos
from vapo.cli.comparing import ablate, compare
from vapo.cli.evaluating import evaluate
from vapo.cli.listing import recipes, settings, tasks
from vapo.cli.training import make_base, report, resume, train
from vapo.errors import ConfigError
from vapo.session.signals import main_exit


def _show_version(wanted: bool) -> None:
    if wanted:
        import vapo

        print(f"vapo {vapo.__version__}")
        raise typer.Exit


app = typer.Typer(
    help="Reinforcement learning with a critic for reasoning language models: VAPO, PPO, VC-PPO, GRPO, DAPO.\n\n"
    "Start with [bold]vapo train[/bold]: it learns on a laptop in minutes, without a download.",
    no_args_is_help=True,
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


for command in (train, resume, evaluate, report, compare, ablate, recipes, settings, tasks, make_base, chaos):
    app.command("eval" if command is evaluate else None)(command)


def main() -> None:
    """Run the command line; an error prints one line and sets the exit code."""
    main_exit(_run_app)


def _run_app() -> None:
    """Run the command that was typed. A wrong option or argument is a ConfigError, so it prints one line as well."""
    try:
        code = app(prog_name="vapo", standalone_mode=False)
    except Exception as error:
        # typer's usage errors: by what they can do, since typer has its own copy of click's classes from 0.21 on
        if not hasattr(error, "format_message") or not hasattr(error, "ctx"):
            raise
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            raise SystemExit(ConfigError.exit_code) from None
        name = context.command_path if context is not None else "vapo"
        message = " ".join(str(error.format_message()).split()).replace("Input should be", "must be").rstrip(".")  # type: ignore[attr-defined]
        end = "" if message.endswith("?") else "."
        raise ConfigError(f"{message}{end} All options: {name} --help") from error
    if isinstance(code, int) and code:
        raise SystemExit(code)
