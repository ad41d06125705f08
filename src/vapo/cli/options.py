"""Options and output shared by the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vapo.json_text import json_text

if TYPE_CHECKING:
    from vapo.trainer.observer import Observer

TRAIN_OPTIONS = {
    "--preset": "algorithm.preset",
    "--without": "algorithm.without",
    "--seed": "seed",
    "--steps": "trainer.steps",
}
"""Options of `vapo train` that are settings under a shorter name."""

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, like --set trainer.actor_lr=1e-4; repeatable."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ObserverOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:CLASS",
        help="Also tell this class of every step, evaluation and alarm: a subclass of vapo.Observer, made without "
        "arguments.",
    ),
]


def view_for(as_json: bool) -> Any:
    """The view of a long job: silent if the output is JSON."""
    from vapo.reports.live import LiveView, SilentView

    return SilentView() if as_json else LiveView()


def with_own(view: Observer, observer: str | None) -> Observer:
    """The view, and the observer that the user named, if any."""
    from vapo.session.own_observer import own_observer
    from vapo.trainer.observer import Observers

    return view if observer is None else Observers(view, [own_observer(observer)])


def print_names(entries: dict[str, str], as_json: bool, heading: str, use: str) -> None:
    """Print names with descriptions, and the command that uses them."""
    if as_json:
        print(json_text(entries))
        return
    table = Table(heading, "what it is", box=None, padding=(0, 2, 0, 0))
    for name, about in entries.items():
        table.add_row(name, about)
    console = Console()
    console.print(table)
    console.print(f"\nUse one with: {use}")
