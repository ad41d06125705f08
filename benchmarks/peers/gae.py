"""Advantages of 512 x 16,384 tokens: ours, loops over tokens as verl and TRL have them, and a copy of the tensor."""

from __future__ import annotations

import time

import torch
from protocol import Channel
from torch import Tensor

from vapo.algo import gae

ROWS, TOKENS, LAM = 512, 16_384, 0.95


def masked_loop(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """As verl: column by column from the end; a column outside of the mask hands on what it was given."""
    value, advantage, columns = torch.zeros(len(values)), torch.zeros(len(values)), []
    inside = mask.float()
    for t in reversed(range(values.shape[1])):
        now = rewards[:, t] + value - values[:, t] + LAM * advantage
        value = values[:, t] * inside[:, t] + (1 - inside[:, t]) * value
        advantage = now * inside[:, t] + (1 - inside[:, t]) * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1) * inside


def plain_loop(rewards: Tensor, values: Tensor, _: Tensor) -> Tensor:
    """As TRL's PPO: padding has reward and value 0, so no mask is read."""
    advantage, columns, width = torch.zeros(len(values)), [], values.shape[1]
    for t in reversed(range(width)):
        after = values[:, t + 1] if t + 1 < width else torch.zeros(len(values))
        advantage = rewards[:, t] + after - values[:, t] + LAM * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


WAYS = {
    "vapo.algo.gae": lambda r, v, m: gae(r, v, m, lam=LAM),
    "loop as verl's": masked_loop,
    "loop as TRL's": plain_loop,
    "copy of the tensor": lambda _, v, __: v.clone(),
}


def main() -> None:
    channel = Channel()
    torch.set_num_threads(channel.job["threads"])
    torch.manual_seed(0)
    lengths = torch.linspace(1000, TOKENS, ROWS).long()
    mask = torch.arange(TOKENS)[None] < lengths[:, None]
    values = torch.where(mask, torch.rand(ROWS, TOKENS), 0.0)
    rewards = torch.zeros(ROWS, TOKENS).scatter_(1, lengths[:, None] - 1, torch.rand(ROWS, 1))
    channel.send(name="gae", torch=torch.__version__)
    while True:
        channel.wait()
        seconds, results = {}, {}
        for name, way in WAYS.items():
            began = time.perf_counter()
            out = way(rewards, values, mask)
            seconds[name] = time.perf_counter() - began
            results[name] = out
        ours, loop = results["vapo.algo.gae"], results["loop as verl's"]
        channel.send(seconds=seconds, difference=float((ours - loop).abs().max()))


if __name__ == "__main__":
    main()
