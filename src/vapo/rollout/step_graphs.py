"""Decode steps as CUDA graphs: the GPU runs a recorded step at once, instead of waiting for Python's next kernel.

A step of a small model is hundreds of kernels of a few microseconds each, and starting them from Python takes several
times as long as running them. A graph holds one number of rows and one width of the cache. So both are taken from few
values (`rows_of`, `width_of`). A wider step reads masked columns, which weigh exactly 0; another size may take another
kernel, which rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vapo.rollout.kv_cache import round_up

WIDTH = 256
"""Columns: widths are multiples of it."""
WARM_UPS = 2
"""Steps run before one is recorded: libraries choose kernels and allocate what stays."""

Step = Callable[[Tensor, Tensor, int], Tensor]


class StepGraphs:
    """Records `step(ids, positions, width) -> logits` once for each number of rows and width, and replays it.

    A step may be run again with the same inputs: it writes the same numbers to the same places. What it reads besides
    its inputs (weights, cache, masks) stays where it is, or `clear` is called.
    """

    def __init__(self, step: Step, rows: int, device: torch.device) -> None:
        self._step = step
        self._rows = rows
        self._ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._logits: Tensor | None = None
        """What every graph writes its logits to: one of their own each would add up to gigabytes."""
        self._recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        """Forget what was recorded: cache or masks have moved."""
        self._recorded.clear()
        self._pool = torch.cuda.graph_pool_handle()  # one whose graphs are gone cannot be used again

    def run(self, ids: Tensor, positions: Tensor, width: int) -> Tensor:
        """The logits of a step (B, V), valid until the next step; B = len(ids)."""
        count = len(ids)
        self._ids[:count].copy_(ids)
        self._positions[:count].copy_(positions)
        key = (count, width)
        if key not in self._recorded:
            self._recorded[key] = self._record(count, width)
        graph, logits = self._recorded[key]
        graph.replay()
        return logits

    def _record(self, count: int, width: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        ids, positions = self._ids[:count], self._positions[:count]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS - 1):
                self._step(ids, positions, width)
            logits = self._step(ids, positions, width)
        if self._logits is None:
            self._logits = logits.new_empty(self._rows, logits.shape[1])
        kept = self._logits[:count]
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            kept.copy_(self._step(ids, positions, width))
        return graph, kept


def rows_of(count: int, most: int, bucket: int) -> int:
    """The rows to compute for `count` of them: `bucket` times a power of two, at most `most`."""
    rows = bucket
    while rows < count:
        rows *= 2
    return min(rows, most)


def width_of(length: int, capacity: int) -> int:
    """The columns to attend over for sequences of `length` tokens."""
    return min(round_up(length, WIDTH), capacity)
