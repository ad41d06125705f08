"""`vapo chaos`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from vapo.cli.options import DebugOption, JsonOption, view_for
from vapo.errors import ConfigError, VapoError, counted
from vapo.json_text import json_text


def chaos(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the trials.")] = False,
    scale: Annotated[
        bool,
        typer.Option(
            "--scale", help="Kill rollout workers, verifier workers, training ranks and drivers of runs on Ray."
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Trials at the same time. Default: one per core.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of moments, files and bits.", min=0)] = 0,
    fault: Annotated[
        str, typer.Option(help="Only the faults whose name contains this text, such as SIGTERM. Default: all.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder for chaos.json and chaos.md. Default: print only.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Break small runs in eleven ways, resume them, and count those whose results differ in any bit.

    Kills at random moments, while a run samples ahead and at every step of a save, also of a longer run; damaged
    checkpoints, full disks, SIGTERM, numbers that are not finite. It took 82 minutes on one of two busy cores; --quick
    is about a tenth. Exit code 1 if anything failed; such runs are kept. With --scale others: 20 kills of each kind (2
    with --quick), up to five of a run; an hour and more.
    """
    import tempfile

    from vapo.session.run_dirs import check_output_folder

    if fault and scale:
        raise ConfigError("--fault chooses among the faults of one process. Leave out --scale or --fault.")
    if jobs is not None and scale:
        raise ConfigError(
            "--scale breaks one run after another, so it has no use for --jobs. Leave out --scale or --jobs."
        )
    if out:
        check_output_folder(out)
        out.mkdir(parents=True, exist_ok=True)

    from vapo.chaos.suite import faults_table, run_suite  # imports torch, so only after what is cheap to check

    work = Path(tempfile.mkdtemp(prefix="vapo-chaos-"))
    with view_for(as_json) as view:
        if scale:
            from vapo.chaos.scale_faults import run_scale_suite

            result = run_scale_suite(work, quick=quick, seed=seed, on_progress=view.progress)
        else:
            jobs = jobs or os.cpu_count() or 1
            result = run_suite(work, quick=quick, jobs=jobs, seed=seed, on_progress=view.progress, fault=fault)
    failed = [detail for row in result["rows"] for detail in row["details"]]
    if out:
        (out / "chaos.json").write_text(json_text(result, indent=1) + "\n")
        (out / "chaos.md").write_text(faults_table(result) + "\n")
    if as_json:
        print(json_text(result))
    else:
        console = Console()
        table = Table("fault", *(Column(name, justify="right") for name in ("trials", "failures", "95 % bound")))
        for row in result["rows"]:
            table.add_row(row["fault"], str(row["trials"]), str(row["failures"]), f"{row['bound']:.1%}")
        console.print(table)
        for detail in failed:
            console.print(detail, style="red", markup=False)
    if failed:
        raise VapoError(
            f"{counted(len(failed), 'trial')} failed; the runs are kept in {work}. The same again: --seed {seed}"
        )
    shutil.rmtree(work, ignore_errors=True)
