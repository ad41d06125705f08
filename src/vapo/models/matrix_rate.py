"""How fast this machine multiplies matrices, measured: the scale of MFU, and what `model.dtype: auto` decides by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
RATE_S = 0.12
"""Seconds for one rate, about; a first call on a GPU takes longer."""
LAYER_S = 0.12
ROWS, MOST_WIDTH = 512, 512
"""Of the layer that `layer_seconds` computes: it takes a tenth of a second on a slow core."""


@lru_cache(maxsize=8)
@torch.no_grad()
def matrix_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations per second of the fastest square product found: 2·n³ / seconds.

    n grows from 128 while a product takes little of the time that is left; the rest goes into repeating the best.
    Precision switches (TF32) and threads are those of the process: `threads` only says which they are, so that the
    answer may be kept. Another process on the same cores lowers what is found.
    """
    began, best, best_n = time.perf_counter(), 0.0, SIZES[0]
    for n in SIZES:
        product = _product(n, device, dtype)
        product()  # chooses a kernel
        seconds = _seconds(product, device)
        if 2 * n**3 / seconds > best:
            best, best_n = 2 * n**3 / seconds, n
        if time.perf_counter() - began + 20 * seconds > RATE_S:  # two products and their numbers at 8 times the work
            break
    product = _product(best_n, device, dtype)
    while time.perf_counter() - began < RATE_S:
        best = max(best, 2 * best_n**3 / _seconds(product, device))
    return best


@lru_cache(maxsize=8)
def layer_seconds(width: int, device: torch.device, threads: int, *, autocast: bool) -> float:
    """Seconds of a linear layer on 512 tokens as training computes it, forward and backward: float32 weights, and
    with `autocast` bfloat16 products, the conversions included. The best of a few tries."""
    generator = torch.Generator(device).manual_seed(0)
    width = min(width, MOST_WIDTH)
    states, weight = (torch.randn(n, width, generator=generator, device=device) for n in (ROWS, 4 * width))
    states.requires_grad_(True)
    weight.requires_grad_(True)

    def layer() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            answer = F.linear(states, weight)
        torch.autograd.grad(answer.float().sum(), (states, weight))

    began, best, tries = time.perf_counter(), math.inf, 0
    while tries < 2 or time.perf_counter() - began < LAYER_S:  # the first chooses kernels
        best, tries = min(best, _seconds(layer, device)), tries + 1
        if best > LAYER_S:
            break
    return best


def rate_words(rate: float) -> str:
    """A rate for people.

    >>> rate_words(61.4e9), rate_words(7.1e14)
    ('61 GFLOP/s', '710 TFLOP/s')
    """
    return f"{rate / 1e12:.0f} TFLOP/s" if rate >= 1e13 else f"{rate / 1e9:.0f} GFLOP/s"


def _product(n: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    # the run's random numbers stay as they are; zeros would be multiplied with less power, and faster, on a GPU
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    return lambda: F.linear(left, right)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@lru_cache(maxsize=1)
def copy_rate() -> float:
    """Bytes per second that this CPU reads from memory: the fastest of a few copies of 64 MiB, read and written."""
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    return 2 * 4 * 2**24 / min(_seconds(lambda: target.copy_(source), source.device) for _ in range(5))
