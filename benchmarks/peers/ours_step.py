"""Our trainer: seconds of a joint step of GRPO and of VAPO. One process has all variants; a command names one."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from forced_uniforms import force_lengths
from protocol import Channel

import vapo
from vapo.reports.live import SilentView
from vapo.rollout.engine import RolloutEngine
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.lifecycle import begin, with_task
from vapo.trainer import loop
from vapo.trainer.run import Run
from vapo.types import Completion, Decoding, Prompt, Verdict

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"preset": "grpo", "scoring": "needed"},
    "grpo-all": {"preset": "grpo", "scoring": "all"},
    "vapo": {"preset": "vapo", "scoring": "needed"},
}


@dataclass(frozen=True)
class CoinTask:
    """Half of all responses are right, by a checksum of their text."""

    prompts: tuple[Prompt, ...]
    max_response_tokens: int
    name: str = "coin"

    @property
    def train(self) -> tuple[Prompt, ...]:
        return self.prompts

    heldout = train

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict("right") if zlib.crc32(response.encode()) % 2 else Verdict("wrong", "coin")


class ForcedEngine:
    """An engine whose samples have the lengths that were asked for, in order."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompts: Sequence[Prompt], how: Decoding, seeds: Sequence[int], on_progress: Any = None
    ) -> list[Completion]:
        force_lengths(dict(zip(seeds, self.lengths, strict=True)))
        return self._engine.generate(prompts, replace(how, max_tokens=max(self.lengths)), seeds, on_progress)


def run_of(job: dict[str, Any], variant: str, folder: Path) -> Run:
    """A run that has not taken a step yet. One optimizer step per joint step and network, as the peers take."""
    kind, samples = VARIANTS[variant], len(job["prompts"])
    settings = {
        "model": {"policy": job["model"]},
        "trainer": {
            "steps": 1_000_000, "samples_per_step": samples, "group_size": job["group"], "minibatch_size": samples,
            "actor_lr": 1e-6, "critic_lr": 1e-6, "warmup_steps": 1, "pretraining_steps": 0, "save_rollouts_every": 0,
            "scoring": kind["scoring"], "micro_batch_tokens": job["settings"]["micro_batch_tokens"],
        },
        "evaluation": {"every": 0, "prompts": 1, "samples_per_prompt": 1},
        "checkpoint": {"every": 0},
        "guards": {"watchdog": False},
        "scale": {"threads": job["threads"]},
    }  # fmt: skip
    method: dict[str, Any] = {"preset": kind["preset"], "kl": {"coef": 0.0, "refresh_every": 0}}
    if kind["preset"] == "vapo":
        method["alpha"] = 1.5
    distinct = list(dict.fromkeys(job["texts"]))
    task = CoinTask(tuple(Prompt(f"p{i}", text) for i, text in enumerate(distinct)), job["max_tokens"])
    layers = [file_layer("sizes", settings), file_layer("method", {"algorithm": method})]
    run = begin(with_task(resolve(layers), task), folder / variant, SilentView(), task=task)
    run.decoding = replace(run.decoding, stop_token_ids=tuple(job["stop"]))
    run.engine = ForcedEngine(run.engine)
    run.hand_over()
    return run


def main() -> None:
    channel = Channel()
    job = channel.job
    with tempfile.TemporaryDirectory() as folder:
        runs = {variant: run_of(job, variant, Path(folder)) for variant in job["variants"]}
        channel.send(name=f"vapo {vapo.__version__}", torch=torch.__version__)
        while True:
            command = channel.wait()
            run = runs[command["variant"]]
            run.engine.lengths = channel.lengths(command)
            seen: list[dict[str, Any]] = []
            run.observer.step = seen.append
            before = run.state.num_tokens
            began = time.perf_counter()
            loop.train_step(run)
            seconds = time.perf_counter() - began
            parts = {name: seen[0][f"time/{name}"] for name in ("rollout", "score", "update")}
            channel.send(seconds=seconds, tokens=run.state.num_tokens - before, parts=parts)


if __name__ == "__main__":
    main()
