"""What workers of a run on Ray bring and cost on one machine: 1 against 2 for rollout and for verification.

    python benchmarks/scale_workers.py [--steps 4] [--out FILE.json]

Each row is a `vapo train` of its own, on random weights, with one thread in each process and a verifier that computes
for 10 ms. Prints medians over the steps but the first. About six minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plan_memory import make_model

PROMPT, RESPONSE, SAMPLES = 16, 96, 128
VERIFY_S = 0.01
ROWS: dict[str, dict[str, Any]] = {
    "local": {"backend": "local"},
    "Ray, 1 rank, 1 engine, 1 verifier": {},
    "Ray, 1 rank, 2 engines, 1 verifier": {"rollout_workers": 2},
    "Ray, 1 rank, 1 engine, 2 verifiers": {"verifier_workers": 2},
    "Ray, 2 ranks, 2 engines, 2 verifiers": {"training_ranks": 2, "rollout_workers": 2, "verifier_workers": 2},
}
SHOWN = ("time/rollout", "time/verify", "time/score", "time/update", "time/hand_over", "step_time")


class SlowLengths:
    """Right where the response's first word has an even number; judging computes for a while."""

    name, max_response_tokens = "slow-lengths", RESPONSE

    def __init__(self) -> None:
        from vapo.types import Prompt

        text = " ".join(f"w{i}" for i in range(PROMPT - 1))
        self.train = [Prompt(f"train-{i}", f"{text} w{i}", i) for i in range(64)]
        self.heldout = [Prompt(f"heldout-{i}", f"{text} w{i}", i) for i in range(8)]

    def verify(self, prompt: Any, response: str) -> Any:
        from vapo.types import Verdict

        end = time.process_time() + VERIFY_S
        while time.process_time() < end:
            pass
        return Verdict("right" if response[1:2] in "02468" else "wrong")


def settings(base: Path, steps: int, scale: dict[str, Any]) -> dict[str, Any]:
    return {
        "algorithm": {"preset": "vapo", "alpha": 2.0},
        "model": {"policy": str(base), "dtype": "float32"},
        "task": {"name": f"{Path(__file__).resolve()}:SlowLengths"},
        "rollout": {"max_response_tokens": RESPONSE, "engine": {"kind": "torch", "slots": 64}},
        "trainer": {
            "steps": steps, "samples_per_step": SAMPLES, "group_size": 4, "minibatch_size": 64, "actor_lr": 1e-6,
            "critic_lr": 1e-5, "warmup_steps": 0, "pretraining_steps": 0, "save_rollouts_every": 0,
        },
        "evaluation": {"every": 0, "prompts": 2, "samples_per_prompt": 1},
        "checkpoint": {"every": 0, "keep": 1},
        "guards": {"watchdog": False},
        "scale": {"backend": "ray", "threads": 1, **scale},
    }  # fmt: skip


def measure(folder: Path, name: str, steps: int, scale: dict[str, Any]) -> dict[str, Any]:
    """The medians of a run's times, and how long it took before its first step."""
    import yaml

    run = folder / f"run-{len(list(folder.glob('run-*')))}"
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings(folder / "base", steps, scale)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-m", "vapo", "train", str(file), "--run-dir", str(run)]
    start = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    took = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps_s = sum(line["step_time"] for line in lines)
    medians = {key: statistics.median(line[key] for line in lines[1:]) for key in SHOWN}
    return {"row": name, **medians, "start_and_end_s": took - steps_s, "reward": [line["reward"] for line in lines]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "base", "3M", 4096)
        print("| run | " + " | ".join(key.removeprefix("time/") for key in SHOWN) + " | start and end |", flush=True)
        print("|---|" + "--:|" * (len(SHOWN) + 1))
        for name, scale in ROWS.items():
            row = measure(folder, name, chosen.steps, scale)
            rows.append(row)
            numbers = [f"{row[key]:.2f}" for key in SHOWN] + [f"{row['start_and_end_s']:.0f}"]
            print(f"| {name} | " + " | ".join(numbers) + " |", flush=True)
    local, one, engines, verifiers, _ = rows
    ratio = {
        "rollout, 1 engine / 2": one["time/rollout"] / engines["time/rollout"],
        "verification, 1 worker / 2": one["time/verify"] / verifiers["time/verify"],
        "step on Ray / local": one["step_time"] / local["step_time"],
    }
    same = all(row["reward"] == local["reward"] for row in rows[:4])
    print("\n" + "\n".join(f"{name}: {value:.2f}" for name, value in ratio.items()))
    print(f"Same rewards as local, where one rank learns: {'yes' if same else 'NO'}")
    if chosen.out:
        chosen.out.write_text(json.dumps({"rows": rows, "ratios": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
