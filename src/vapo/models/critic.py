"""A critic for any decoder: its backbone with one linear output per token, as transformers' own token classifiers are.

Where transformers has such a class, or at least a sequence classifier, `load_critic` takes that. Some hundred
architectures (Granite, Cohere, GLM-4 MoE, Ernie 4.5, the recurrent ones) have none; theirs is made here. A saved one is
an ordinary folder: `AutoModel` opens its backbone, and the head lies in the same file as `score.weight`, `score.bias`.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from vapo.models.backbone import backbone_of


def classifier_of(config: PreTrainedConfig) -> Any | None:
    """transformers' Auto class for one output per token of this architecture; None if it has none.

    A few (Gemma 3, OLMo 2) have a sequence classifier only; its head is per token all the same.
    """
    remote = getattr(config, "auto_map", None) or {}
    for mapping, auto in (
        (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification),
        (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification),
    ):
        if type(config) in mapping or auto.__name__ in remote:
            return auto
    return None


def known_ids(model: PreTrainedModel) -> int:
    """How many token ids the model has an embedding for: 0 up to, not including, this number."""
    return len(cast(nn.Embedding, model.get_input_embeddings()).weight)


@torch.no_grad()
def with_ids(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """The model with an embedding for at least `count` ids, in place. New ones are the mean of those that were there.

    A policy whose vocabulary is padded further than the critic's can draw an id that no token has.
    """
    known = known_ids(model)
    if known < count:
        # not the draw around the mean that transformers offers: a resumed run must find the same numbers
        table = cast(nn.Embedding, model.resize_token_embeddings(count, mean_resizing=False))
        table.weight[known:] = table.weight[:known].mean(dim=0)
    return model


def made_critic(
    config: PreTrainedConfig, label: str, *, trust_remote_code: bool = False
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """A token classifier with one output for an architecture without one, and the configuration to load it with.

    Names of weights are those of the causal language model, so that either's folder loads.
    """
    with torch.device("meta"):  # its structure, not its weights
        policy = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    backbone = backbone_of(policy)
    prefix = next(name for name, module in policy.named_children() if module is backbone)
    family = [c for c in type(backbone).__mro__ if issubclass(c, PreTrainedModel) and c is not PreTrainedModel][-1]
    own = copy.deepcopy(backbone.config)
    own.id2label, own.label2id = {0: label}, {label: 0}

    def init(self: Any, config: PreTrainedConfig) -> None:
        family.__init__(self, config)
        setattr(self, prefix, type(backbone)(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, 1)
        self.post_init()

    def forward(self: Any, input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        return self.score(self.base_model(input_ids=input_ids, **how).last_hidden_state)

    # transformers reads the source of a class's module to learn what its layers can do
    module = type(backbone).__module__
    name = type(policy).__name__.replace("ForCausalLM", "").replace("LMHeadModel", "") + "ForTokenClassification"
    body = {"__init__": init, "forward": forward, "base_model_prefix": prefix, "config_class": type(own)}
    return type(name, (family,), {**body, "__module__": module}), own
