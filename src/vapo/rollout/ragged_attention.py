"""Attention of a decode step that costs what its rows hold, and not the widest row times all rows.

A step computes its dense layers for a whole number of rows, unused ones among them, and its attention would read every
row's cache as far as the longest one goes. So the rows are cut into runs of neighbours, each with a width of its own,
and unused rows are left out. A row's attention is computed by itself, so cutting changes no bit of it
(`attention_width` says why widths do not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "vapo_ragged"
"""The attention implementation under which transformers finds `ragged_attention`."""
CALL_BYTES = 300_000
"""What one more call of the kernel costs, in bytes that a core reads meanwhile: about 30 µs at 10 GB/s."""


@dataclass(frozen=True)
class Reach:
    """Rows `first` to `end` - 1 read `width` columns of the cache."""

    first: int
    end: int
    width: int

    @property
    def columns(self) -> int:
        """Columns that are read."""
        return (self.end - self.first) * self.width


def reaches(widths: Sequence[int], *, call: float) -> tuple[Reach, ...]:
    """Rows that read widths[i] columns each (0: an unused row), cut into runs that are read at their widest.

    A row joins the run before it as long as the columns read in vain cost no more than `call`, the price of one more
    call in columns. Unused rows between two of a run count as read.
    """
    runs: list[Reach] = []
    for row, width in enumerate(widths):
        if not width:
            continue
        own = Reach(row, row + 1, width)
        if runs:
            joined = Reach(runs[-1].first, own.end, max(runs[-1].width, width))
            if joined.columns - runs[-1].columns - own.columns <= call:
                runs[-1] = joined
                continue
        runs.append(own)
    return tuple(runs)


_present: ContextVar[tuple[Reach, ...]] = ContextVar("reaches", default=())


@contextmanager
def reading(runs: tuple[Reach, ...]) -> Iterator[None]:
    """Within: `ragged_attention` in this thread reads these runs; none means all rows at full width."""
    token = _present.set(runs)
    try:
        yield
    finally:
        _present.reset(token)


def ragged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA, run by run where `reading` names some: (B, 1, heads, head_dim); rows in no run are 0.

    A function for transformers' AttentionInterface. Queries (B, heads, 1, head_dim), keys and values (B, kv_heads,
    width, head_dim), an additive mask (B, 1, 1, width).
    """
    runs = _present.get()
    is_whole = len(runs) == 1 and (runs[0].first, runs[0].end) == (0, len(query))
    if not runs or is_whole or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    output: Tensor | None = None
    for run in runs:
        rows, columns = slice(run.first, run.end), slice(run.width)
        part, _ = sdpa_attention_forward(
            module,
            query[rows],
            key[rows, :, columns],
            value[rows, :, columns],
            attention_mask[rows, :, :, columns],
            **kwargs,
        )
        if output is None:
            output = part.new_zeros(len(query), *part.shape[1:])
        output[rows] = part
    assert output is not None
    return output, None


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, runs: tuple[Reach, ...], scale: float) -> Tensor:
    """`ragged_attention` for code that has no modules: (B, heads, 1, head_dim)."""
    gqa = query.shape[1] != keys.shape[1]
    if not runs or (len(runs) == 1 and (runs[0].first, runs[0].end) == (0, len(query))):
        return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale, enable_gqa=gqa)
    output = torch.zeros_like(query)
    for run in runs:
        rows, columns = slice(run.first, run.end), slice(run.width)
        output[rows] = F.scaled_dot_product_attention(
            query[rows],
            keys[rows, :, columns],
            values[rows, :, columns],
            mask[rows, :, :, columns],
            scale=scale,
            enable_gqa=gqa,
        )
    return output


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
