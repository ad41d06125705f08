"""The command line: parse, build, call. Commands import heavy packages only when they need them."""

from __future__ import annotations

from typing import Annotated

import typer

from vapo.cli.breaking import chaos
from vapo.cli.comparing import ablate, compare
from vapo.cli.evaluating import evaluate
from vapo.cli.judging import critic
from vapo.cli.listing import recipes, settings, tasks
from vapo.cli.training import make_base, report, resume, train
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


for command in (train, resume, evaluate, critic, report, compare, ablate, recipes, settings, tasks, make_base, chaos):
    app.command("eval" if command is evaluate else None)(command)


def main() -> None:
    """Run the command line; an error prints one line and sets the exit code."""
    main_exit(app)
