"""What a critic costs: the time of a joint step of GRPO and of VAPO with five kinds of critic, on one CPU core.

    python benchmarks/critic_price.py [--sizes 3M 20M] [--lengths 64 512] [--kinds full side] [--minutes 10]

Writes critic_price.md and critic_price.json beside itself. Weights are random and all responses have the same length.
The runs of one table take their steps in turn, so that other work on the machine meets all of them. All of them learn
from the responses that the first one, GRPO, has sampled, and its sampling time counts for each: no critic changes it,
and its spread would hide what the critics differ in. GRPO has no KL term here: its reference would cost a forward pass
that no other run has. A table stops when its part of --minutes is over, after one round at least. `--sizes tiny
--lengths 16` takes seconds and shows that it works.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vapo.errors import counted
from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.lifecycle import begin, with_task
from vapo.trainer import loop
from vapo.trainer.rollouts import Rollout, RolloutSource
from vapo.trainer.run import Run
from vapo.trainer.state import State
from vapo.types import Prompt, Verdict, stable_hash

VOCABULARY, PROMPT = 512, 16
SIZES = {
    "mini": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 1},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 2},
    "3M": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 6},
    "20M": {"hidden_size": 384, "num_hidden_layers": 11, "intermediate_size": 1024, "num_attention_heads": 6},
}
SMALLER = {"20M": "3M", "3M": "tiny", "tiny": "mini"}
"""The smaller base that one of the critics starts from."""
PRICE = {"mini": 0.1, "tiny": 0.2, "3M": 3.0, "20M": 20.0}
"""How the time is shared out: the cost of a token, about."""
CRITICS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("VAPO, full critic", {}),
    "frozen": ("VAPO, frozen attention", {"algorithm": {"credit": {"frozen": ["*self_attn*"]}}}),
    "lora": ("VAPO, critic with adapters (rank 8)", {"model": {"critic_lora": 8}}),
    "small": ("VAPO, critic from a smaller base", {"model": {"critic": "SMALLER"}}),
    "side": ("VAPO, side critic", {"model": {"critic_kind": "side"}}),
}
PARTS = ("rollout", "score", "update")
GROUP = 4
"""Responses to a prompt."""
TOKENS = {"20M": 2048}
"""Response tokens of a step, where not 4,096; 16 responses at most."""


@dataclass(frozen=True)
class HashTask:
    """Half of all responses are right, by a hash of their text: both losses have something to do."""

    max_response_tokens: int
    name: str = "hash"

    @property
    def train(self) -> list[Prompt]:
        """Prompts of random words."""
        return [
            Prompt(f"p{i}", " ".join(f"w{stable_hash(i, j) % (VOCABULARY - 2)}" for j in range(PROMPT)), i)
            for i in range(64)
        ]

    heldout = train

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """See `Task.verify`."""
        return Verdict("right") if stable_hash(prompt.id, response) % 2 else Verdict("wrong", "hash")


def base(size: str, folder: Path) -> str:
    """A folder with a random Llama of this size and a tokenizer of words."""
    path = folder / size
    if not path.exists():
        words = ["<pad>", "<eos>", *(f"w{i}" for i in range(VOCABULARY - 2))]
        table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))  # noqa: S106
        table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="<eos>")  # noqa: S106
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            **SIZES[size],
        )
        save_model(LlamaForCausalLM(config), tokenizer, path)
    return str(path)


def run_of(size: str, length: int, samples: int, folder: Path, preset: str, layer: dict[str, Any], name: str) -> Run:
    """A run that has not taken a step yet; its responses never end before the limit."""
    layer = {**layer, "model": {"policy": base(size, folder), **layer.get("model", {})}}
    if layer["model"].get("critic") == "SMALLER":
        layer["model"]["critic"] = base(SMALLER[size], folder)
    settings = {
        "trainer": {
            "steps": 1000, "samples_per_step": samples, "group_size": GROUP, "minibatch_size": samples // 2,
            "actor_lr": 1e-5, "critic_lr": 1e-4, "warmup_steps": 1, "pretraining_steps": 0, "save_rollouts_every": 0,
        },
        "evaluation": {"every": 0, "prompts": 4, "samples_per_prompt": 1},
        "checkpoint": {"every": 0},
        "guards": {"watchdog": False},
        "scale": {"threads": 1},
    }  # fmt: skip
    method = {"algorithm": {"preset": preset, "kl": {"coef": 0.0, "refresh_every": 0}}}
    if preset == "vapo":
        method["algorithm"]["alpha"] = 1.5
    task = HashTask(length)
    layers = [file_layer(place, values) for place, values in (("sizes", settings), ("method", method), ("run", layer))]
    run = begin(with_task(resolve(layers), task), folder / "runs" / name, SilentView(), task=task)
    run.decoding = replace(run.decoding, stop_token_ids=())
    run.hand_over()
    return run


class AtOnce:
    """The part of a `RolloutSource` that makes nothing ahead."""

    def settle(self) -> None:
        """Nothing is being sampled."""

    def waiting(self) -> None:
        """Nothing is made ahead."""

    def restart(self, waiting: Rollout | None) -> None:
        """Nothing is made ahead."""

    def close(self) -> None:
        """There are no threads."""


class Recorded(AtOnce):
    """The responses of one run, sampled once and handed to several."""

    def __init__(self, source: RolloutSource) -> None:
        self._source, self.max_age = source, source.max_age
        self.last: Rollout | None = None

    def next(self, state: State) -> Rollout:
        """See `RolloutSource`."""
        self.last = self._source.next(state)
        return self.last


class Replayed(AtOnce):
    """The last responses of another run."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self.max_age = recorded, recorded.max_age

    def next(self, state: State) -> Rollout:
        """See `RolloutSource`."""
        assert self._recorded.last is not None
        return self._recorded.last


