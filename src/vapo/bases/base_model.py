"""Base models for the built-in tasks, trained on noisy traces in minutes and shipped with the package.

Reinforcement learning starts from a base model that writes well-formed text and sometimes succeeds. It is a small
`LlamaForCausalLM`, trained from scratch by next-token prediction on *noisy traces*: the text of a solver that makes
random errors (defined by each task's `noisy_trace`). The solver does not plan and prefers the better choice only
slightly, so most of its traces for the task's prompts are wrong. Traces use training prompts and, in some tasks, easier
prompts from outside the task, but no held-out prompts.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vapo.bases.base_figures import Progress, measure_base
from vapo.bases.base_traces import EOS, EOS_ID, IGNORED, PAD, PAD_ID, UNK, TracedTask, trace_batches
from vapo.bases.shipped import plain_options
from vapo.errors import ConfigError
from vapo.json_text import json_text
from vapo.models.saving import move_into, save_model
from vapo.tasks.full_task import part_of
from vapo.types import stable_hash


@dataclass(frozen=True)
class BaseRecipe:
    """The size and training settings of a base model."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    intermediate_size: int = 192
    max_positions: int = 1024
    steps: int = 6000
    batch_tokens: int = 512  # approximate response tokens per optimizer step
    peak_lr: float = 3e-3  # of the usual width; `base_recipe` lowers it for a wider model
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    measured_prompts: int = 200  # held-out prompts in the figures of provenance.json
    measured_samples: int = 8


def base_recipe(task: TracedTask, values: Mapping[str, Any]) -> BaseRecipe:
    """The recipe of a task's base models, with some values replaced.

    A rate that is not given falls as the width grows, as Adam's step should: with the usual 3e-3 a model of width 160
    was right in 2 % of its responses to the far maze, with 1.2e-3 in 12 %. Raises ConfigError for a name that is none
    of its fields, and for a value that cannot be.
    """
    usual = BaseRecipe(steps=part_of(task, "base_steps", BaseRecipe.steps))
    defaults, chosen = asdict(usual), dict(values)
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(f"{name} is no part of a base's recipe. There are: {', '.join(defaults)}.")
        whole = isinstance(defaults[name], int)
        if isinstance(value, str) and not whole:
            with suppress(ValueError):
                chosen[name] = value = float(value)  # YAML reads 1e-3 as a text
        kind, least = ("a whole number", 1) if whole else ("a number", 0)
        of_kind = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not (of_kind and least <= float(value) < math.inf):
            raise ConfigError(f"The base's recipe takes {kind} from {least} for {name}, got {value!r}.")
    recipe = replace(usual, **chosen)
    if "peak_lr" not in chosen:
        recipe = replace(recipe, peak_lr=usual.peak_lr * usual.hidden_size / recipe.hidden_size)
    if recipe.warmup >= 1:
        raise ConfigError(f"The base's recipe takes a share of the steps below 1 for warmup, got {recipe.warmup!r}.")
    if recipe.hidden_size % (2 * recipe.heads):
        raise ConfigError(
            f"hidden_size={recipe.hidden_size} cannot be shared by heads={recipe.heads}: each needs an even number of "
            "dimensions. Choose another of the two."
        )
    return recipe


def make_base(
    task: TracedTask,
    seed: int,
    out_dir: str | Path,
    on_progress: Progress | None = None,
    threads: int | None = None,
    recipe: BaseRecipe | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a base model for the task and save it in `out_dir`. Returns the content of `provenance.json`.

    Without a `recipe` it trains for the task's `base_steps`, if it has some.
    The folder has model, tokenizer and provenance, and appears only when it is complete. On one CPU the same seed,
    versions and number of threads give the same weights. `threads` None keeps torch's setting. `device` is cpu or cuda,
    which suits larger models. Raises ConfigError if `out_dir` exists and is not an empty folder, and for a device that
    is not there.
    """
    recipe, target = recipe or base_recipe(task, {}), Path(out_dir).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{out_dir} exists and is not an empty folder. Choose another folder for the base model.")
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    where = training_device(device)
    tokenizer = make_tokenizer(task.vocabulary)
    with _threads(threads):
        model = new_model(tokenizer, recipe, seed)
        nn.Module.to(model, where)  # transformers' own has a type that checkers misread
        loss = _fit(model, tokenizer, task, recipe, seed, on_progress)
        model.cpu()  # where `measure_base` samples
        trained = time.monotonic()
        prompts = [task.heldout[i] for i in range(min(recipe.measured_prompts, len(task.heldout)))]
        figures = measure_base(model, tokenizer, task, prompts, recipe.measured_samples, seed, on_progress)
    provenance = {
        "task": task.name,
        "task_options": plain_options(task.options),
        "trace_policy": plain_options(task.clumsiness),
        "traces": "next-token prediction on noisy traces, never of held-out prompts; see vapo.bases.base_model",
        "recipe": asdict(recipe),
        "seed": seed,
        "threads": torch.get_num_threads() if threads is None else threads,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_seconds": round(trained - started, 1),
        "final_loss": round(loss, 4),
        "measured": figures,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    with tempfile.TemporaryDirectory(prefix=".make-base-", dir=target if target.exists() else target.parent) as scratch:
        folder = Path(scratch) / "model"
        save_model(model, tokenizer, folder)
        provenance["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        (folder / "provenance.json").write_text(json_text(provenance, indent=2) + "\n", encoding="utf-8")
        move_into(folder, target)
    return provenance


def training_device(name: str) -> torch.device:
    """The device with this name, cpu or cuda. Raises ConfigError for another name, and for cuda without a GPU."""
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"A base model is trained on cpu or cuda, got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here, so a base model cannot be trained on cuda. Leave the device at cpu.")
    return torch.device(name)


def make_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, split at white space; decoding joins words with single spaces."""
    words = [PAD, EOS, UNK, *vocabulary]
    if len(set(words)) != len(words) or any(word.split() != [word] for word in vocabulary):
        raise ConfigError("The words of a task's vocabulary must be different and without white space.")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNK))
    # The stub of this property has no setter.
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, seed: int) -> LlamaForCausalLM:
    """An untrained model with weights drawn from the seed. Does not change torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=1,  # one key-value head decodes several times faster on a CPU
        max_position_embeddings=recipe.max_positions,
        initializer_range=0.5 / math.sqrt(recipe.hidden_size),
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash("base model", seed))
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return model


def _fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: TracedTask,
    recipe: BaseRecipe,
    seed: int,
    on_progress: Progress | None,
) -> float:
    """Train the model in place. Returns the mean loss over the last tenth of the steps."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=recipe.peak_lr,
        betas=(0.9, 0.98),
    )
    model.train()
    batches, losses = trace_batches(task, tokenizer, recipe.batch_tokens, seed), list[float]()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * _schedule((step + 1) / recipe.steps, recipe.warmup)
        inputs, targets = (part.to(model.device) for part in next(batches))
        # Padding is on the right and attention is causal, so no attention mask is needed.
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if on_progress and (step % 10 == 9 or step + 1 == recipe.steps):
            on_progress("train", step + 1, recipe.steps, {"loss": losses[-1]})
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _schedule(progress: float, warmup: float) -> float:
    """The learning rate relative to its peak: linear warm-up, then cosine decay to 0.05."""
    if progress < warmup:
        return progress / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
