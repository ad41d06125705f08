"""Which numbers of rows the CPU's matrix library sums alike.

A matrix library picks a kernel by the shape of the product. Kernels add the same products in another order, so the last
bits of a row may depend on the number of rows, and on the row's place among them. MKL does this with AVX2: its kernels
take 6 rows at a time, and 2 rows that remain (of 32 or 80 rows) go through another one. With AVX-512 it sums all
multiples of 16 rows alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ROW_BUCKET = 16
"""Rows are computed in multiples of this: with fewer, matrix libraries take kernels for vectors."""
_MORE_BUCKETS = 2
"""How many buckets beyond the wanted rows may be computed to find a count that sums alike."""
_MOST_ROWS = 256
_MOST_WEIGHTS = 2**24
"""Limits of the check: it takes seconds for the output layer of a model with a large vocabulary."""


def exact_row_counts(model: nn.Module, wanted: int) -> list[int]:
    """Multiples of 16 for which every row of every dense product of the model has the bits that it has among 16 rows.

    Ascending, up to the first that is at least `wanted`, or two buckets beyond. Empty if the rows differ among 16
    already. Checked by computing: one random row, repeated, times random weights of the shape of each nn.Linear and
    Conv1D. Layers with more than 2^24 weights and counts above 256 are taken as exact, and so is everything on a GPU.
    """
    buckets = -(-wanted // ROW_BUCKET)
    counts = [ROW_BUCKET * n for n in range(1, buckets + _MORE_BUCKETS + 1)]
    if next(model.parameters()).device.type == "cpu":
        generator = torch.Generator().manual_seed(0)
        for product in _products(model, generator):
            row = product.row(generator)
            reference = product.compute(row.expand(ROW_BUCKET, -1).contiguous())[0]
            counts = [n for n in counts if n > _MOST_ROWS or product.is_exact(row, n, reference)]
    if not counts or counts[0] != ROW_BUCKET:
        return []
    enough = next((i for i, n in enumerate(counts) if n >= wanted), len(counts) - 1)
    return counts[: enough + 1]


class _Product:
    """A dense layer's product with random weights: the layer's own may be zeros or NaN."""

    def __init__(self, inner: int, dtype: torch.dtype, compute: Callable[[Tensor], Tensor]) -> None:
        self._inner = inner
        self._dtype = dtype
        self.compute = compute

    def row(self, generator: torch.Generator) -> Tensor:
        """One random row, (1, inner)."""
        return torch.randn(1, self._inner, generator=generator).to(self._dtype)

    def is_exact(self, row: Tensor, count: int, reference: Tensor) -> bool:
        """Whether `count` copies of the row all give `reference`, bit for bit."""
        result = self.compute(row.expand(count, -1).contiguous())
        return torch.equal(result, reference.expand_as(result))


@torch.no_grad()
def _products(model: nn.Module, generator: torch.Generator) -> list[_Product]:
    """One for each kind and shape of dense layer."""
    products: dict[tuple[object, ...], _Product] = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
            continue
        if module.weight.numel() > _MOST_WEIGHTS:
            continue
        shape, dtype, is_linear = tuple(module.weight.shape), module.weight.dtype, isinstance(module, nn.Linear)
        key = (is_linear, shape, dtype, module.bias is None)
        if key in products:
            continue
        inner, outer = shape[::-1] if is_linear else shape
        weight = torch.randn(shape, generator=generator).to(dtype)
        bias = None if module.bias is None else torch.randn(outer, generator=generator).to(dtype)
        products[key] = _Product(inner, dtype, _linear(weight, bias) if is_linear else _conv1d(weight, bias))
    return list(products.values())


def _linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: nn.functional.linear(x, weight, bias)


def _conv1d(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ weight if bias is None else torch.addmm(bias, x, weight)
