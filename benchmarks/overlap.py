"""What trainer.max_staleness=1 gains and costs: python benchmarks/overlap.py OUT.json [--seconds 480] [--part both]

On a machine with two idle cores. `time`: seconds of a joint step on the maze, with the shipped model of 0.1M parameters
and with one of 3M random weights, in turn over several rounds: one thread that samples and then trains (0), the same
with two threads (0, two threads), and a thread each for sampling and training (1). `score`: five seeds of a short
training of the shipped model with 0 and with 1, and the differences of their final held-out scores by seed. Rounds and
seeds that do not fit into the seconds are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vapo.bases.shipped import builtin_model
from vapo.models.pretrained import load_config
from vapo.models.saving import save_model
from vapo.models.tokens import load_tokenizer

SEEDS, ROUNDS = range(5), 5
ARMS = {
    "0": ("trainer.max_staleness=0", "scale.threads=1"),
    "0, two threads": ("trainer.max_staleness=0", "scale.threads=2"),
    "1": ("trainer.max_staleness=1", "scale.threads=2"),
}
TIMED = {
    "0.1M": ("trainer.steps=6",),
    "3M": ("trainer.steps=4", "trainer.samples_per_step=32", "trainer.minibatch_size=16",
           "trainer.actor_lr=1e-5", "trainer.critic_lr=2e-5"),
}  # fmt: skip
"""Steps and sizes of the timed runs; there is no value pretraining and no evaluation to speak of."""
QUICK = ("trainer.pretraining_steps=0", "evaluation.prompts=1", "evaluation.samples_per_prompt=1")
SCORED = ("trainer.steps=24", "trainer.samples_per_step=96", "trainer.pretraining_steps=4",
          "trainer.pretraining_passes=3", "evaluation.every=0", "evaluation.samples_per_prompt=1",
          "evaluation.final_samples_per_prompt=4")  # fmt: skip
"""The scored runs: the recipe with fewer and smaller steps."""


def train(folder: Path, *settings: str, seed: int = 0) -> list[dict[str, Any]]:
    """The lines of joint training that a run of these settings writes."""
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "vapo", "train", "maze", "--seed", str(seed), "--run-dir", str(folder), *options]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603 - our own program
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


def random_model(folder: Path) -> Path:
    """3M parameters that have learned nothing, with the maze's tokenizer: their responses reach the limit."""
    source = str(builtin_model("maze"))
    tokenizer, small = load_tokenizer(source), load_config(source)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=small.vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=small.max_position_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=True,
    )
    save_model(LlamaForCausalLM(config).eval(), tokenizer, folder)
    return folder


