"""The process that forks runs. It reads one trial per line as JSON and writes one outcome per line as JSON.

python -m vapo.chaos.fork_server FOLDER [MOUNT]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vapo.chaos.small_run import small_config
from vapo.chaos.trials import TRIALS, TrialContext
from vapo.json_text import json_text
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.inputs import close_task

DISK_MB = 64


def main(root: Path, mount: bool) -> None:
    """Prepare, report readiness, then run trials until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to stderr, so that stdout has only answers
    torch.set_num_threads(1)  # a process with threads cannot be forked safely
    mounted = None
    if mount:
        mounted = root / "disk"
        mounted.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "disk", str(mounted)]
        subprocess.run(command, check=True)  # noqa: S603 - our own folder, in a private namespace
    _warm_up(root)
    context = TrialContext(root, mounted)
    answers.write(json_text({"ready": context.seconds}) + "\n")
    for line in sys.stdin:
        trial = json.loads(line)
        outcome = TRIALS[trial.pop("trial")](context, **trial)
        answers.write(json_text(outcome.to_json()) + "\n")


def _warm_up(root: Path) -> None:
    """Build a run once, so that every child inherits its imports and compiled code."""
    run = runs.begin(small_config(), root / "warm", SilentView())
    run.engine.close()
    run.folder.close()
    close_task(run.task)


if __name__ == "__main__":
    main(Path(sys.argv[1]), len(sys.argv) > 2)
