"""Measure the cost of durability: a save compared with writing the same bytes, saving every step, and the watchdog.

    python benchmarks/durability.py --out benchmarks/durability.md

Each round measures both sides of a ratio one after the other; medians of the rounds are reported.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vapo.chaos.small_run import small_config
from vapo.durability.watch import Watchdog
from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer import snapshot
from vapo.trainer.run import Run

ROUNDS = 5


def sized_run(root: Path, hidden: int, layers: int) -> Run:
    """The small run with other networks, all moments there."""
    small = runs.begin(small_config(), root / "small", SilentView())
    vocabulary = small.policy.model.config.vocab_size
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        eos_token_id=small.policy.model.config.eos_token_id,
        pad_token_id=small.policy.model.config.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(config), small.tokenizer, root / "base")
    small.folder.close()
    no_reference = {"algorithm": {"kl": {"coef": 0.0, "refresh_every": 0}}}
    run = runs.begin(small_config({"model": {"policy": str(root / "base")}}, no_reference), root / "run", SilentView())
    for network in run.learners:
        for parameter in network.parameters:
            parameter.grad = torch.zeros_like(parameter)
        network.optimizer.step()
    return run


def seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_raw(path: Path, count: int) -> None:
    data = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(count >> 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def saving(root: Path, hidden: int, layers: int) -> list[str]:
    run = sized_run(root, hidden, layers)
    weights = sum(network.published_bytes for network in run.learners)
    saves, raws = [], []
    for number in range(ROUNDS):
        run.state.step = number + 1
        saves.append(seconds(lambda: snapshot.save(run)))
        newest = max((root / "run" / "checkpoints").glob("step_*"), key=lambda p: p.name)
        size = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
        raws.append(seconds(partial(write_raw, root / "raw", size)))
    run.folder.close()
    save, raw = statistics.median(saves), statistics.median(raws)
    parameters = run.policy.model.num_parameters()
    return [
        f"| {parameters / 1e6:.1f}M + critic | {weights / 1e6:.1f} MB | {size / 1e6:.1f} MB | {size / weights:.2f} "
        f"| {save * 1e3:.0f} ms [{min(saves) * 1e3:.0f}, {max(saves) * 1e3:.0f}] | {raw * 1e3:.0f} ms "
        f"| {save / raw:.1f} |"
    ]


def per_step(root: Path) -> list[str]:
    """Seconds of the small run's joint and pretraining steps, saving after each, after none, and with a watchdog."""
    kinds = {
        "no saves, no watchdog": {"checkpoint": {"every": 0}, "guards": {"watchdog": False}},
        "a save after every step": {"checkpoint": {"every": 1}, "guards": {"watchdog": False}},
        "a watchdog": {"checkpoint": {"every": 0}, "guards": {"watchdog": True}},
    }
    longer = {"trainer": {"steps": 6, "samples_per_step": 32}, "rollout": {"max_response_tokens": 48}}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(ROUNDS):
        for kind, settings in kinds.items():
            folder = root / f"{kind}-{number}"
            run = runs.begin(small_config(longer, settings, {"evaluation": {"every": 0}}), folder, SilentView())
            found[kind].append(seconds(lambda run=run: runs.finish(run, report=False)))
            shutil.rmtree(folder)
    base = statistics.median(found["no saves, no watchdog"])
    return [
        f"| {kind} | {statistics.median(times):.2f} s [{min(times):.2f}, {max(times):.2f}] "
        f"| {statistics.median(times) / base:.3f} |"
        for kind, times in found.items()
    ]


def beat(root: Path) -> float:
    """Microseconds of one report to the watchdog."""
    root.mkdir()
    watch = Watchdog(root, factor=10.0, floor_s=60.0)
    taken = seconds(lambda: [watch.beat(f"work {i % 2}") for i in range(20_000)])
    watch.close()
    return taken / 20_000 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="vapo-durability-"))
    lines = [
        "# What durability costs",
        "",
        f"`python benchmarks/durability.py`, {date.today()}, {platform.platform()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}; medians of {ROUNDS} rounds, smallest and largest in brackets.",
        "",
        "A save (weights, two moments of each, hashed, synced, renamed) against writing as many bytes to one file and "
        "syncing it:",
        "",
        "| networks | their weights | a checkpoint | ratio | a save | bytes alone | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, hidden, layers in (("small", 64, 2), ("middle", 512, 6)):
        (root / name).mkdir()
        lines += saving(root / name, hidden, layers)
    lines += [
        "",
        "A whole run of the built-in model (2 pretraining steps, 6 joint steps of 32 responses of up to 48 tokens):",
        "",
        "| | seconds | to the first |",
        "|---|--:|--:|",
        *per_step(root),
        "",
        f"A sign of life that reaches the watchdog costs {beat(root / 'beat'):.1f} µs; most are left out, being "
        "closer than 50 ms to the one before.",
    ]
    shutil.rmtree(root)
    print("\n".join(lines))
    if out:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
