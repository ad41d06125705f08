"""Settings of the rollout engines: one type for each, distinguished by `kind`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class TorchEngineSettings:
    """The torch engine: KV cache, continuous batching; for models with attention in every layer."""

    slots: int = number(128, ge=1, unit="responses")
    """Most responses decoded at the same time; changes memory and speed, not results."""
    graphs: bool = True
    """On a GPU, replay decode steps as CUDA graphs: several times faster for small models. Checked against the plain
    step at the start, and left off where they differ."""
    kind: Literal["torch"] = "torch"

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.engine")


@dataclass(frozen=True)
class GenerateEngineSettings:
    """The slower engine on the model's own `generate`, for models that the torch engine refuses: recurrent and hybrid
    ones, attention in chunks, caches of another form."""

    slots: int = number(128, ge=1, unit="responses")
    """Most responses decoded at the same time; changes memory and speed, not results."""
    kind: Literal["generate"] = "generate"

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.engine")


EngineSettings = TorchEngineSettings | GenerateEngineSettings
DEFAULT_ENGINE = TorchEngineSettings()
