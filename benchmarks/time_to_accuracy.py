"""Seconds of training until the maze's responses are right so often, GRPO of ours and of TRL, with the same reward:

    python benchmarks/time_to_accuracy.py TRL_PYTHON OUT.json [--wanted .6] [--seeds 0 1] [--seconds 420] [--core 1]

Both sides start from the shipped base of 0.1M parameters, sample 128 responses in groups of 8 with temperature 1, make
4 updates of 32, and take the same rate, warm-up, clipping and gradient norm, no KL term, one thread on one core. The
score is the share of right responses over three rollouts in a row; the clock starts with training, after loading, and
is read when a rollout has been judged.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from vapo.bases.shipped import builtin_model

LAST = 3
SIZES = {"samples": 128, "group": 8, "minibatch": 32, "lr": 6e-4, "warmup": 3, "weight_decay": 0.0}
HERE = Path(__file__).parent


def pinned(command: list[str], core: int, **environment: str) -> str:
    """The output of a command on one core with one thread."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "src"), **environment}
    words = ["taskset", "-c", str(core), *command]
    done = subprocess.run(words, capture_output=True, text=True, env=variables)  # noqa: S603 - our own programs
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def ours(seed: int, rollouts: int, core: int) -> list[tuple[float, float]]:
    """(seconds, reward) of each rollout."""
    settings = {
        "trainer.samples_per_step": SIZES["samples"], "trainer.group_size": SIZES["group"],
        "trainer.minibatch_size": SIZES["minibatch"], "trainer.actor_lr": SIZES["lr"],
        "trainer.warmup_steps": SIZES["warmup"], "trainer.weight_decay": SIZES["weight_decay"],
        "algorithm.kl.coef": 0, "trainer.steps": rollouts, "scale.threads": 1, "checkpoint.every": 0,
        "evaluation.every": 0, "evaluation.prompts": 1, "evaluation.samples_per_prompt": 1,
    }  # fmt: skip
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "vapo", "train", "maze", "--preset", "grpo", "--seed", str(seed)]
        pinned([*command, "--run-dir", str(run), *words], core)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    passed, points = 0.0, []
    for line in lines:
        points.append((passed + line["time/rollout"] + line["time/verify"], line["reward"]))
        passed += line["step_time"]
    return points


def trl(python: str, job: dict[str, Any], core: int) -> list[tuple[float, float]]:
    """(seconds, reward) of each rollout."""
    printed = pinned([python, str(HERE / "peers" / "trl_maze.py"), json.dumps(job)], core)
    found = [json.loads(line) for line in printed.splitlines() if line.startswith('{"seconds"')]
    return [(point["seconds"], point["reward"]) for point in found]


def reached(points: list[tuple[float, float]], wanted: float) -> float | None:
    """When the score was first reached; None if it never was."""
    for i in range(LAST, len(points) + 1):
        if statistics.fmean(reward for _, reward in points[i - LAST : i]) >= wanted:
            return points[i - 1][0]
    return None


def main() -> None:
    """Run both sides of each seed in turn, and write the points and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trl_python")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wanted", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=420.0, help="TRL stops after so many seconds of a seed")
    parser.add_argument("--core", type=int, default=1)
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        job = {**SIZES, "model": str(builtin_model("maze")), "wanted": given.wanted, "last": LAST, "seed": seed,
               "rollouts": given.rollouts, "seconds": given.seconds}  # fmt: skip
        both = {"ours": ours(seed, given.rollouts, given.core), "trl": trl(given.trl_python, job, given.core)}
        times = {side: reached(points, given.wanted) for side, points in both.items()}
        rows.append({"seed": seed, "seconds": times, "points": both})
        print(seed, times, {side: (len(points), points[-1]) for side, points in both.items()}, flush=True)
        given.out.write_text(
            json.dumps({"date": str(date.today()), "wanted": given.wanted, **SIZES, "rows": rows}) + "\n"
        )


if __name__ == "__main__":
    main()
