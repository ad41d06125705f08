"""A task and networks small enough that a training step takes a tenth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import Config, resolve
from vapo.session.layers import file_layer
from vapo.trainer.run import Run
from vapo.types import Prompt, Verdict

WORDS = ["<pad>", "<eos>", *"0123456789", "x"]


class EchoTask:
    """Right if the response names the prompt's digit among its first words; about 1 in 8 by chance."""

    name = "echo"
    max_response_tokens = 8

    def __init__(self, verdicts: dict[str, Verdict] | None = None) -> None:
        self.train = [Prompt(f"train-{i}", f"{i} x", i) for i in range(8)]
        self.heldout = [Prompt(f"heldout-{i}", f"{i} x", i) for i in range(8)]
        self.verdicts = verdicts or {}

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        if prompt.id in self.verdicts:
            return self.verdicts[prompt.id]
        words = response.split()[:4]
        return Verdict("right") if str(prompt.answer) in words else Verdict("wrong", "digit not named")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def tiny_llama(seed: int = 0, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **special, **overrides})).eval()


def toy_base(folder: Path) -> Path:
    """A Hugging Face folder with a random tiny policy and its tokenizer."""
    save_model(tiny_llama(), tokenizer(), folder)
    return folder


SETTINGS: dict[str, Any] = {
    "trainer": {
        "steps": 3, "samples_per_step": 32, "group_size": 4, "minibatch_size": 8, "actor_lr": 3e-3, "critic_lr": 1e-2,
        "warmup_steps": 1, "pretraining_steps": 2, "pretraining_heldout": 16, "pretraining_ready": -10.0,
    },
    "evaluation": {"every": 0, "prompts": 8, "samples_per_prompt": 2},
    "checkpoint": {"every": 1, "keep": 100},
    "scale": {"threads": 1},
}  # fmt: skip


def toy_config(base: Path, *layers: dict[str, Any], preset: str = "vapo") -> Config:
    model = {"model": {"policy": str(base)}, "algorithm": {"preset": preset, "alpha": 2.0}}
    return resolve(
        [file_layer("toy", SETTINGS), file_layer("toy", model), *(file_layer("test", layer) for layer in layers)]
    )


def toy_run(
    base: Path, folder: Path, *layers: dict[str, Any], preset: str = "vapo", task: EchoTask | None = None
) -> Run:
    """A run on the echo task, built and not yet started."""
    task = task or EchoTask()
    config = runs.with_task(toy_config(base, *layers, preset=preset), task)
    return runs.begin(config, folder, SilentView(), task=task)
