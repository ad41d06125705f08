"""The engines by the names that the configuration has for them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from vapo.rollout.engine import RolloutEngine
from vapo.rollout.generate_engine import GenerateEngine
from vapo.rollout.torch_engine import TorchEngine

EngineName = Literal["torch", "generate"]


def make_engine(name: EngineName, model: nn.Module, *, slots: int) -> RolloutEngine:
    """`torch`: fast, for models with attention in every layer. `generate`: slow, by the model's own `generate`."""
    return {"torch": TorchEngine, "generate": GenerateEngine}[name](model, slots=slots)
