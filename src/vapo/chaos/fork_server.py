"""The process that forks runs: JSON in, one trial a line; JSON out, one outcome a line.

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
    """Prepare, say so, then do trials until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(1)  # a process with threads cannot be forked safely
    mounted = None
    if mount:
        mounted = root / "disk"
        mounted.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "disk", str(mounted)]
        subprocess.run(command, check=True)  # noqa: S603 - a folder of ours, in a name space of our own
    _warm_up(root)
    context = TrialContext(root, mounted)
    answers.write(json_text({"ready": context.seconds}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        outcome = TRIALS[asked.pop("trial")](context, **asked)
        answers.write(json_text(outcome.to_json()) + "\n")


def _warm_up(root: Path) -> None:
    """Build a run once, so that what is imported and compiled on the way is there in every child."""
    run = runs.begin(small_config(), root / "warm", SilentView())
    run.engine.close()
    run.folder.close()
    close_task(run.task)


if __name__ == "__main__":
    main(Path(sys.argv[1]), len(sys.argv) > 2)
