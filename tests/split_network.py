"""A second `Network`: the rows of every minibatch are split over two processes, which sum their gradients.

The first process is the test's own, the second is started by `Pair`. Both hold the whole network.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from vapo.trainer.batch import Batch, micro_batches
from vapo.trainer.local_network import LocalNetwork, accumulate_gradient
from vapo.trainer.network import Gradient, Score, StepResult

Build = Callable[[], LocalNetwork]


class Pair:
    """The second process and the process group of both."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, folder / "meet"), daemon=True)
        self._process.start()
        _join(folder / "meet", 0)

    def tell(self, *command: Any) -> None:
        """Tell the second process to run the same call as the first."""
        self._pipe.send(command)

    def ask(self, *command: Any) -> Any:
        """The answer of the second process."""
        self.tell(*command)
        return self._pipe.recv()

    def close(self) -> None:
        self.tell("end")
        dist.destroy_process_group()
        self._process.join(20)
        self._process.kill()


def _join(meet: Path, rank: int) -> None:
    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2, timeout=timedelta(seconds=60))


def _serve(pipe: Any, meet: Path) -> None:
    torch.set_num_threads(1)
    _join(meet, 1)
    half: Half | None = None
    while True:
        name, *arguments = pipe.recv()
        if name == "end":
            dist.destroy_process_group()
            return
        if name == "build":
            half = Half(arguments[0](), 1)
            continue
        assert half is not None
        if name == "digest":
            pipe.send(half.digest())
        elif name in ("step", "start_at"):
            getattr(half.local, name)(*arguments)
        else:
            data, *rest = arguments
            getattr(half, name)(Batch.from_tensors(load(data)), *rest)


class Half:
    """One process's share of the work."""

    def __init__(self, local: LocalNetwork, rank: int) -> None:
        self.local, self.rank = local, rank

    def rows(self, batch: Batch) -> Tensor:
        """The first process takes the first half of the rows."""
        return torch.arange(len(batch)).tensor_split(2)[self.rank]

    def accumulate(self, minibatch: Batch, micro_batch_tokens: int) -> Gradient:
        local = self.local
        local.optimizer.zero_grad(set_to_none=True)
        pieces = micro_batches(minibatch, micro_batch_tokens, self.rows(minibatch))
        part = accumulate_gradient(local.objective, minibatch, pieces)
        for parameter in local.parameters:
            if parameter.grad is None:  # no gradient in this half
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
        dist.all_reduce(part.loss)
        local._loss = part.loss
        values = part.values
        if local.name == "critic":
            values = torch.zeros(minibatch.mask.shape) if values is None else values
            dist.all_reduce(values)
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, {name: float(value) for name, value in part.figures.items()})
        figures = {name: sum(half.get(name, 0.0) for half in gathered) for name in {**gathered[0], **gathered[1]}}
        return Gradient(figures, values)

    def score(self, batch: Batch, what: Sequence[Score], micro_batch_tokens: int) -> dict[str, Tensor]:
        mine = torch.zeros(len(batch), dtype=torch.bool)
        mine[self.rows(batch)] = True
        scored = self.local.score(
            replace(batch, mask=batch.mask & mine[:, None]), what, micro_batch_tokens=micro_batch_tokens
        )
        for tensor in scored.values():
            dist.all_reduce(tensor)
        return scored

    def digest(self) -> str:
        """A hash of the weights."""
        found = hashlib.sha256()
        for _, tensor in self.local.weights():
            found.update(tensor.detach().contiguous().numpy().tobytes())
        return found.hexdigest()


class SplitNetwork:
    """The `Network` protocol over a pair of processes. `build` makes the same network in both."""

    def __init__(self, pair: Pair, build: Build) -> None:
        self.pair, self.half = pair, Half(build(), 0)
        pair.tell("build", build)
        local = self.half.local
        self.name, self.origin, self.parameters = local.name, local.origin, local.parameters
        self.reads = local.reads
        self.checkpoint_bytes, self.published_bytes = local.checkpoint_bytes, local.published_bytes

    def score(self, batch: Batch, what: Sequence[Score], *, micro_batch_tokens: int) -> dict[str, Tensor]:
        self.pair.tell("score", save(batch.tensors()), what, micro_batch_tokens)
        return self.half.score(batch, what, micro_batch_tokens)

    def accumulate(self, minibatch: Batch, *, micro_batch_tokens: int) -> Gradient:
        self.pair.tell("accumulate", save(minibatch.tensors()), micro_batch_tokens)
        return self.half.accumulate(minibatch, micro_batch_tokens)

    def step(self, lr: float) -> StepResult:
        self.pair.tell("step", lr)
        return self.half.local.step(lr)

    def start_at(self, value: float) -> bool:
        self.pair.tell("start_at", value)
        return self.half.local.start_at(value)

    def weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        return self.half.local.weights(merged=merged)

    def copy_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        self.half.local.save(folder)

    def load(self, folder: Path) -> None:
        raise NotImplementedError

    def publish(self, folder: Path) -> None:
        self.half.local.publish(folder)

    def publish_adapters(self, folder: Path) -> bool:
        return self.half.local.publish_adapters(folder)
