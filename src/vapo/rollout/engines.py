"""Makes an engine from its settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vapo.models.placing import to_device
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.engine_settings import (
    EngineSettings,
    GenerateEngineSettings,
    TorchEngineSettings,
    VllmEngineSettings,
)
from vapo.rollout.generate_engine import GenerateEngine
from vapo.rollout.torch_engine import TorchEngine
from vapo.rollout.vllm_engine import VllmEngine
from vapo.rollout.weight_exchange import outline


def sampler_of(settings: EngineSettings, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """What an engine samples from beside a model that is trained: a copy, so that samples never come from half-updated
    weights; without weights where the engine keeps them in another process."""
    sampler = outline(model) if isinstance(settings, VllmEngineSettings) else copy.deepcopy(model)
    return to_device(sampler.requires_grad_(False), dtype)


def make_engine(
    settings: EngineSettings,
    model: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]] | None = None,
    *,
    log: Path | None = None,
    trust_remote_code: bool = False,
    on_alarm: Callable[[str], None] | None = None,
    tensor_parallel: int = 1,
) -> RolloutEngine:
    """The engine that the settings describe, sampling from `model`.

    `weights` are those of a model that has none, see `sampler_of`; None are the model's own. `log` is the file for what
    an engine in another process writes, `on_alarm` is told when it has to be started again, or samples in a slower way
    than it was to. vLLM splits the model over `tensor_parallel` GPUs, all those that this process sees.
    """
    match settings:
        case TorchEngineSettings(slots=slots, graphs=graphs):
            return TorchEngine(model, slots=slots, graphs=graphs, on_alarm=on_alarm)
        case GenerateEngineSettings(slots=slots):
            return GenerateEngine(model, slots=slots)
        case VllmEngineSettings():
            return VllmEngine(
                settings,
                model,
                weights,
                log=log,
                trust_remote_code=trust_remote_code,
                on_alarm=on_alarm,
                tensor_parallel=tensor_parallel,
            )
