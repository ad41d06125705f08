"""`vapo doctor`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vapo.cli.options import DebugOption, JsonOption
from vapo.errors import counted
from vapo.json_text import json_text

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, of a run that has ended or still runs.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what is wrong with a run, in words: the evidence in its files, and what to try.

    Of a run of VAPOTrainer, it names arguments of VAPOConfig.
    """
    from vapo.metrics import Phase
    from vapo.reports.diagnosis import diagnose
    from vapo.reports.findings import FEWEST_STEPS, is_of_trainer
    from vapo.reports.runfiles import read_run

    files = read_run(run)
    findings = diagnose(files)
    if is_of_trainer(files):
        from vapo.api.trainer_config import in_arguments  # imports torch

        findings = [
            replace(finding, evidence=in_arguments(finding.evidence), advice=in_arguments(finding.advice))
            for finding in findings
        ]
    if as_json:
        print(json_text({"run": str(run), "findings": [finding.as_dict() for finding in findings]}))
        return
    console = Console(soft_wrap=True)
    for finding in findings:
        colour = COLOURS[finding.weight]
        console.print(f"[{colour}]{finding.weight}[/{colour}]  [bold]{escape(finding.name)}[/bold]: "
                      f"{escape(finding.evidence)}", highlight=False)  # fmt: skip
        console.print(f"         try: {escape(finding.advice)}", highlight=False)
    steps = len(files.phase(Phase.TRAIN))
    if not findings:
        nothing = f"Nothing is wrong with {run} that its {counted(steps, 'step')} would show."
        console.print(nothing, highlight=False, markup=False)
    elif steps < FEWEST_STEPS:
        console.print(
            f"How training goes is judged from {FEWEST_STEPS} joint steps on; there are {steps}.", highlight=False
        )
