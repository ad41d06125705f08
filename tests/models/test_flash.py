"""The flash kernel's wrapper without a GPU: which attention it takes, and what it asks of the kernel.

torch's kernel runs on GPUs only. A stand-in with its signature computes each segment by SDPA, so the wrapper must give
what the loop over segments gives; `benchmarks/gpu.py` compares the kernel itself.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vapo.models import flash
from vapo.models.backbone import packed_attention

LENGTHS = [1, 7, 30, 12]


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """varlen_attn: queries (tokens, heads, dim); a query sees `window_size` = (left, right) tokens beside itself."""
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    outputs = []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        left, right = window_size
        seen = (back >= -right) & ((back <= left) | (left < 0))
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], seen, scale=scale, enable_gqa=enable_gqa)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def kernel_without_gqa(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def use(monkeypatch, function) -> None:
    monkeypatch.setattr(flash, "varlen_attn", function)
    monkeypatch.setattr(flash, "_PARAMETERS", inspect.signature(function).parameters)


@pytest.mark.parametrize("function", [kernel, kernel_without_gqa])
@pytest.mark.parametrize(("window", "scaling"), [(None, None), (9, None), (None, 0.4), (1, 0.4)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_segments_attend_as_in_the_loop_with_the_same_gradients(monkeypatch, function, window, scaling, kv_heads):
    use(monkeypatch, function)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=generator, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    ours = flash.attention(query, key, value, ends, max(LENGTHS), scaling, window)
    loop, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, segment_lengths=LENGTHS, scaling=scaling, sliding_window=window
    )
    torch.testing.assert_close(ours, loop)
    weights = torch.randn(loop.shape, generator=generator)
    gradients = [torch.autograd.grad((o * weights).sum(), (query, key, value)) for o in (ours, loop)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_packed_attention_takes_the_kernel_where_it_can(monkeypatch):
    use(monkeypatch, kernel)
    monkeypatch.setattr(flash, "takes", lambda *_: True)
    query, key, value = torch.randn(3, 1, 2, sum(LENGTHS), 8)
    given = {"segment_lengths": LENGTHS, "scaling": None}
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    ours, _ = packed_attention(torch.nn.Identity(), query, key, value, None, segment_ends=ends, **given)
    loop, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **given)
    torch.testing.assert_close(ours, loop)
    assert ours.shape == loop.shape == (1, sum(LENGTHS), 2, 8)


def on_a_gpu(dim: int = 64, value_dim: int | None = None, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """A query and a value that say they are on a GPU, without one."""
    with FakeTensorMode():
        query = torch.empty(1, 4, 30, dim, dtype=dtype, device="cuda")
        return query, torch.empty(1, 2, 30, value_dim or dim, dtype=dtype, device="cuda")


def test_half_precision_on_a_gpu_since_ampere_is_taken(monkeypatch):
    use(monkeypatch, kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert flash.takes(*on_a_gpu(), 0.0)
    assert flash.takes(*on_a_gpu(dim=256, dtype=torch.float16), 0.0)
    assert not flash.takes(*on_a_gpu(), 0.1)
    assert not flash.takes(*on_a_gpu(dim=264), 0.0)
    assert not flash.takes(*on_a_gpu(dim=60), 0.0)
    assert not flash.takes(*on_a_gpu(value_dim=128), 0.0)
    assert not flash.takes(*on_a_gpu(dtype=torch.float32), 0.0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert not flash.takes(*on_a_gpu(), 0.0)


def test_float32_under_autocast_is_taken(monkeypatch):
    use(monkeypatch, kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    assert flash.takes(*on_a_gpu(dtype=torch.float32), 0.0)


def test_a_cpu_and_another_form_of_the_kernel_are_not_taken(monkeypatch):
    query = torch.zeros(1, 4, 30, 64, dtype=torch.bfloat16)
    use(monkeypatch, kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert not flash.takes(query, query, 0.0)
    use(monkeypatch, lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: query)
    assert not flash.available()
    assert not flash.takes(*on_a_gpu(), 0.0)


def test_ends_of_segments_are_made_on_a_gpu_only():
    assert flash.segment_ends([torch.zeros(3, dtype=torch.long), torch.zeros(5, dtype=torch.long)]) is None
    with FakeTensorMode():
        rows = [torch.zeros(n, dtype=torch.long, device="cuda") for n in LENGTHS]
        ends = flash.segment_ends(rows)
    assert ends is not None
    assert (ends.shape, ends.dtype, ends.device.type) == ((len(LENGTHS) + 1,), torch.int32, "cuda")
