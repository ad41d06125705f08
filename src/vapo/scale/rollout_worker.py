"""A rollout engine in an actor, and how samples travel."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vapo.scale.supervised import SupervisedActor
from vapo.types import Completion, Decoding, FinishReason, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vapo.rollout.engine import RolloutEngine
    from vapo.rollout.engine_settings import EngineSettings


class StaleWeightsError(Exception):
    """A worker was asked to sample from a version that it does not have: a bug of the pool."""


class _StoppedError(Exception):
    """Nobody waits for the samples."""


@dataclass(frozen=True)
class EngineSpec:
    """What a worker makes its engine of."""

    settings: EngineSettings
    outline: PreTrainedModel
    """The model's structure in the engine's precision, without weights."""
    threads: int
    """CPU threads."""
    trust_remote_code: bool = False
    log: Path | None = None
    """The file of an engine in another process; a temporary one where its folder is not there."""


@dataclass(frozen=True)
class PackedCompletions:
    """Completions as arrays: a response of 20,000 tokens is no list of 40,000 Python objects on its way."""

    lengths: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    logprobs: np.ndarray[Any, Any]
    stopped: np.ndarray[Any, Any]
    version: int


def pack_completions(completions: Sequence[Completion], version: int) -> PackedCompletions:
    """The completions, all of one version."""
    return PackedCompletions(
        np.array([len(c.token_ids) for c in completions], dtype=np.int64),
        np.array([t for c in completions for t in c.token_ids], dtype=np.int32),
        np.array([p for c in completions for p in c.logprobs], dtype=np.float64),
        np.array([c.finish_reason == "stop" for c in completions], dtype=bool),
        version,
    )


def unpack_completions(packed: PackedCompletions) -> list[Completion]:
    """The completions, exactly as they were."""
    ends = np.cumsum(packed.lengths).tolist()
    starts = [0, *ends[:-1]]
    return [
        Completion(
            tuple(packed.tokens[start:end].tolist()),
            tuple(packed.logprobs[start:end].tolist()),
            cast(FinishReason, "stop" if stopped else "length"),
            packed.version,
        )
        for start, end, stopped in zip(starts, ends, packed.stopped.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Request:
    """Samples to draw: how many of each prompt's token ids, and a seed for each."""

    prompts: tuple[tuple[str, tuple[int, ...], int], ...]
    """(id, token ids, number of samples)."""
    seeds: np.ndarray[Any, Any] = field(repr=False)
    how: Decoding
    version: int

    @property
    def samples(self) -> list[Prompt]:
        """One prompt per sample."""
        return [
            prompt for name, tokens, number in self.prompts for prompt in [Prompt(name, "", token_ids=tokens)] * number
        ]


class RolloutWorker(SupervisedActor):
    """An engine that takes one call at a time; `beat` and `stop` may come meanwhile, in another thread."""

    def __init__(self) -> None:
        super().__init__()
        self._engine: RolloutEngine | None = None
        self._threads = 1
        self._stopped = 0
        """Work up to this ticket is to end."""
        self._progress = (0, 0, 0, 0)

    def start(self, spec: EngineSpec, weights: Sequence[Any], version: int, gpus: Sequence[str] = ()) -> int:
        """Make the engine with these weights; the version that it has.

        `weights` are references to buckets (`weight_store`), `gpus` the names of the engine's GPUs where it is split
        over several.
        """
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        import torch

        from vapo.models.placing import best_device
        from vapo.rollout.decoder import copy_weights
        from vapo.rollout.engine_settings import VllmEngineSettings
        from vapo.rollout.engines import make_engine

        self._threads = spec.threads
        torch.set_num_threads(self._threads)
        given = self._read(weights)
        apart = isinstance(spec.settings, VllmEngineSettings)  # the weights are in its own process
        model = spec.outline if apart else materialize(spec.outline, best_device())
        if not apart:
            copy_weights(model, given)  # the engine looks at the model's logits before it takes weights
        log = spec.log if spec.log and spec.log.parent.is_dir() else None
        self._engine = make_engine(
            spec.settings,
            model,
            given,
            log=log,
            trust_remote_code=spec.trust_remote_code,
            tensor_parallel=max(1, len(gpus)),
        )
        return self.load(weights, version)

    def load(self, weights: Sequence[Any], version: int) -> int:
        """Take over weights; the version that it has now."""
        import torch

        assert self._engine is not None
        torch.set_num_threads(self._threads)
        self._engine.load_weights(self._read(weights), version)
        return self._engine.version

    def sample(self, ticket: int, request: Request) -> PackedCompletions | None:
        """Draw the samples; None if it was stopped meanwhile."""
        import torch

        assert self._engine is not None
        if self._engine.version != request.version:
            raise StaleWeightsError(
                f"asked for samples of version {request.version}, it has version {self._engine.version}"
            )
        torch.set_num_threads(self._threads)

        reports = count(1)

        def note(finished: int, tokens: int) -> None:
            self._progress = (ticket, finished, tokens, next(reports))
            if self._stopped >= ticket:
                raise _StoppedError

        self._progress = (ticket, 0, 0, 0)
        try:
            note(0, 0)
            seeds = [int(seed) for seed in request.seeds]
            completions = self._engine.generate(request.samples, request.how, seeds, note)
        except _StoppedError:
            return None
        return pack_completions(completions, request.version)

    def beat(self) -> tuple[int, ...]:
        """(ticket, finished samples, tokens, reports) of the present work.

        vLLM counts the tokens of finished samples only, so long responses are seen to get ahead by the engine's
        reports. An engine in another process ends that one itself where it hangs.
        """
        return self._progress

    def stop(self, ticket: int) -> None:
        """End the work with this ticket early."""
        self._stopped = max(self._stopped, ticket)

    @staticmethod
    def _read(weights: Sequence[Any]) -> list[tuple[str, Any]]:
        import ray

        from vapo.scale.weight_store import unpack

        return [pair for bucket in weights for pair in unpack(ray.get(bucket))]


def materialize(outline: PreTrainedModel, device: Any) -> PreTrainedModel:
    """The model with memory for its weights, which hold nothing yet; ties stay ties."""
    import torch
    from torch import nn

    own: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
        for parameter in outline.parameters()
    }
    return copy.deepcopy(outline, own).to(device).eval()
