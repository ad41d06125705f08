"""Record the runs that the tests of reports read: see README.md in this folder."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import vapo

HERE = Path(__file__).parent
PRESETS = ("vapo", "grpo")
FILES = (
    "config.yaml",
    "method.yaml",
    "sources.json",
    "environment.json",
    "metrics.jsonl",
    "events.jsonl",
    "evaluations.jsonl",
)
SETTINGS = (
    "trainer.steps=3",
    "trainer.samples_per_step=16",
    "trainer.group_size=4",
    "trainer.minibatch_size=8",
    "trainer.pretraining_steps=2",
    "trainer.pretraining_heldout=16",
    "trainer.save_rollouts_every=1",
    "rollout.max_response_tokens=192",
    "evaluation.every=1",
    "evaluation.prompts=8",
    "evaluation.samples_per_prompt=2",
)
SAMPLES = 4
"""Responses kept of each step."""


def command(preset: str, run_dir: Path) -> list[str]:
    """The `vapo` arguments of one recorded run."""
    used = SETTINGS if preset == "vapo" else [s for s in SETTINGS if "pretraining" not in s]
    settings = [word for setting in used for word in ("--set", setting)]
    return ["train", "maze", "--preset", preset, "--run-dir", str(run_dir), *settings]


def record(preset: str, out: Path) -> None:
    """Train, and keep the run's text files; rollouts unpacked."""
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / f"maze-{preset}"
        subprocess.run([sys.executable, "-m", "vapo", *command(preset, run)], check=True)
        shutil.rmtree(out, ignore_errors=True)
        (out / "rollouts").mkdir(parents=True)
        for name in FILES:
            if (run / name).exists():  # a run without a critic and without alarms has no events
                text = (run / name).read_text().replace(str(Path(vapo.__file__).parent), "vapo")  # of any machine
                (out / name).write_text(text)
        for path in (run / "rollouts").glob("*.jsonl.gz"):
            lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
            (out / "rollouts" / path.stem).write_text("".join(lines[:SAMPLES]))


def restore(preset: str, path: Path) -> Path:
    """A recorded run as the run directory it was, at `path`."""
    source = HERE / preset
    (path / "rollouts").mkdir(parents=True)
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, path / name)
    for file in (source / "rollouts").glob("*.jsonl"):
        (path / "rollouts" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    return path


if __name__ == "__main__":
    for preset in PRESETS:
        record(preset, HERE / preset)
