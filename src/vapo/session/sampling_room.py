"""How many tokens prompt and response may have together, and what sets that limit."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from vapo.models.pretrained import context_length
from vapo.rollout.decoder import context_of
from vapo.rollout.engine_settings import EngineSettings, sampling_context


@dataclass(frozen=True)
class SamplingRoom:
    """A limit of `tokens`, with its name and advice on how to have more of them."""

    tokens: int
    name: str
    advice: str


def sampling_room(config: PreTrainedConfig, engine: EngineSettings) -> SamplingRoom | None:
    """The room of a model in an engine; None if neither has a limit that is known before weights load.

    An engine takes a model with long rope up to its original context only, see `context_of`.
    """
    named = context_length(config)
    usable = None if named is None else context_of(config.get_text_config())
    tokens = sampling_context(usable, engine)
    if tokens is None:
        return None
    if tokens != usable:
        return SamplingRoom(tokens, "rollout.engine.context", "raise rollout.engine.context")
    longer = "take a model with a longer context"
    name = "the model's context" if usable == named else "the model's original_max_position_embeddings"
    return SamplingRoom(tokens, name, longer)