def step(run: Run) -> dict[str, float]:
    """Seconds of one joint step, in all and by part; the sampling of the responses counts wherever it was done."""
    seen: list[dict[str, Any]] = []
    run.observer.step = seen.append
    loop.train_step(run)
    (figures,) = seen
    parts = {part: figures[f"time/{part}"] for part in PARTS}
    elsewhere = parts["rollout"] if isinstance(run.source, Replayed) else 0.0
    return {"step": figures["step_time"] + elsewhere, **parts}


def samples_of(size: str, length: int) -> int:
    """Responses of a step: whole groups, 16 at most, fewer where they are long."""
    return max(GROUP, min(16, TOKENS.get(size, 4096) // length) // GROUP * GROUP)


def table(size: str, length: int, options: argparse.Namespace, seconds: float) -> tuple[list[str], dict[str, Any]]:
    """Lines and numbers of one size and length: medians of seconds, and ratios to GRPO within each round."""
    started, samples = time.monotonic(), options.samples or samples_of(size, length)
    with tempfile.TemporaryDirectory() as folder:
        wanted = {
            "GRPO": ("grpo", {}),
            **{name: ("vapo", layer) for name, layer in (CRITICS[kind] for kind in options.kinds)},
        }
        runs = {
            name: run_of(size, length, samples, Path(folder), preset, layer, f"run{i}")
            for i, (name, (preset, layer)) in enumerate(wanted.items())
        }
        recorded = Recorded(runs["GRPO"].source)
        for name, run in runs.items():
            run.source = recorded if name == "GRPO" else Replayed(recorded)
        policy = runs["GRPO"].policy.published_bytes // 4
        for run in runs.values():
            step(run)  # the first step allocates memory and moments
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        rounds, longest = 0, 0.0
        while rounds < options.rounds and (rounds == 0 or time.monotonic() - started + longest < seconds):
            before = time.monotonic()
            for name, run in runs.items():
                taken[name].append(step(run))
                print(size, length, name, f"{taken[name][-1]['step']:.2f} s", flush=True)
            rounds, longest = rounds + 1, max(longest, time.monotonic() - before)
        lines = [
            f"## {policy / 1e6:.1f}M parameters, {samples} responses of {length} tokens to prompts of {PROMPT}, "
            f"{counted(rounds, 'round')}",
            "",
            "| method | critic / policy parameters | step, s | rollout, s | score, s | update, s | step / GRPO's |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        rows = {}
        for name, run in runs.items():
            share = None if run.critic is None else run.critic.published_bytes / 4 / policy
            ratios = [own["step"] / grpo["step"] for own, grpo in zip(taken[name], taken["GRPO"], strict=True)]
            medians = {part: statistics.median(t[part] for t in taken[name]) for part in ("step", *PARTS)}
            row = {**medians, "share": share, "ratio": statistics.median(ratios), "ratios": ratios}
            spread = f"{row['ratio']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            cells = ["" if share is None else f"{share:.1%}", *(f"{medians[part]:.2f}" for part in medians), spread]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            rows[name] = row
            run.folder.close()
            run.engine.close()
        numbers = {"size": size, "parameters": policy, "length": length, "samples": samples, "rounds": rounds}
        return [*lines, ""], {**numbers, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["3M", "20M"], choices=list(SMALLER))
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--kinds", nargs="+", default=list(CRITICS), choices=list(CRITICS))
    parser.add_argument("--rounds", type=int, default=5, help="at most so many timed steps of each run")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all tables; each takes one round at least")
    parser.add_argument("--samples", type=int, help="responses of a step; default by size and length")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("critic_price.md"))
    options = parser.parse_args()
    lines = [
        "# What a critic costs",
        "",
        f"`python benchmarks/critic_price.py`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread, "
        f"torch {torch.__version__}; medians, runs in turn on the same responses; in brackets the lowest and the "
        "highest ratio of a round. Two gradient steps per joint step.",
        "",
    ]
    tables = []
    started, todo = time.monotonic(), [(size, length) for size in options.sizes for length in options.lengths]
    weights = [PRICE[size] * samples_of(size, length) * length for size, length in todo]
    for at, (size, length) in enumerate(todo):
        left = 60 * options.minutes - (time.monotonic() - started)
        found, numbers = table(size, length, options, left * weights[at] / sum(weights[at:]))
        lines += found
        tables.append(numbers)
        options.out.write_text("\n".join(lines))
        options.out.with_suffix(".json").write_text(json.dumps({"tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
