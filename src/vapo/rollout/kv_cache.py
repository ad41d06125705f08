"""Keys and values of many sequences in tensors that are allocated once and written in place.

`transformers`' own growing cache concatenates every layer's tensors for every token, which takes half of the time of
a small model's decode step. Here each sequence has a row, and its token at position p has column p. A decode step
writes one column per row and reads the first `width` columns of the first rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least `n`."""
    return -(-n // multiple) * multiple


def attention_width(length: int) -> int:
    """How many columns to attend over for `length` tokens, so that a result does not depend on longer rows.

    Masked columns add exact zeros, so two widths differ only in how the kernel cuts its sums into blocks. On
    CPU (torch 2.13) the flash kernel takes 512 columns at a time, vectors of 16 or 32 numbers, and the matrix
    product inside sums up to 384 columns in one go and more in two halves. Multiples of 32 up to 256 within
    the last block of 512, and else all of it, cut every sum in the same places: results are then bitwise
    equal for all widths, whatever the head size and the number of heads per key.
    """
    blocks, rest = divmod(length, 512)
    return blocks * 512 + (round_up(rest, 32) if rest <= 256 else 512)


class SlotCache(Cache):
    """A `transformers` cache of `rows` sequences with `capacity` columns, for one batch step at a time.

    Call `begin_prefill` or `begin_step`, then the model. Layers are allocated when the model first shows
    their shape (rows, kv_heads, capacity, head_dim); they start as zeros, because a masked column has weight
    0 and 0 times an uninitialised NaN is NaN.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.capacity = capacity
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._first_column: dict[int, Tensor] = {}
        self._prefill: tuple[Tensor, Tensor] | None = None
        self._positions = torch.zeros(0, dtype=torch.int64)
        self._width = 0
        self._index: dict[int, Tensor] = {}

    @property
    def column_bytes(self) -> float:
        """Bytes of one row's keys and values in one column, on average over the layers; 1 before a model has run."""
        layers = zip(self._keys, self._values, strict=True)
        sizes = [sum(s.shape[1] * s.shape[3] * s.itemsize for s in layer) for layer in layers]
        return sum(sizes) / len(sizes) if sizes else 1.0

    def begin_prefill(self, source: Tensor, target: Tensor) -> None:
        """Let the next forward pass store prompts from column 0: batch row source[i] to cache row target[i]."""
        self._prefill = (source, target)

    def begin_step(self, positions: Tensor, width: int) -> None:
        """Let the next forward pass write batch row i at row i, column positions[i], and read `width` columns."""
        self._prefill = None
        self._positions = positions
        self._width = width
        self._index.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new (batch, kv_heads, tokens, head_dim) states; return the keys and values to attend over."""
        if layer_idx >= len(self._keys):
            self._keys.append(self._allocate(key_states))
            self._values.append(self._allocate(value_states))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._prefill is not None:
            source, target = self._prefill
            length = key_states.shape[2]
            keys[target, :, :length] = key_states[source]
            values[target, :, :length] = value_states[source]
            return key_states, value_states  # a prompt starts a sequence: the cache has nothing before it

        batch, heads = key_states.shape[:2]
        index = self._flat_index(heads)
        keys.view(-1, keys.shape[3]).index_copy_(0, index, key_states.reshape(batch * heads, -1))
        values.view(-1, values.shape[3]).index_copy_(0, index, value_states.reshape(batch * heads, -1))
        return keys[:batch, :, : self._width], values[:batch, :, : self._width]

    def copy_rows(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first `width` columns of rows `source` to rows `target`; no row is in both."""
        for states in (*self._keys, *self._values):
            states[target, :, :width] = states[source, :, :width]

    def grow(self, capacity: int) -> None:
        """Widen to `capacity` columns and keep what is stored. Copies one layer at a time to save memory."""
        self._first_column.clear()
        self._index.clear()
        for layers in (self._keys, self._values):
            for i, old in enumerate(layers):
                layers[i] = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
                layers[i][:, :, : self.capacity] = old
        self.capacity = capacity

    def _allocate(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.rows, states.shape[1], self.capacity, states.shape[3])

    def _flat_index(self, heads: int) -> Tensor:
        """Where in (rows * heads * capacity) this step's states go; the same for all layers of as many heads."""
        if (index := self._index.get(heads)) is None:
            if (first := self._first_column.get(heads)) is None:
                first = torch.arange(self.rows * heads, device=self._positions.device) * self.capacity
                first = self._first_column[heads] = first.view(self.rows, heads)
            index = (first[: len(self._positions)] + self._positions[:, None]).view(-1)
            self._index[heads] = index
        return index

    # Methods that models and mask builders call. Decode steps pass positions and masks of their own, so the results
    # matter for prefill only, when nothing is cached.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: a prompt starts at position 0."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """0: a prompt's first query is at column 0."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """A prompt's queries attend over the prompt, from column 0."""
        return query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The number of columns."""
        return self.capacity

    @property
    def is_compileable(self) -> bool:
        """False: shapes differ between steps."""
        return False


class StepMasks:
    """Additive attention masks (rows, 1, 1, width) of a decode step, updated in place from step to step.

    A row's mask changes in one column per token (two with a sliding window), so a step costs one or two
    small writes, however many layers read it. `window` is how many tokens a query sees, itself included;
    None means all. SDPA would turn a bool mask into such a float mask once per layer.
    """

    def __init__(self, rows: int, capacity: int, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
        # Each step masks the column that left the window. While the window is not full yet, that write falls into the
        # guard columns in front of column 0. The guard is rounded up because kernels need aligned rows.
        self._guard = round_up(window or 0, 32)
        self._window = window
        self._mask = torch.full((rows, self._guard + capacity), float("-inf"), dtype=dtype, device=device)
        self._first = torch.arange(rows, device=device) * self._mask.shape[1] + self._guard
        self._columns = torch.arange(capacity, device=device)

    def reset(self, rows: Tensor, positions: Tensor) -> None:
        """Unmask the columns before `positions`, where the rows' next tokens go; mask all others."""
        seen = self._columns < positions[:, None]
        if self._window is not None:
            seen &= self._columns >= positions[:, None] - self._window
        opened = torch.zeros(seen.shape, dtype=self._mask.dtype, device=seen.device)
        self._mask[rows, self._guard :] = opened.masked_fill_(~seen, float("-inf"))

    def step(self, positions: Tensor, width: int) -> Tensor:
        """Masks for queries at `positions` (row i in row i), (len(positions), 1, 1, width)."""
        index = self._first[: len(positions)] + positions
        flat = self._mask.view(-1)
        flat.index_fill_(0, index, 0.0)
        if self._window is not None:
            flat.index_fill_(0, index - self._window, float("-inf"))
        return self._mask[: len(positions), None, None, self._guard : self._guard + width]
