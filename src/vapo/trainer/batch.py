"""One step's responses as tensors. Rows are responses, columns response tokens; all rows see one clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vapo.algo.method import Algorithm, Gae
from vapo.models.networks import Sequences
from vapo.trainer.pricing import Prices
from vapo.types import Episode

RAGGED = {"tokens": "token_counts", "critic_tokens": "critic_token_counts"}
"""Fields with a tensor per row, and the name under which `Batch.tensors` keeps their lengths."""


@dataclass(frozen=True)
class Batch:
    """B responses, T = the longest. What a later stage fills in is None until then.

    `mask` (B, T) is True on the tokens that are learned from: those the policy wrote, but none of an invalid
    response, and none of a cut-off one where the method drops those. `outcomes` (B,) is the verdict's reward plus
    length shaping; `critic_outcomes` (B,) is what of it the critic foresees; `right` (B,) is the verdict alone, so that
    shaping cannot move a response in or out of the positive-LM set. `policy_rows` (B,) is False for responses that only
    the critic learns from. `turn_starts` (B, T) is True where a turn of the policy begins; None where a file of an
    earlier version does not say.

    `old_values` (B, T) is what the critic answered before any update, a residual critic's answer included; `values`
    (B, T) is the V that the advantages are measured from. `critic_shift` (B,) is what was taken off the critic's
    target: a residual critic's V is `old_values` + `critic_shift`. `critic_weights` (B,) weigh the critic's loss of a
    response, `sampler_weights` (B, T) the policy's of a token; `removed` (B, T) are the tokens that these cut.
    `others_mean` and `critic_others_mean` (B,) are means over the other learned responses to the prompt, of `outcomes`
    and of `critic_outcomes`; `critic_share` (B,) is the critic's share of a fitted or gated baseline.
    `critic_tokens` are `tokens` with what only the critic reads between prompt and response.

    `features[i]` (tokens, K) are the policy's hidden states of row i before any update, for a side critic. They are
    kept in memory only: files leave them out.
    """

    tokens: tuple[Tensor, ...]
    response_lengths: Tensor
    mask: Tensor
    groups: Tensor
    right: Tensor
    valid: Tensor
    truncated: Tensor
    outcomes: Tensor
    critic_outcomes: Tensor
    policy_rows: Tensor
    sampled_logp: Tensor
    turn_starts: Tensor | None = None
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None
    old_values: Tensor | None = None
    final_values: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    lam: Tensor | None = None
    others_mean: Tensor | None = None
    critic_others_mean: Tensor | None = None
    critic_share: Tensor | None = None
    critic_shift: Tensor | None = None
    critic_weights: Tensor | None = None
    sampler_weights: Tensor | None = None
    removed: Tensor | None = None
    critic_tokens: tuple[Tensor, ...] | None = None
    features: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def width(self) -> int:
        """T, the longest response."""
        return self.mask.shape[1]

    @property
    def num_tokens(self) -> int:
        """Response tokens in all, learned from or not."""
        return int(self.response_lengths.sum())

    @property
    def sequences(self) -> Sequences:
        """What a network needs to score the responses."""
        return Sequences(self.tokens, tuple(self.response_lengths.tolist()), self.features)

    @property
    def critic_sequences(self) -> Sequences:
        """What the critic needs to score the responses."""
        return replace(self.sequences, tokens=self.tokens if self.critic_tokens is None else self.critic_tokens)

    def for_policy(self) -> Batch:
        """The batch as the policy learns from it: without the tokens of responses that only the critic learns from,
        and without the features that the critic reads."""
        mask = self.mask if bool(self.policy_rows.all()) else self.mask & self.policy_rows[:, None]
        return replace(self, mask=mask, features=None)

    def unlearned(self) -> Batch:
        """The same responses, and no token to learn from."""
        return replace(self, mask=torch.zeros_like(self.mask))

    def select(self, rows: Tensor) -> Batch:
        """The given rows, in that order, with T cut to the longest of them."""
        width = max(1, int(self.response_lengths[rows].max())) if len(rows) else 1
        chosen: dict[str, object] = {"tokens": tuple(self.tokens[i] for i in rows.tolist())}
        if self.critic_tokens is not None:
            chosen["critic_tokens"] = tuple(self.critic_tokens[i] for i in rows.tolist())
        if self.features is not None:
            chosen["features"] = tuple(self.features[i] for i in rows.tolist())
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                chosen[f.name] = value[rows, :width] if value.ndim == 2 else value[rows]
        return replace(self, **chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but `features` under its name, `tokens` end to end with `token_counts`; `from_tensors` reads it
        back."""
        found = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        for name in RAGGED:
            if (rows := getattr(self, name)) is not None:
                found[name] = torch.cat(rows)
                found[RAGGED[name]] = torch.tensor([len(row) for row in rows])
        return {name: value.contiguous().cpu() for name, value in found.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The batch whose `tensors` these are, now or in an earlier version."""
        found: dict[str, Any] = dict(tensors)
        for name, counts in RAGGED.items():
            if name in found:
                found[name] = found[name].split(found.pop(counts).tolist())
        found.setdefault("critic_outcomes", found["outcomes"])
        found.setdefault("policy_rows", torch.ones_like(found["right"]))
        return cls(**found)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; itself where it is there already."""
        if self.mask.device == device:
            return self
        moved: dict[str, object] = {
            name: tuple(t.to(device) for t in rows)
            for name in (*RAGGED, "features")
            if (rows := getattr(self, name)) is not None
        }
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Tensor):
                moved[f.name] = value.to(device)
        return replace(self, **moved)


