"""Artificial run directories for comparisons, with known success rates, so that means can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vapo.study.comparison import compare_runs

MakeCell = Callable[..., Path]
STEPS = 40
PER_STEP, GRADIENT = 128, 4


def evaluation(step: int, label: str, right: Sequence[int], k: int, **changes: Any) -> dict[str, Any]:
    right = [int(r) for r in right]
    return {
        "step": step,
        "label": label,
        "k": k,
        "prompts": len(right),
        "avg": float(np.mean(right)) / k,
        "set": "ab12cd34",
        "right": right,
        "valid": [k] * len(right),
    } | changes


def train_row(step: int, pretraining: int, per_step: int, rng: np.random.Generator, critic: bool) -> dict[str, Any]:
    row = {
        "phase": "train",
        "step": step,
        "num_samples": pretraining + per_step * step,
        "num_tokens": 150 * (pretraining + per_step * step),
        "gradient_steps": GRADIENT * step,
        "step_time": 6.0,
        "time/evaluate": 1.0 if step % 10 == 0 else 0.0,  # part of the step, as in runs of vapo 0.1
        "entropy": 1.2 - 0.01 * step + 0.02 * rng.standard_normal(),
        "completions/mean_length": 220 - step + 4 * rng.standard_normal(),
    }
    if critic:
        row |= {"gae/lambda_mean": 0.985 + 0.0001 * step, "value/explained_variance": None if step == 1 else 0.3}
        row |= {f"value/bias_by_position/{d}": 0.02 * (d - 4) + 0.01 * rng.standard_normal() for d in range(10)}
    return row


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_cell_dir(
    path: Path,
    *,
    preset: str = "vapo",
    without: Sequence[str] = (),
    seed: int = 0,
    base: str = "builtin",
    right: Sequence[Sequence[int]] | None = None,
    final: float = 0.6,
    num_prompts: int = 20,
    k: int = 8,
    steps: int = STEPS,
    pretraining: int = 0,
    per_step: int = PER_STEP,
    set_: str = "ab12cd34",
    cell: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    task: str = "maze",
    finished: bool = True,
) -> Path:
    """Write a run with evaluations at even distances and return its path.

    `right[i]` are the numbers of right samples per prompt in the i-th evaluation. Without `right` they are drawn from
    a learning curve that ends at `final`.
    """
    rng = np.random.default_rng([seed, int(1000 * final), len(preset), *map(len, without)])
    path.mkdir(parents=True)
    critic = preset not in ("grpo", "dapo")
    trainer = {"steps": steps, "actor_lr": 1e-4, "save_rollouts_every": 10}
    config = {
        "seed": seed,
        "algorithm": {"preset": preset, "without": list(without), "optimization": {"actor_lr": 1e-4}},
        "model": {"policy": base, "critic": None},
        "task": {"name": task},
        "trainer": trainer,
        "evaluation": {"every": 10},
    }
    for key, value in (settings or {}).items():
        section, name = key.split(".")
        config[section][name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "environment.json").write_text(json.dumps({"packages": {"vapo": "0.1.0", "torch": "2.13"}, "commit": "ab"}))
    rows: list[dict[str, Any]] = []
    if pretraining:
        rows = [
            {"phase": "pretrain", "step": s, "num_samples": s * pretraining // 4, "num_tokens": s, "step_time": 3.0}
            for s in range(1, 5)
        ]
    rows += [train_row(s, pretraining, per_step, rng, critic) for s in range(1, steps + 1)]
    write_jsonl(path / "metrics.jsonl", rows)
    write_jsonl(
        path / "events.jsonl", [{"event": "critic loaded", "time": "2026-01-01T00:00:00", "origin": "a folder"}]
    )
    if right is None:
        hard = np.random.default_rng(7).normal(0, 1.0, num_prompts)  # the same prompts are hard for all
        middle = [0.08 + (final - 0.08) / (1 + math.exp(-8 * (x - 0.4))) for x in np.linspace(0, 1, 9)]
        chances = [1 / (1 + np.exp(-(math.log(m / (1 - m)) + hard))) for m in middle]
        right = [rng.binomial(k, chance).tolist() for chance in chances]
    places = [round(i * steps / (len(right) - 1)) for i in range(len(right))]
    labels = ["before", *["during"] * (len(right) - 2), "after"]
    records = [evaluation(s, label, r, k, set=set_) for s, label, r in zip(places, labels, right, strict=True)]
    write_jsonl(path / "evaluations.jsonl", records if finished else records[:-1])
    if cell is not None:
        (path / "cell.json").write_text(json.dumps(cell))
    return path


@pytest.fixture
def make_cell(tmp_path: Path) -> MakeCell:
    def make(name: str = "run", **how: Any) -> Path:
        return make_cell_dir(tmp_path / "runs" / name, **how)

    return make


LEVELS = {"ppo": 0.3, "vc-ppo": 0.42, "grpo": 0.5, "dapo": 0.58, "vapo": 0.64}
TECHNIQUES = [
    "value-pretraining",
    "decoupled-gae",
    "length-adaptive-gae",
    "token-level-loss",
    "clip-higher",
    "positive-lm",
    "group-sampling",
]


def make_grid(root: Path, *, seeds: int = 3, ablations: bool = True, num_prompts: int = 40) -> list[Path]:
    """Runs of five methods and of VAPO without each technique; one run diverged."""
    runs = []
    for seed in range(seeds):
        luck = np.random.default_rng([seed, 5]).normal(0, 0.03)
        for method, level in LEVELS.items():
            shared = {"name": "critic-0", "samples": 600, "tokens": 9, "seconds": 30.0, "gradient_steps": 80}
            runs.append(
                make_cell_dir(
                    root / f"{method}-{seed}",
                    preset=method,
                    seed=seed,
                    final=level + luck,
                    num_prompts=num_prompts,
                    per_step=256 if method == "dapo" else PER_STEP,
                    cell={
                        "method": method,
                        "base": "base-a",
                        "seed": seed,
                        "outcome": "finished",
                        "critic": shared if method in ("vapo", "vc-ppo") else None,
                    },
                )
            )
        for at, technique in enumerate(TECHNIQUES if ablations else []):
            label = f"vapo without {technique}"
            diverged = at == 0 and seed == 1
            runs.append(
                make_cell_dir(
                    root / f"vapo-without-{technique}-{seed}",
                    without=[technique],
                    seed=seed,
                    final=0.45 + 0.025 * at + luck,
                    num_prompts=num_prompts,
                    finished=not diverged,
                    cell={
                        "method": label,
                        "base": "base-a",
                        "seed": seed,
                        "outcome": "diverged" if diverged else "finished",
                        "critic": None,
                    },
                )
            )
    return runs


@pytest.fixture(scope="session")
def written(grid: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the comparison of all runs of `grid`."""
    folder = tmp_path_factory.mktemp("written")
    compare_runs(grid, folder, heading="The whole table", notes=["vapo ablate, three seeds"])
    return folder


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def small(make_cell, tmp_path):
    """VAPO with 100 pretraining samples and GRPO without, two seeds, ten steps of ten samples, two prompts.

    Pretraining takes 12 s and training 59 s, with evaluations at 0, 30 and 59 s.
    """

    def add(preset, seed, right):
        pretraining = 100 if preset == "vapo" else 0
        how = {"preset": preset, "seed": seed, "right": right, "pretraining": pretraining}
        return make_cell(f"{preset}{seed}", k=4, steps=10, per_step=10, **how)

    runs = [
        add("vapo", 0, [[0, 0], [2, 2], [4, 4]]),
        add("vapo", 1, [[0, 0], [2, 0], [4, 2]]),
        add("grpo", 0, [[0, 0], [1, 1], [2, 2]]),
        add("grpo", 1, [[0, 0], [1, 0], [2, 0]]),
    ]
    return compare_runs(runs, tmp_path / "out", heading="Two <methods>", notes=["by hand"])
