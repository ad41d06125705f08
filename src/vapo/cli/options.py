"""Options and output shared by the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vapo.json_text import json_text

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, like --set trainer.actor_lr=1e-4; repeatable."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def view_for(as_json: bool) -> Any:
    """The view of a long job: silent if the output is JSON."""
    from vapo.reports.live import LiveView, SilentView

    return SilentView() if as_json else LiveView()


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
