"""Makes an engine from its settings."""

from __future__ import annotations

from torch import nn

from vapo.rollout.engine import RolloutEngine
from vapo.rollout.engine_settings import EngineSettings, GenerateEngineSettings, TorchEngineSettings
from vapo.rollout.generate_engine import GenerateEngine
from vapo.rollout.torch_engine import TorchEngine


def make_engine(settings: EngineSettings, model: nn.Module) -> RolloutEngine:
    """The engine that the settings describe, sampling from `model`."""
    match settings:
        case TorchEngineSettings(slots=slots, graphs=graphs):
            return TorchEngine(model, slots=slots, graphs=graphs)
        case GenerateEngineSettings(slots=slots):
            return GenerateEngine(model, slots=slots)
