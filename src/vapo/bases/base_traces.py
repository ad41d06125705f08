"""Noisy traces as the tokens that a base model is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vapo.tasks.full_task import part_of
from vapo.types import Environment, Prompt, Task, stable_hash

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"  # the first three entries, in this order
PAD_ID, EOS_ID = 0, 1
IGNORED = -100


class TracedTask(Task, Protocol):
    """A task that can generate the traces its base model is trained on.

    A task of several turns has an `environment`, too (see `vapo.types.Task`). Each line of its traces is a turn of the
    policy, and the environment's answers follow from them.
    """

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


class TokenRow(NamedTuple):
    """A trace as tokens. `written` says which ones the solver wrote, not the prompt or the environment."""

    tokens: list[int]
    written: list[bool]
    prompt_length: int


def trace_batches(
    task: TracedTask, tokenizer: PreTrainedTokenizerFast, batch_tokens: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of `(inputs, targets)`, both (B, T), from new traces.

    Only tokens that the solver wrote are targets; those of the prompt and of the environment are read.
    """
    rng = random.Random(stable_hash("traces", task.name, seed))  # noqa: S311 - not for secrets
    while True:
        # Traces of similar length share a batch to reduce padding; the batches are shuffled.
        rows = [trace_tokens(task, tokenizer, *task.noisy_trace(rng)) for _ in range(2048)]
        rows.sort(key=lambda row: len(row.tokens))
        batches = list(_in_batches(rows, batch_tokens))
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(row.tokens) for row in batch)
            fill = [width - len(row.tokens) for row in batch]
            padded = torch.tensor([row.tokens + [PAD_ID] * n for row, n in zip(batch, fill, strict=True)])
            written = torch.tensor([row.written + [False] * n for row, n in zip(batch, fill, strict=True)])
            yield padded[:, :-1], padded.masked_fill(~written, IGNORED)[:, 1:]


def trace_tokens(task: TracedTask, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, trace: str) -> TokenRow:
    """The tokens of a prompt and of what follows it, as in an episode of the trainer."""
    tokens = encode(tokenizer, str(prompt.text))
    row = TokenRow(tokens, [False] * len(tokens), len(tokens))
    world = world_of(task, prompt)
    if world is None:
        response = encode(tokenizer, trace)
        # a trace that was cut off at the limit gets no EOS
        _add(row, response if len(response) >= task.max_response_tokens else [*response, EOS_ID], written=True)
        return row
    _add(row, encode(tokenizer, world.reset()), written=False)
    for line in trace.splitlines():
        _add(row, [*encode(tokenizer, line), EOS_ID], written=True)
        reply = world.step(line)
        if not reply.done:
            _add(row, encode(tokenizer, reply.text), written=False)
    return row


def world_of(task: Task, prompt: Prompt, seed: int = 0) -> Environment | None:
    """The environment of a prompt's episode, None if the task is one of a single turn."""
    make = part_of(task, "environment", None)
    return None if make is None else make(prompt, seed)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text. A base model's tokenizer has one for each word, so looking them up is 20 times faster."""
    return cast(list[int], tokenizer.convert_tokens_to_ids(text.split()))


def _add(row: TokenRow, tokens: list[int], *, written: bool) -> None:
    row.tokens.extend(tokens)
    row.written.extend([written] * len(tokens))


def _in_batches(rows: list[TokenRow], response_tokens: int) -> Iterator[list[TokenRow]]:
    """Batches of the rows, in order, of about `response_tokens` behind their prompts each."""
    batch: list[TokenRow] = []
    tokens = 0
    for row in rows:
        batch.append(row)
        tokens += len(row.tokens) - row.prompt_length
        if tokens >= response_tokens:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