class Budget:
    """Seconds to spend; each kind of work is assumed to take as long as its longest so far."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._longest: dict[str, float] = {}

    def allows(self, kind: str) -> bool:
        """Whether once more of this work fits; the first time it always does."""
        return time.monotonic() + self._longest.get(kind, 0.0) < self._ends

    def spend(self, kind: str, since: float) -> None:
        """Note that work of this kind began at `since` and has ended."""
        self._longest[kind] = max(self._longest.get(kind, 0.0), time.monotonic() - since)


def measured_times(root: Path, budget: Budget) -> dict[str, Any]:
    """Seconds of the joint steps after the first, of each model, arm and round; and where they went."""
    models = {"0.1M": "builtin", "3M": str(random_model(root / "3M"))}
    found: dict[str, Any] = {model: {arm: [] for arm in ARMS} for model in models}
    for number in range(ROUNDS):
        for model, source in models.items():
            if not budget.allows(model):
                continue
            since = time.monotonic()
            arms = list(ARMS) if number % 2 == 0 else list(ARMS)[::-1]
            for arm in arms:
                folder = root / f"time-{model}-{arm}-{number}"
                lines = train(folder, f"model.policy={source}", *TIMED[model], *QUICK, *ARMS[arm])[1:]
                # the last step samples nothing for a step after it, so it would flatter the overlap
                lines = lines[:-1]
                parts = ("step_time", "time/rollout", "time/score", "time/update", "time/rollout_wait")
                found[model][arm].append(
                    {part: statistics.mean(line.get(part, 0.0) for line in lines) for part in parts}
                )
            budget.spend(model, since)
    return found


def measured_scores(root: Path, budget: Budget) -> dict[str, Any]:
    """Final held-out score, and seconds of all joint steps, of each seed with 0 and with 1."""
    found: dict[str, Any] = {"0": [], "1": []}
    for seed in SEEDS:
        if not budget.allows("seed"):
            break
        since = time.monotonic()
        for arm in ("0", "1") if seed % 2 == 0 else ("1", "0"):
            folder = root / f"score-{arm}-{seed}"
            lines = train(folder, *SCORED, *ARMS[arm], seed=seed)
            last = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
            seconds = sum(line["step_time"] for line in lines)
            found[arm].append({"seed": seed, "avg": last["avg"], "seconds": seconds})
        budget.spend("seed", since)
    return found


def time_table(times: dict[str, Any]) -> list[str]:
    """Medians over rounds, the range in brackets."""
    lines = [
        "| model | `max_staleness` | rounds | a step | sampling | scoring | updates | waiting | of 0 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for model, arms in times.items():
        for arm, rounds in arms.items():
            if not rounds:
                continue
            seconds = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
            steps = [r["step_time"] for r in rounds]
            ratio = statistics.median(r["step_time"] / b["step_time"] for r, b in zip(rounds, arms["0"], strict=True))
            spread = f"[{min(steps):.2f}, {max(steps):.2f}]"
            lines.append(
                f"| {model} | {arm} | {len(rounds)} | {seconds['step_time']:.2f} s {spread} "
                f"| {seconds['time/rollout']:.2f} s | {seconds['time/score']:.2f} s | {seconds['time/update']:.2f} s "
                f"| {seconds['time/rollout_wait']:.2f} s | {ratio:.2f} |"
            )
    return lines


def score_table(scores: dict[str, Any]) -> list[str]:
    """Final scores by seed, and the mean difference with its standard error."""
    lines = [
        "| seed | score with 0 | score with 1 | difference | seconds with 0 | with 1 |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    differences = []
    for one, two in zip(scores["0"], scores["1"], strict=True):
        differences.append(two["avg"] - one["avg"])
        lines.append(
            f"| {one['seed']} | {one['avg']:.3f} | {two['avg']:.3f} | {differences[-1]:+.3f} | {one['seconds']:.0f} "
            f"| {two['seconds']:.0f} |"
        )
    if len(differences) > 1:
        error = statistics.stdev(differences) / len(differences) ** 0.5
        means = [statistics.mean(run["avg"] for run in scores[arm]) for arm in ("0", "1")]
        spent = [statistics.mean(run["seconds"] for run in scores[arm]) for arm in ("0", "1")]
        lines.append(
            f"| mean | {means[0]:.3f} | {means[1]:.3f} | {statistics.mean(differences):+.3f} ± {error:.3f} "
            f"| {spent[0]:.0f} | {spent[1]:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--part", choices=["both", "time", "score"], default="both")
    asked = parser.parse_args()
    started = time.monotonic()
    result: dict[str, Any] = {
        "date": str(date.today()),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vapo-overlap-") as folder:
        if asked.part != "score":
            share = 0.4 if asked.part == "both" else 1.0
            result["times"] = measured_times(Path(folder), Budget(share * asked.seconds))
            lines += [*time_table(result["times"]), ""]
        if asked.part != "time":
            left = asked.seconds - (time.monotonic() - started)
            result["scores"] = measured_scores(Path(folder), Budget(left))
            lines += score_table(result["scores"])
    result["table"] = lines
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join([f"{result['date']}, {result['machine']}", "", *lines]))


if __name__ == "__main__":
    main()
