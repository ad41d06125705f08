"""`vapo plan` and `vapo check`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vapo.cli.options import DebugOption, JsonOption, SetOption
from vapo.errors import ConfigError, VapoError, counted
from vapo.json_text import json_text

if TYPE_CHECKING:
    from vapo.session.checking.finding import Finding
    from vapo.session.config import Config
    from vapo.session.planning.planned import RunPlan
    from vapo.session.planning.rank_memory import DeviceMemory

SourceArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RECIPE|FILE.yaml]", help="A recipe (see `vapo recipes`) or your own file. Default: maze."),
]
PresetOption = Annotated[str | None, typer.Option(help="Another method than the recipe's, as of `vapo train`.")]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Ask no hub: take models' configurations from folders and from vapo itself."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        metavar="MACHINESxGPUSxDEVICE",
        help="Like 16x8xH100, 8xH200 or 4090; devices: H100, H200, A100-80, L40S, 4090, cpu. Default: this machine.",
    ),
]


def plan(
    source: SourceArgument = None,
    cluster: ClusterOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the device's rate that scoring and updates reach.")
    ] = 0.35,
    bandwidth: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the memory's bandwidth that sampling reaches.")
    ] = 0.6,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest prompt. Default: measured for built-in tasks, else 1,024."),
    ] = None,
    mean_tokens: Annotated[
        float | None,
        typer.Option(min=1, help="Tokens of the mean response, for times. Default: half of the limit."),
    ] = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What a run needs before it costs anything: memory by part, seconds by phase, and what makes it fit."""
    config = settings_of(source, preset, set_)
    from vapo.session.planning.hardware import read_cluster, this_machine

    machines = read_cluster(cluster) if cluster else None  # a wrong name is reported before torch loads
    from vapo.session.planning.phase_times import Shares
    from vapo.session.planning.planned import plan_run

    found = plan_run(
        config,
        machines or this_machine(),
        offline=offline,
        shares=Shares(mfu, bandwidth),
        prompt_tokens=prompt_tokens,
        mean_tokens=mean_tokens,
    )
    if as_json:
        print(json_text(found.as_dict(), indent=1))
    else:
        print_plan(found)


def settings_of(source: str | None, preset: str | None, set_: list[str] | None) -> Config:
    """The configuration that `vapo train` would take."""
    from vapo.session.config import resolve
    from vapo.session.layers import option_layer, set_layer, source_layers

    layers = source_layers(source)
    if preset is not None:
        layers.append(option_layer("--preset", "algorithm.preset", preset))
    return resolve([*layers, *(set_layer(text) for text in set_ or [])])


def print_plan(found: RunPlan) -> None:
    """Print a plan as tables."""
    from vapo.session.planning.plan_words import advice_words, head_words, verdict_words

    console = Console()
    for line in head_words(found):
        console.print(escape(line), soft_wrap=True)
    console.print(_memory_table(found.training, "a training device"))
    if found.sampling is not None:
        console.print(_memory_table(found.sampling, "a device that samples"))
    console.print(_time_table(found))
    style = "green" if found.fits else "red"
    console.print(f"[{style}]{escape(verdict_words(found))}[/{style}]", soft_wrap=True)
    for line in advice_words(found):
        console.print(escape(line), soft_wrap=True)
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True)


def _memory_table(memory: DeviceMemory, title: str) -> Table:
    from vapo.session.planning.plan_words import memory_rows

    table = Table(title=f"memory of {title}, GB", box=None, padding=(0, 2, 0, 0), title_justify="left")
    rows = memory_rows(memory)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows[1:]:
        table.add_row(*row, style="bold" if row[0] == "all" else None)
    return table


def _time_table(found: RunPlan) -> Table:
    from vapo.session.planning.plan_words import time_rows

    table = Table(title="time of a step", box=None, padding=(0, 2, 0, 0), title_justify="left")
    rows: Any = time_rows(found)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i == 1 else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def check(
    source: SourceArgument = None,
    cluster: ClusterOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    run_dir: Annotated[Path, typer.Option(help="Where the run's folder will be: its disk is looked at.")] = Path(
        "runs"
    ),
    steps: Annotated[
        bool, typer.Option("--steps/--no-steps", help="Take two real steps, where this machine can.")
    ] = True,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Everything that can be wrong before a run costs anything: settings, software, model, memory, machines, data,
    prompts, verifier, disk, and two real steps with a save and a resume. Exit code 2 if anything is."""
    from vapo.session.checking.finding import Outcome, of_error

    found: list[Finding] = []
    console = Console()

    def add(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            _print_finding(console, finding)

    try:
        config = settings_of(source, preset, set_)
        from vapo.session.planning.hardware import read_cluster

        machines = read_cluster(cluster) if cluster else None
        from vapo.session.checking.inspection import Inspection

        for finding in Inspection(config, offline, machines, run_dir, steps):
            add(finding)
    except VapoError as problem:
        if debug:
            raise
        add(of_error("settings", problem))
    errors = sum(finding.outcome is Outcome.ERROR for finding in found)
    if as_json:
        print(json_text([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        warnings = sum(finding.outcome is Outcome.WARNING for finding in found)
        left_out = [finding.check for finding in found if finding.outcome is Outcome.SKIPPED]
        not_checked = f"; not checked: {', '.join(left_out)}" if left_out else ""
        console.print(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}{not_checked}", soft_wrap=True)
    if errors:
        raise typer.Exit(ConfigError.exit_code)


COLOURS = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "dim"}


def _print_finding(console: Console, finding: Finding) -> None:
    style = COLOURS[finding.outcome.value]
    # behind a list of several lines the fix would read as a part of the last one
    gap = "\n  " if "\n" in finding.found else " "
    fix = f"{gap}→ {finding.fix}" if finding.fix else ""
    console.print(
        f"[{style}]{finding.outcome.value:8}[/{style}] [bold]{escape(finding.check)}[/bold]: "
        f"{escape(finding.found)}{escape(fix)}",
        soft_wrap=True,
    )
