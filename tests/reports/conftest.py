"""Run directories made up with realistic numbers: a VAPO run by default, a GRPO run without a critic."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

MakeRun = Callable[..., Path]
WORDS = [
    " I",
    " am",
    " at",
    " d4",
    ",",
    " go",
    " north",
    " to",
    " d5",
    " bump",
    " back",
    " well",
    "\n",
    " stop",
]


def rise(step, steps, start, end):
    """A learning curve: slow, fast, slow."""
    return start + (end - start) / (1 + math.exp(-8 * (step / max(1, steps) - 0.45)))


def pretrain_row(step, steps, rng):
    return {
        "phase": "pretrain",
        "step": step,
        "pretrain/value_loss": 0.12 * math.exp(-step / 12) + 0.055 + 0.004 * rng.random(),
        "pretrain/explained_variance": None if step == 1 else 0.42 * (1 - math.exp(-step / 9)),
        "pretrain/bias": 0.05 * math.exp(-step / 6),
        "step_time": 2.1,
    }


def train_row(step, steps, rng, critic):
    accuracy = float(np.clip(rise(step, steps, 0.08, 0.8) + 0.05 * rng.standard_normal(), 0, 1))
    row = {
        "phase": "train",
        "step": step,
        "reward": accuracy,
        "reward_std": math.sqrt(accuracy * (1 - accuracy)),
        "accuracy": accuracy,
        "completions/mean_length": 222 - rise(step, steps, 0, 60) + 8 * rng.standard_normal(),
        "completions/min_length": 21.0,
        "completions/max_length": 400.0,
        "completions/clipped_ratio": float(max(0, 0.12 - 0.1 * step / steps + 0.02 * rng.standard_normal())),
        "entropy": 1.25 - 0.5 * step / steps + 0.02 * rng.standard_normal(),
        "loss/policy": 0.01 * rng.standard_normal(),
        "loss/positive_lm": None if step == 1 else 1.1 - 0.4 * step / steps + 0.03 * rng.standard_normal(),
        "clip_ratio/low_mean": 0.002 + 0.001 * rng.random(),
        "clip_ratio/high_mean": 0.006 + 0.003 * rng.random(),
        "grad_norm/policy": 0.4 + 0.1 * rng.random(),
        "verdict/invalid_ratio": 0.0,
        "groups/mixed_ratio": 0.6,
        "num_tokens": 28000.0 * step,
        "num_samples": 128.0 * step,
        "step_time": 5.2 + 0.5 * rng.random(),
        "time/rollout": 1.1 + 0.1 * rng.random(),
        "time/verify": 0.1,
        "time/score": 0.9 + 0.1 * rng.random(),
        "time/update": 2.8 + 0.2 * rng.random(),
        "time/save": 0.4 if step % 10 == 0 else 0.0,
        "time/evaluate": 3.0 if step % 10 == 0 else 0.0,
        "throughput/rollout_tokens_per_s": 41_200.0,
        "throughput/update_tokens_per_s": 43_000.0,
    }
    if critic:
        row |= {
            "value/loss": 0.06 + 0.02 * rng.random(),
            "value/explained_variance": rise(step, steps, 0.3, 0.55) + 0.04 * rng.standard_normal(),
            "value/mean": accuracy - 0.02,
            "gae/lambda_mean": 0.991,
        }
    return row


def evaluation(step, label, avg, k=8, prompts=128):
    return {
        "step": step,
        "label": label,
        "k": k,
        "prompts": prompts,
        "avg": avg,
        "low": avg - 0.04,
        "high": avg + 0.04,
        "pass": {"1": avg, "8": min(1.0, avg + 0.2)},
        "maj": avg + 0.05,
        "mean_length": 222.0 - 60 * avg,
        "clipped_ratio": 0.12 * (1 - avg),
    }


def sample(index, rng, critic, num_tokens=60):
    verdict = ("wrong", "right", "wrong", "invalid")[index % 4]
    tokens = [WORDS[i] for i in rng.integers(len(WORDS), size=num_tokens)]
    goal = float(verdict == "right")
    values = [float(0.2 + (goal - 0.2) * t / num_tokens + 0.03 * rng.standard_normal()) for t in range(num_tokens)]
    return {
        "prompt_id": f"maze/{index // 4:04d}",
        "prompt": "Walls: a1|a2, b2|c2. From d4, find exit B.\n",
        "response": "".join(tokens),
        "verdict": verdict,
        "reason": "timed out after 2 s" if verdict == "invalid" else "",
        "sample": index % 4,
        "reward": goal,
        "lambda": 0.991,
        "weight_version": 11,
        "truncated": index % 5 == 0,
        "tokens": tokens,
        "logp": [float(x) for x in -rng.exponential(0.8, num_tokens)],
        "value": values if critic else None,
        "advantage": [goal - v for v in values] if critic else [goal - 0.4] * num_tokens,
        "return": [goal] * num_tokens if critic else None,
    }


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_rollouts(path, samples):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(s) + "\n" for s in samples).encode()))


def build_run(path: Path, *, steps=40, pretraining=24, critic=True, config=None, samples=16, num_tokens=60) -> Path:
    """Write a run directory as the trainer would; `steps` = 0 is a run that has only just begun."""
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    config = config or {
        "seed": 0,
        "algorithm": {"preset": "vapo" if critic else "grpo", "without": []},
        "model": {"policy": "builtin", "critic": None, "dtype": "float32"},
        "task": {"name": "maze", "size": 9},
        "rollout": {"engine": "torch", "temperature": 1.0, "max_response_tokens": 400},
        "trainer": {"steps": steps, "actor_lr": 1.5e-4, "critic_lr": 4.5e-4},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "environment.json").write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0", "commit": "9c004c1"}))
    rows = [pretrain_row(s, pretraining, rng) for s in range(1, pretraining + 1)] if critic and steps else []
    write_jsonl(path / "metrics.jsonl", rows + [train_row(s, steps, rng, critic) for s in range(1, steps + 1)])
    events = [{"event": "phase", "time": 1_791_000_000.0, "name": "train"}]
    if steps:
        events.append({"event": "alarm", "time": 1_791_000_060.5, "message": "entropy fell by half within 5 steps"})
        evaluations = [evaluation(0, "before", 0.102)]
        evaluations += [evaluation(s, "during", round(rise(s, steps, 0.09, 0.76), 3)) for s in range(10, steps, 10)]
        write_jsonl(path / "evaluations.jsonl", [*evaluations, evaluation(steps, "after", 0.751)])
        for step in range(1, steps + 1, 6):
            write_rollouts(
                path / "rollouts" / f"step_{step:06d}.jsonl.gz",
                [sample(i, rng, critic, num_tokens) for i in range(samples)],
            )
        if critic and pretraining:
            write_rollouts(
                path / "rollouts" / "pretrain_000003.jsonl.gz",
                [sample(i, rng, critic, num_tokens) for i in range(samples)],
            )
    write_jsonl(path / "events.jsonl", events)
    return path


@pytest.fixture
def make_run(tmp_path) -> MakeRun:
    def make(name="maze-vapo-s0", **how):
        return build_run(tmp_path / name, **how)

    return make
