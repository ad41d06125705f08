"""Log-probabilities of given tokens without ever holding (tokens x vocabulary) logits for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CPU_LOGITS = 2**24
"""Logits in one chunk on a CPU, whatever the vocabulary: 64 MiB in float32, a few times that with their gradient. With
a quarter of it a pass with a vocabulary of 152,000 took 1.7 times as long, because every chunk adds a gradient of the
whole output layer."""
GPU_SHARE = 64
"""On a GPU, a chunk's logits take this part of the card's memory: 2,048 rows of 150,000 logits on 80 GB. The part of
what is free would change from run to run, and with it the rounding."""


def most_logits(device: torch.device) -> int:
    """How many logits a chunk has on the device; the same number in every run on the machine."""
    if device.type != "cuda":
        return CPU_LOGITS
    return max(CPU_LOGITS, torch.cuda.get_device_properties(device).total_memory // (4 * GPU_SHARE))


def token_logps(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    vocab_size: int,
    max_logits: int | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log π(target | state) and, `with_entropy`, the entropy of π, both (N,) float32 in nats.

    `hidden` (N, d) are the states that predict `targets` (N,); `head` maps (n, d) -> (n, vocabulary) logits with
    `parameters`, which get gradients. Works through chunks of at most `max_logits` logits (None: `most_logits`); each
    is computed again in the backward pass instead of being kept, so peak memory is one chunk and its gradient. The
    entropy has no gradient.
    """
    rows = max(1, (max_logits or most_logits(hidden.device)) // vocab_size)
    if len(hidden) <= rows:
        logp, entropy = _chunk(hidden, targets, head, temperature, with_entropy)
    else:
        logp, entropy = _Chunked.apply(hidden, targets, head, temperature, with_entropy, rows, *parameters)
    return logp, entropy if with_entropy else None


class _Chunked(torch.autograd.Function):
    """`_chunk` over many rows, with a backward pass that recomputes each chunk.

    With torch's checkpointing, chunks free their logits only when Python's garbage collector runs: it held all of them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Any, temperature: float, with_entropy: bool,
                rows: int, *parameters: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(hidden, targets, *parameters)
        ctx.head, ctx.temperature, ctx.rows = head, temperature, rows
        device = hidden.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        parts = [
            _chunk(hidden[i : i + rows], targets[i : i + rows], head, temperature, with_entropy)
            for i in range(0, len(hidden), rows)
        ]
        logp, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, targets, *parameters = ctx.saved_tensors
        device, dtype, enabled = ctx.autocast
        inputs = [p for p in parameters if p.requires_grad]
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in inputs]
        grad_hidden = torch.empty_like(hidden)
        for i in range(0, len(hidden), ctx.rows):
            part = hidden[i : i + ctx.rows].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
                logp, _ = _chunk(part, targets[i : i + ctx.rows], ctx.head, ctx.temperature, False)
            grad, *more = torch.autograd.grad(logp, [part, *inputs], grads[0][i : i + ctx.rows])
            grad_hidden[i : i + ctx.rows] = grad
            for total, extra in zip(sums, more, strict=True):
                total += extra
        of_inputs = (total.to(p.dtype) for total, p in zip(sums, inputs, strict=True))
        of_parameters = [next(of_inputs) if p.requires_grad else None for p in parameters]
        return grad_hidden, None, None, None, None, None, *of_parameters


def _chunk(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    if temperature != 1.0:
        logits = logits.float() / temperature
    logps = torch.log_softmax(logits, -1, dtype=torch.float32)  # reads bfloat16 logits as they are: no float32 copy
    logp = logps.gather(-1, targets[:, None])[:, 0]
    if not with_entropy:
        return logp, logp.new_zeros(0)
    with torch.no_grad():
        return logp, -logps.exp().mul_(logps).sum(-1)