def collate(episodes: Sequence[Episode], prices: Prices) -> Batch:
    """Tensors of a step's episodes and their prices; groups are equal prompt ids."""
    responses = [e.token_ids for e in episodes]
    lengths = torch.tensor([len(response) for response in responses])
    width = max(1, int(lengths.max()))
    inside = torch.arange(width)[None] < lengths[:, None]
    ids: dict[str, int] = {}
    sampled = torch.zeros(len(episodes), width)
    sampled[inside] = torch.tensor([x for e in episodes for x in e.logprobs])
    written = torch.zeros(len(episodes), width, dtype=torch.bool)
    written[inside] = torch.tensor([policy for e in episodes for policy in e.written], dtype=torch.bool)
    starts = torch.zeros_like(written)
    starts[inside] = torch.tensor([first for e in episodes for first in e.turn_starts], dtype=torch.bool)
    return Batch(
        tokens=tuple(torch.tensor(e.prompt.token_ids + r) for e, r in zip(episodes, responses, strict=True)),
        critic_tokens=tuple(
            torch.tensor(e.prompt.token_ids + e.prompt.privileged_ids + r)
            for e, r in zip(episodes, responses, strict=True)
        )
        if any(e.prompt.privileged_ids for e in episodes)
        else None,
        response_lengths=lengths,
        mask=written & prices.learned[:, None],
        groups=torch.tensor([ids.setdefault(e.prompt.id, len(ids)) for e in episodes]),
        right=torch.tensor([e.verdict.right for e in episodes]),
        valid=torch.tensor([e.verdict.valid for e in episodes]),
        truncated=torch.tensor([e.truncated for e in episodes]),
        outcomes=prices.outcomes,
        critic_outcomes=prices.critic_outcomes,
        policy_rows=prices.policy_learned,
        sampled_logp=sampled,
        turn_starts=starts,
    )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches, in order; T is the longest's. A field must be set in all of them to be kept.

    Groups stay apart: equal prompts of different batches are different groups.
    """
    width = max(batch.width for batch in batches)
    joined: dict[str, object] = {"tokens": tuple(t for batch in batches for t in batch.tokens)}
    if all(batch.critic_tokens is not None for batch in batches):
        joined["critic_tokens"] = tuple(t for batch in batches for t in batch.critic_tokens or ())
    for f in fields(Batch):
        parts = [getattr(batch, f.name) for batch in batches]
        if any(part is None for part in parts):
            joined[f.name] = None
        elif f.name == "groups":
            starts = [0, *accumulate(int(part.max()) + 1 for part in parts)]
            joined[f.name] = torch.cat([part + start for part, start in zip(parts, starts, strict=False)])
        elif f.name == "features":
            joined[f.name] = tuple(row for part in parts for row in part)
        elif isinstance(parts[0], Tensor):
            joined[f.name] = torch.cat([_widened(part, width) if part.ndim == 2 else part for part in parts])
    return replace(batches[0], **joined)


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def minibatch_rows(batch: Batch, count: int, generator: torch.Generator) -> list[Tensor]:
    """The batch's row numbers shuffled and cut into `count` parts, as equal as can be."""
    return list(torch.randperm(len(batch), generator=generator).tensor_split(count))


def minibatches(batch: Batch, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """The batch shuffled and cut into `count` parts, as equal as can be."""
    for rows in minibatch_rows(batch, count, generator):
        yield batch.select(rows)


def num_minibatches(batch: Batch, algorithm: Algorithm) -> int:
    """Gradient steps of one pass: minibatches of the method's size, fewer when fewer responses are left."""
    return max(1, -(-len(batch) // algorithm.optimization.minibatch))


def critic_passes(batch: Batch, algorithm: Algorithm) -> tuple[int, int]:
    """(passes, gradient steps of each) with which the critic learns from a batch."""
    credit = algorithm.credit
    assert isinstance(credit, Gae)
    parts = credit.critic_minibatches or num_minibatches(batch, algorithm)
    return credit.critic_updates, max(1, min(len(batch), parts))


def micro_batches(batch: Batch, tokens: int, rows: Tensor | None = None) -> Iterator[Tensor]:
    """Indices of the given rows (None: all) in parts of at most `tokens` tokens; a longer single response stands alone.

    Rows without a trainable token are left out: they cost a forward pass and teach nothing. Rows of like
    length go together, so that the padded layout wastes little.
    """
    sizes = torch.tensor([len(t) for t in batch.critic_tokens or batch.tokens])
    useful = batch.mask.any(-1).nonzero()[:, 0] if rows is None else rows[batch.mask[rows].any(-1)]
    part: list[int] = []
    used = 0
    for row in useful[sizes[useful].argsort(stable=True)].tolist():
        size = int(sizes[row])
        if part and used + size > tokens:
            yield torch.tensor(part)
            part, used = [], 0
        part.append(row)
        used += size
    if part:
        yield torch.tensor(part)
