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
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol, cast

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vapo.bases.shipped import plain_options
from vapo.errors import ConfigError
from vapo.json_text import json_text
from vapo.models.loading import response_text
from vapo.types import Prompt, Task, stable_hash

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"  # the first three entries, in this order
PAD_ID, EOS_ID = 0, 1
IGNORED = -100

# (phase, done, total, figures): "train" counts optimizer steps, "measure" tokens of the longest response.
Progress = Callable[[str, int, int, dict[str, float]], None]


class TracedTask(Task, Protocol):
    """A task that can generate the traces its base model is trained on."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of prompts and responses, in the order of their token ids."""
        ...

    @property
    def max_response_tokens(self) -> int:
        """The task's response limit in tokens, stop token included."""
        ...

    @property
    def options(self) -> object:
        """The task's difficulty parameters as a dataclass; stored in the provenance."""
        ...

    @property
    def clumsiness(self) -> object:
        """The error rates of the solver that writes the traces, as a dataclass; stored in the provenance."""
        ...

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A prompt that is not held out, and the text of the solver with random errors."""
        ...


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
    peak_lr: float = 3e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    measured_prompts: int = 200  # held-out prompts in the figures of provenance.json
    measured_samples: int = 8


def make_base(
    task: TracedTask,
    seed: int,
    out_dir: str | Path,
    on_progress: Progress | None = None,
    threads: int | None = None,
    recipe: BaseRecipe | None = None,
) -> dict[str, Any]:
    """Train a base model for the task and save it in `out_dir`. Returns the content of `provenance.json`.

    The folder has model, tokenizer and provenance, and appears only when it is complete. The same seed, versions and
    number of threads give the same weights on one machine. `threads` None keeps torch's setting. Raises ConfigError
    if `out_dir` exists and is not an empty folder.
    """
    recipe, target = recipe or BaseRecipe(), Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder. Choose another folder for the base model.")
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = make_tokenizer(task.vocabulary)
    with _threads(threads):
        model = new_model(tokenizer, recipe, seed)
        loss = _fit(model, tokenizer, task, recipe, seed, on_progress)
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
    with tempfile.TemporaryDirectory(prefix=".make-base-", dir=target.parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        provenance["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        (folder / "provenance.json").write_text(json_text(provenance, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            target.rmdir()
        shutil.move(os.fspath(folder), target)
    return provenance


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


def measure_base(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: TracedTask,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The model's success rate (avg@samples), lengths and reasons for failure on prompts, at temperature 1.

    Greedy decoding is not representative: the most likely response is not a typical one if the wording is free.
    """
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    responses = sample_responses(model, tokenizer, repeated, task.max_response_tokens, seed, on_progress)
    verdicts = [
        task.verify(prompt, response_text(tokenizer, tokens, (EOS_ID,)))
        for prompt, (tokens, _) in zip(repeated, responses, strict=True)
    ]
    lengths = [len(tokens) for tokens, _ in responses]
    solved, wrong_because = set[str](), Counter[str]()
    for prompt, (_, stopped), verdict in zip(repeated, responses, verdicts, strict=True):
        if verdict.right:
            solved.add(prompt.id)
        elif not stopped:
            wrong_because["cut at the limit"] += 1
        else:
            wrong_because[verdict.kind] += 1
    count = len(repeated)
    return {
        "prompts": len(prompts),
        "samples_per_prompt": samples,
        "success": round(1 - wrong_because.total() / count, 4),
        "prompts_ever_solved": round(len(solved) / len(prompts), 4),
        "wrong_because": {why: round(n / count, 4) for why, n in wrong_because.most_common()},
        "mean_length": round(sum(lengths) / count, 1),
        "length_deciles": [round(decile) for decile in quantiles(lengths, n=10)] if count > 1 else lengths,
    }


@torch.no_grad()
def sample_responses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    max_tokens: int,
    seed: int,
    on_progress: Progress | None = None,
    rows: int = 800,
) -> list[tuple[list[int], bool]]:
    """`(response tokens, stopped)` per prompt at temperature 1; `stopped` is False if cut at `max_tokens`.

    A simple sampler for measuring new base models; training uses `vapo.rollout`.
    """
    generator = torch.Generator().manual_seed(stable_hash("measure base", seed))
    token_ids = [_encode(tokenizer, str(prompt.text)) for prompt in prompts]
    responses: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(token_ids[i]))
    batches = [
        same[at : at + rows]
        for _, group in groupby(by_length, key=lambda i: len(token_ids[i]))
        for same in [list(group)]
        for at in range(0, len(same), rows)
    ]
    total = len(batches) * max_tokens
    for number, active in enumerate(batches):  # the prompts of a batch have equal length, so it needs no padding
        cache = DynamicCache()
        inputs = torch.tensor([token_ids[i] for i in active])
        for step in range(max_tokens):
            logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
            chosen = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            for i, token in zip(active, chosen.squeeze(1).tolist(), strict=True):
                responses[i].append(token)
            going = torch.nonzero(chosen.squeeze(1) != EOS_ID).squeeze(1)
            if len(going) < len(active):
                active = [active[i] for i in going.tolist()]
                cache.batch_select_indices(going)
            if not active:
                break
            inputs = chosen[going]
            if on_progress and step % 16 == 0:
                on_progress("measure", number * max_tokens + step, total, {})
    if on_progress:
        on_progress("measure", total, total, {})
    return [(tokens, tokens[-1] == EOS_ID) for tokens in responses]


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
    batches, losses = _trace_batches(task, tokenizer, recipe, seed), list[float]()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * _schedule((step + 1) / recipe.steps, recipe.warmup)
        inputs, targets = next(batches)
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


def _trace_batches(
    task: TracedTask, tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of `(inputs, targets)` from new traces. Prompt tokens are inputs and are ignored as targets."""
    rng = random.Random(stable_hash("traces", task.name, seed))  # noqa: S311 - not for secrets
    while True:
        # Traces of similar length share a batch to reduce padding; the batches are shuffled.
        rows: list[tuple[list[int], int]] = []
        for _ in range(2048):
            prompt, response = task.noisy_trace(rng)
            prompt_ids, response_ids = _encode(tokenizer, str(prompt.text)), _encode(tokenizer, response)
            if len(response_ids) < task.max_response_tokens:
                response_ids.append(EOS_ID)  # a trace that was cut off at the limit gets no EOS
            rows.append((prompt_ids + response_ids, len(prompt_ids)))
        rows.sort(key=lambda row: len(row[0]))
        batches = list(_in_batches(rows, recipe.batch_tokens))
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(tokens) for tokens, _ in batch)
            padded = torch.tensor([tokens + [PAD_ID] * (width - len(tokens)) for tokens, _ in batch])
            columns = torch.arange(width)
            starts = torch.tensor([prompt_length for _, prompt_length in batch])[:, None]
            ends = torch.tensor([len(tokens) for tokens, _ in batch])[:, None]
            targets = padded.masked_fill((columns < starts) | (columns >= ends), IGNORED)
            yield padded[:, :-1], targets[:, 1:]


def _in_batches(rows: list[tuple[list[int], int]], response_tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """Batches of the `(tokens, length of the prompt)` rows, in order, of about `response_tokens` each."""
    batch: list[tuple[list[int], int]] = []
    tokens = 0
    for row in rows:
        batch.append(row)
        tokens += len(row[0]) - row[1]
        if tokens >= response_tokens:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return cast(list[int], tokenizer.encode(text, add_special_tokens=False))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
