"""Settings of the rollout engines: one type for each, distinguished by `kind`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.engine")


@dataclass(frozen=True)
class GenerateEngineSettings:
    """The slower engine on the model's own `generate`, for models that the torch engine refuses: recurrent and hybrid
    ones, attention in chunks, caches of another form."""

    slots: int = number(128, ge=1, unit="responses")
    """Most responses decoded at the same time; changes memory and speed, not results."""
    kind: Literal["generate"] = "generate"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.engine")


@dataclass(frozen=True)
class VllmEngineSettings:
    """vLLM in a process of its own. It samples the same distribution, not the same tokens, when a step is repeated."""

    python: str | None = None
    """The Python interpreter of the environment that has vLLM; null is the one that runs vapo."""
    slots: int = number(128, ge=1, unit="responses")
    """Most responses decoded at the same time; changes memory and speed, not results."""
    context: int | None = number(None, ge=3, unit="tokens")
    """Longest prompt and response together; null takes the model's context. Less needs less cache."""
    memory_share: float = number(0.4, gt=0, lt=1, unit="share of the GPU's memory")
    """What vLLM takes of a GPU for weights and cache."""
    cache_gb: float = number(1.0, gt=0, unit="GiB")
    """Memory of vLLM's cache on a CPU."""
    sleep: bool = True
    """On a GPU: give weights and cache back while the trainer learns, and load them again for the next rollout."""
    eager: bool | None = None
    """Run the model without compiling it; null does so on a CPU, where compiling takes longer than it saves."""
    logp_gap: float | None = number(None, gt=0, unit="nats")
    """Largest mean difference of vLLM's and the trainer's log-probabilities of a fixed text, checked whenever weights
    are handed over; null is 1e-3 in float32 and 0.1 in bfloat16."""
    restarts: int = number(3, ge=0, unit="restarts")
    """How often in a run vLLM is started again when its process dies or hangs; then the run stops, to be resumed."""
    start_limit_s: float = number(900.0, gt=0, unit="seconds")
    """Longest time for vLLM to start and load the model."""
    answer_limit_s: float = number(300.0, gt=0, unit="seconds")
    """Longest silence of vLLM while it samples or takes over weights."""
    kind: Literal["vllm"] = "vllm"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.engine")


EngineSettings = TorchEngineSettings | GenerateEngineSettings | VllmEngineSettings
DEFAULT_ENGINE = TorchEngineSettings()


def sampling_context(context: int | None, engine: EngineSettings) -> int | None:
    """Tokens that prompt and response may have together: the model's context, or the engine's own if that is less."""
    if isinstance(engine, VllmEngineSettings) and engine.context is not None:
        return engine.context if context is None else min(context, engine.context)
    return context
