"""Heads of a critic: values and losses against numbers worked by hand, where they start, the room a histogram needs."""

import math

import pytest
import torch

from vapo.algo import bounded_value, head_loss, head_values, histogram_target, histogram_value, value_loss
from vapo.algo.head_ranges import width, with_range
from vapo.algo.heads import start_bias
from vapo.algo.method import BoundedHead, HistogramHead, LinearHead, SigmoidHead
from vapo.errors import ConfigError

HEADS = [LinearHead(), BoundedHead(), SigmoidHead(), HistogramHead()]


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_bounded_value():
    z = torch.tensor([-10.0, -2.0, -1.0, 0.0, 1.0, 2.0, 10.0])
    close(bounded_value(z, low=0, high=1), [0.0317255, 0.1475836, 0.25, 0.5, 0.75, 0.8524164, 0.9682746])
    close(bounded_value(torch.tensor([-1.0, 1.0]), low=-1, high=1), [-0.5, 0.5])


def test_the_smeared_target_and_its_bias_at_the_edge():
    target = histogram_target(torch.tensor([0.6, 1.0]), low=0, high=1, bins=5, sigma=0.15)
    centres = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(
        target[0], torch.tensor([0.003813, 0.08772, 0.410374, 0.410374, 0.08772]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(target @ centres, torch.tensor([0.598093, 0.861971]), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.sum(-1), torch.ones(2))
    wider = histogram_target(torch.tensor([1.0]), low=-0.1, high=1.1, bins=6, sigma=0.15)
    assert float(histogram_value(wider.log(), low=-0.1, high=1.1)) == pytest.approx(0.926242, abs=1e-5)


def test_room_beside_the_targets_removes_the_bias():
    head = with_range(HistogramHead(), 0.0, 1.0)
    sigma = head.sigma_ratio * (head.high - head.low) / head.bins
    assert head.low == pytest.approx(-3 * sigma)
    assert head.high == pytest.approx(1 + 3 * sigma)
    target = histogram_target(torch.tensor([0.0, 1.0]), low=head.low, high=head.high, bins=head.bins, sigma=sigma)
    values = histogram_value(target.log(), low=head.low, high=head.high)
    torch.testing.assert_close(values, torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


def test_the_sigmoid_heads_loss_is_binary_cross_entropy():
    z = torch.tensor([[math.log(0.8 / 0.2)]] * 2)
    close(head_loss(with_range(SigmoidHead(), 0, 1), z, torch.tensor([1.0, 0.0])), [0.2231436, 1.6094379])


def test_a_linear_heads_loss_is_the_plain_value_loss():
    z, y, old = torch.tensor([[0.9], [0.4]]), torch.ones(2), torch.full((2,), 0.5)
    close(head_loss(LinearHead(), z, y, old_values=old, clip=0.2), [0.045, 0.18])
    torch.testing.assert_close(head_loss(LinearHead(), z, y), value_loss(z[:, 0], y))


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_a_new_head_starts_at_the_value_it_is_given(head):
    head = with_range(head, -1.0, 1.0)
    for value in (-0.6, 0.0, 0.52):  # a tenth of the range from the edge at least
        z = start_bias(head, value)
        assert z.shape == (width(head),)
        assert float(head_values(head, z[None])) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_gradient_descent_on_a_heads_loss_reaches_the_mean_of_its_targets(head):
    head = with_range(head, 0.0, 1.0)
    z = start_bias(head, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        head_loss(head, z.expand(4, -1), torch.tensor([1.0, 0.0, 0.0, 0.0])).mean().backward()
        optimizer.step()
    assert float(head_values(head, z.detach()[None])) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_no_gradient_reaches_the_targets(head):
    head = with_range(head, 0.0, 1.0)
    z, y = torch.zeros(3, width(head), requires_grad=True), torch.full((3,), 0.3, requires_grad=True)
    head_loss(head, z, y).sum().backward()
    assert y.grad is None
    assert z.grad is not None
    assert bool(z.grad.abs().sum() > 0)


def test_a_range_that_does_not_hold_the_targets_is_refused():
    with pytest.raises(ConfigError, match=r"\[0, 1\] does not hold the critic's targets, which lie in \[-1, 1\]"):
        with_range(HistogramHead(low=0.0, high=1.0), -1.0, 1.0)
    with pytest.raises(ConfigError, match=r"start=3 lies outside of the head's range \[0, 1\]"):
        with_range(BoundedHead(start=3.0), 0.0, 1.0)
    with pytest.raises(ConfigError, match=r"more than 4\.5 bins"):
        with_range(HistogramHead(bins=4), 0.0, 1.0)


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_a_head_that_starts_at_the_edge_still_learns(head, start):
    # a rollout without a right answer has a mean outcome of 0
    head = with_range(head, 0.0, 1.0)
    z = start_bias(head, start).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        head_loss(head, z.expand(2, -1), torch.tensor([1.0, 0.0])).mean().backward()
        optimizer.step()
    assert float(head_values(head, z.detach()[None])) == pytest.approx(0.5, abs=0.1)


def test_a_target_outside_of_the_support_counts_as_its_edge():
    target = histogram_target(torch.tensor([-50.0, 50.0]), low=0, high=1, bins=4, sigma=0.1)
    torch.testing.assert_close(target.sum(-1), torch.ones(2))
    assert target.argmax(-1).tolist() == [0, 3]
