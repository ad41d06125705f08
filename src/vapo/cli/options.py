"""What the commands share: the common options, views."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, like --set trainer.actor_lr=1e-4; repeatable."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


def view_for(as_json: bool) -> Any:
    """A view of a long job: silent where the output is JSON."""
    from vapo.reports.live import LiveView, SilentView

    return SilentView() if as_json else LiveView()


def without_nan(value: Any) -> Any:
    """The same with null for nan, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def print_names(entries: dict[str, str], as_json: bool, heading: str, use: str) -> None:
    """Names and what they are, and the command they are for."""
    if as_json:
        print(json.dumps(entries))
        return
    table = Table(heading, "what it is", box=None, padding=(0, 2, 0, 0))
    for name, about in entries.items():
        table.add_row(name, about)
    console = Console()
    console.print(table)
    console.print(f"\nUse one with: {use}")
