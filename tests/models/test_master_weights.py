"""Weights in bfloat16 with float32 masters: what is rounded, what is not, and what a resume reads back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vapo.models.master_weights import MasterAdamW, halve

LR = 1e-4


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def halved() -> tuple[nn.Sequential, MasterAdamW]:
    half = model()
    masters = halve(half, keep=list(half[2].parameters()))
    return half, MasterAdamW(list(half.parameters()), masters, lr=LR, fused=True)


def backward(network: nn.Module, seed: int) -> None:
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    first = next(network.parameters()).dtype
    network[2](torch.tanh(network[0](rows.to(first))).float()).mean().backward()


def test_all_weights_but_the_head_are_rounded_and_masters_are_not():
    half, optimizer = halved()
    assert [p.dtype for p in half.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    masters = optimizer.param_groups[0]["params"]
    assert all(torch.equal(m, p) for m, p in zip(masters, model().parameters(), strict=True))
    assert masters[2] is half[2].weight


def test_steps_too_small_for_bfloat16_add_up():
    half, optimizer = halved()
    before = half[0].weight.detach().clone()
    large = before.abs() > 0.26  # bfloat16 numbers are .002 apart there, and a step is .0001
    moved = []
    for _ in range(40):
        backward(half, 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved.append(float((half[0].weight != before)[large].float().mean()))
    assert moved[0] < 0.2
    assert moved[-1] > 0.8
    assert torch.equal(half[0].weight, optimizer.param_groups[0]["params"][0].bfloat16())


def test_gradients_of_many_passes_are_added_in_float32():
    half, optimizer = halved()
    sums = torch.zeros(16, 8)
    for seed in range(50):
        alone, _ = halved()
        captured: list[torch.Tensor] = []
        alone[0].weight.register_hook(captured.append)
        backward(alone, seed)
        sums += captured[0].float()
        backward(half, seed)
    assert half[0].weight.grad is None
    torch.testing.assert_close(optimizer.param_groups[0]["params"][0].grad, sums, atol=1e-6, rtol=1e-6)


def test_a_pass_that_runs_out_of_memory_leaves_nothing_for_the_next(monkeypatch):
    half, optimizer = halved()
    backward(half, 0)
    wanted = [master.grad.clone() for master in optimizer.param_groups[0]["params"]]
    optimizer.zero_grad(set_to_none=True)

    def full(self: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room for a float32 gradient")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", full)
        with pytest.raises(torch.OutOfMemoryError):
            half[0](torch.ones(4, 8, dtype=torch.bfloat16)).mean().backward()
    optimizer.zero_grad(set_to_none=True)
    backward(half, 0)
    assert all(torch.equal(m.grad, w) for m, w in zip(optimizer.param_groups[0]["params"], wanted, strict=True))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_saved_state_has_the_masters_and_the_next_step_is_the_same(steps):
    half, optimizer = halved()
    for seed in range(steps):
        backward(half, seed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state = {n: {k: v.clone() for k, v in entry.items()} for n, entry in optimizer.state_dict()["state"].items()}
    assert set(state[0]) == ({"master", "step", "exp_avg", "exp_avg_sq"} if steps else {"master"})
    other, again = halved()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        for own, saved in zip(other[2].parameters(), half[2].parameters(), strict=True):
            own.copy_(saved)  # float32 weights are in the checkpoint's model
    again.load_state_dict({"state": state, "param_groups": again.state_dict()["param_groups"]})
    for network, adamw in ((half, optimizer), (other, again)):
        backward(network, 9)
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(half.parameters(), other.parameters(), strict=True))
    both = zip(optimizer.param_groups[0]["params"], again.param_groups[0]["params"], strict=True)
    assert all(torch.equal(a, b) for a, b in both)
