"""`vapo ablate` and `vapo compare`."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vapo.cli.options import DebugOption, JsonOption
from vapo.errors import ConfigError, command, counted
from vapo.json_text import json_text
from vapo.session.signals import InterruptedRunError

if TYPE_CHECKING:
    from vapo.study.study import Study


def ablate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY|FILE.yaml]",
            help="What to compare: a shipped study (maze, walk, chain, ...) or your own file. Default: maze.",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="smoke: one seed, 3 steps, no tuning, some minutes; standard: at most 3 seeds on one base; "
            "full: all of the study, an hour or two. (Times of the maze on two cores.)"
        ),
    ] = "standard",
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="Only this row, like ppo or 'vapo without clip-higher'; repeatable. Default: all of the study.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, 1 or more. Default: the budget's.", min=1)] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            help="Runs at the same time. Default: 1 on a GPU; on CPUs one per core, fewer for models that use several.",
            min=1,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the runs; give it again to continue. Default: ablation/ and the study's recipe and budget."
        ),
    ] = None,
    keep: Annotated[
        list[Path] | None,
        typer.Option(
            "--keep",
            metavar="results.json",
            help="Take over the finished runs and the tuning of this file, where all settings are the same, instead of "
            "running them again, as on another machine; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and which are finished, and stop.")] = (
        False
    ),
    pause: Annotated[
        bool,
        typer.Option("--pause", help="Let the study that runs in this folder save and wait, and return; see --go-on."),
    ] = False,
    go_on: Annotated[bool, typer.Option("--go-on", help="End the pause of the study in this folder.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the paper's ladder and ablation table: methods x seeds x base models, and one page that compares them.

    Every cell is an ordinary run directory. Give the same command again to go on: finished cells are skipped,
    killed ones resume where they stopped. The same command with --pause frees the machine for a while; with --keep a
    study continues on another machine.
    """
    from vapo.study.cells import check_name, check_settings, check_study_paths
    from vapo.study.study import DEFAULT_STUDY, only_methods, read_study, with_seeds, within

    study = with_seeds(only_methods(within(read_study(source), budget), methods or []), seeds)
    name = Path(source or DEFAULT_STUDY).stem + ("-selection" if methods else "")
    folder = out or Path("ablation") / f"{study.recipe}-{budget}"
    if dry_run and (pause or go_on):
        raise ConfigError(
            "--dry-run lists cells, and --pause and --go-on act at once. Leave out --dry-run or the other."
        )
    if pause or go_on:
        _set_pause(folder, pause, go_on, as_json)
        return
    check_name(name)
    check_settings(study)
    check_study_paths(study, folder)
    if dry_run:
        _list_cells(study, folder, keep or [], as_json)
        return
    from vapo.study.study_run import run_study
    from vapo.study.study_view import study_view

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # else started with nohup, to outlive the terminal
            signal.signal(number, signal.default_int_handler)  # so that running cells save on every signal
    with study_view(as_json) as view:
        view.say(f"runs and their logs: {folder}")
        try:
            results = run_study(
                study,
                folder,
                name=name,
                jobs=jobs,
                say=view.say,
                on_progress=view.progress,
                command=_study_command(source or DEFAULT_STUDY, budget, methods or [], seeds, keep or []),
                keep=keep or [],
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"Stopped; the running cells saved. Go on with: {command(*sys.argv[1:])}"
            ) from None
    if as_json:
        print(json_text(results))
        return
    _print_comparison(results)
    if budget == "smoke":
        Console(soft_wrap=True).print("\nThree steps of training: this shows that everything runs, and nothing else.")
    Console(soft_wrap=True).print(f"\nTable, figure, page and numbers: {folder / name}", markup=False)


