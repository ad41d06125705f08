"""What a critic costs: the time of a joint step of GRPO and of VAPO with five kinds of critic, on one CPU core.

    OMP_NUM_THREADS=1 python benchmarks/critic_price.py [--sizes 3M 20M] [--lengths 64 512] [--rounds 5] [--out FILE]

Writes critic_price.md beside itself. Weights are random and all responses have the same length. The runs of one table
take their steps in turn, so that other work on the machine meets all of them. GRPO has no KL term here: its reference
would cost a forward pass that no other run has. `--sizes tiny --lengths 16` takes seconds and shows that it works.
"""

from __future__ import annotations

import argparse
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

from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.lifecycle import begin, with_task
from vapo.trainer import loop
from vapo.trainer.run import Run
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
CRITICS: dict[str, dict[str, Any]] = {
    "VAPO, full critic": {},
    "VAPO, frozen attention": {"algorithm": {"credit": {"frozen": ["*self_attn*"]}}},
    "VAPO, critic with adapters (rank 8)": {"model": {"critic_lora": 8}},
    "VAPO, critic from a smaller base": {"model": {"critic": "SMALLER"}},
    "VAPO, side critic": {"model": {"critic_kind": "side"}},
}
PARTS = ("rollout", "score", "update")


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
            "steps": 1000, "samples_per_step": samples, "group_size": 4, "minibatch_size": samples // 2,
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


def step(run: Run) -> dict[str, float]:
    """Seconds of one joint step, in all and by part."""
    seen: list[dict[str, Any]] = []
    run.observer.step = seen.append
    loop.train_step(run)
    (figures,) = seen
    return {"step": figures["step_time"], **{part: figures[f"time/{part}"] for part in PARTS}}


def table(size: str, length: int, rounds: int, samples: int) -> list[str]:
    """Lines of one size and length: medians of seconds, and ratios to GRPO within each round."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"GRPO": ("grpo", {}), **{name: ("vapo", layer) for name, layer in CRITICS.items()}}
        runs = {
            name: run_of(size, length, samples, Path(folder), preset, layer, f"run{i}")
            for i, (name, (preset, layer)) in enumerate(wanted.items())
        }
        policy = runs["GRPO"].policy.published_bytes // 4
        for run in runs.values():
            step(run)  # the first step allocates memory and moments
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                taken[name].append(step(run))
                print(size, length, name, f"{taken[name][-1]['step']:.2f} s", flush=True)
        lines = [
            f"## {policy / 1e6:.1f}M parameters, {samples} responses of {length} tokens to prompts of {PROMPT}",
            "",
            "| method | critic / policy parameters | step, s | rollout, s | score, s | update, s | step / GRPO's |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for name, run in runs.items():
            share = "" if run.critic is None else f"{run.critic.published_bytes / 4 / policy:.1%}"
            ratios = [own["step"] / grpo["step"] for own, grpo in zip(taken[name], taken["GRPO"], strict=True)]
            seconds = [f"{statistics.median(t[part] for t in taken[name]):.2f}" for part in ("step", *PARTS)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| {name} | {share} | {' | '.join(seconds)} | {spread} |")
            run.folder.close()
            run.engine.close()
        return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["3M", "20M"], choices=list(SMALLER))
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("critic_price.md"))
    options = parser.parse_args()
    lines = [
        "# What a critic costs",
        "",
        f"`python benchmarks/critic_price.py`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, one core, "
        f"torch {torch.__version__}; medians of {options.rounds} steps, runs in turn; in brackets the lowest and the "
        "highest ratio of a round. Two gradient steps per joint step.",
        "",
    ]
    for size in options.sizes:
        for length in options.lengths:
            lines += table(size, length, options.rounds, options.samples)
            options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