def compare(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Directories of finished runs.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, table.md, curves.png and comparison.html.")
    ] = Path("comparison"),
    reference: Annotated[
        str | None,
        typer.Option(
            help="The method that the others are compared with. Default: vapo, else that of the first row; "
            "with --from, the file's."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="results.json", help="Make table and page again from this, without the runs."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put runs side by side: scores, paired differences and curves, with 95 % intervals over runs and prompts.

    Runs are compared by method, base and seed; they must share the task and the held-out evaluation.
    """
    from vapo.study.comparison import compare_runs, read_results, with_reference, write_comparison

    if bool(runs) == bool(from_):
        raise ConfigError(
            "vapo compare takes run directories, or --from results.json instead of them: give one of both."
        )
    if from_:
        results = read_results(from_)
        if reference:
            results = with_reference(results, reference, path=from_)
        write_comparison(results, out)
    else:
        results = compare_runs(runs or [], out, reference=reference)
    if as_json:
        print(json_text(results))
        return
    _print_comparison(results)
    Console(soft_wrap=True).print(
        f"Page      {out / 'comparison.html'}\nTable     {out / 'table.md'}\nFigure    {out / 'curves.png'}",
        markup=False,
    )


def _study_command(source: str, budget: str, methods: Sequence[str], seeds: int | None, keep: Sequence[Path]) -> str:
    """The command with all that decides which runs are compared, for the page."""
    chosen = [("--method", method) for method in methods]
    chosen += [("--seeds", str(seeds))] if seeds is not None else []
    chosen += [("--keep", str(path)) for path in keep]
    # not `command`: results are published, and how vapo was started here says nothing there
    return shlex.join(["vapo", "ablate", source, "--budget", budget, *(word for pair in chosen for word in pair)])


def _print_comparison(results: dict[str, Any]) -> None:
    """Print the table, and below it the runs that are not in it."""
    from vapo.study.comparison import runs_left_out, runs_resumed, terminal_table

    console = Console()
    console.print(terminal_table(results, console.width))
    for run in runs_resumed(results):
        console.print(run, style="yellow", markup=False, soft_wrap=True)
    if absent := runs_left_out(results):
        console.print("Left out of the scores:", *absent, sep="\n  ", style="yellow", markup=False, soft_wrap=True)


def _set_pause(folder: Path, pause: bool, go_on: bool, as_json: bool) -> None:
    """Make or remove the file that pauses a study, and print what follows from it."""
    from vapo.study.cells import PAUSE
    from vapo.study.study_run import in_use

    if pause and go_on:
        raise ConfigError("vapo ablate takes --pause or --go-on, not both.")
    if not folder.is_dir():
        raise ConfigError(f"No study in {folder}. Give STUDY, --budget and --out as for the study that runs.")
    file, running = folder / PAUSE, in_use(folder)
    was_paused = file.exists()
    if pause:
        file.touch()
    else:
        file.unlink(missing_ok=True)
    if as_json:
        print(json_text({"folder": str(folder), "paused": pause, "running": running}))
        return
    if pause:
        text = (
            "its running cells save and stop, usually within a minute" if running else "none runs, the next one waits"
        )
        text = f"The study in {folder} is paused: {text}. End the pause with --go-on."
    elif was_paused:
        text = f"The study in {folder} goes on" + ("." if running else " when it is started.")
    else:
        text = f"The study in {folder} was not paused."
    Console(soft_wrap=True).print(text, markup=False)


def _list_cells(study: Study, folder: Path, keep: Sequence[Path], as_json: bool) -> None:
    """Check the study and list its cells."""
    from vapo.study.cell_cards import ended
    from vapo.study.cells import describe
    from vapo.study.study_run import check_study, listed_cells

    check_study(study, folder)
    cells, kept_from, refused = listed_cells(study, folder, keep)
    if as_json:
        rows = [{"folder": str(c.folder), "ended": ended(c), "kept_from": kept_from.get(c.folder)} for c in cells]
        print(json_text([{**cell.card(), **row} for cell, row in zip(cells, rows, strict=True)]))
        return
    table = Table("cell", "kind", "ended", title=escape(f"{counted(len(cells), 'cell')} in {folder}"))
    for cell in cells:
        source = kept_from.get(cell.folder)
        state = "yes" if ended(cell) else f"kept from {source}" if source else ""
        table.add_row(escape(describe(cell)), cell.kind, escape(state))
    console = Console()
    console.print(table)
    for line in refused:
        console.print(f"not kept: {line}", style="yellow", markup=False, soft_wrap=True)
