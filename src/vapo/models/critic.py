"""A critic for any decoder: its backbone with one linear output per token, like transformers' token classifiers.

Where transformers has a token or sequence classifier, `load_critic` uses it. About a hundred architectures (Granite,
Cohere, GLM-4 MoE, Ernie 4.5, the recurrent ones) have neither, and this module makes one. A saved critic is an ordinary
folder: `AutoModel` loads its backbone, and the same file has the head as `score.weight` and `score.bias`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatch
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

from vapo.errors import ConfigError
from vapo.models.backbone import backbone_of


def classifier_of(config: PreTrainedConfig) -> Any | None:
    """transformers' Auto class with one output per token for this architecture; None if there is none.

    A few architectures (Gemma 3, OLMo 2) have a sequence classifier only; its head, too, gives one output per token.
    """
    remote = getattr(config, "auto_map", None) or {}
    if opens_with_transformers(config):
        return AutoModelForTokenClassification
    auto = AutoModelForSequenceClassification
    return auto if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or auto.__name__ in remote else None


def opens_with_transformers(config: PreTrainedConfig) -> bool:
    """Whether `AutoModelForTokenClassification` opens a critic with this configuration."""
    remote = getattr(config, "auto_map", None) or {}
    return type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING or AutoModelForTokenClassification.__name__ in remote


def known_ids(model: PreTrainedModel) -> int:
    """The number of token ids that the model has an embedding for."""
    return len(cast(nn.Embedding, model.get_input_embeddings()).weight)


@torch.no_grad()
def with_ids(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """Extend the model's embeddings to at least `count` ids, in place. New rows are the mean of the old ones.

    A policy whose vocabulary has more padding than the critic's can draw an id that the critic lacks.
    """
    known = known_ids(model)
    if known < count:
        # transformers would draw them at random around the mean; a resumed run needs the same numbers
        table = cast(nn.Embedding, model.resize_token_embeddings(count, mean_resizing=False))
        table.weight[known:] = table.weight[:known].mean(dim=0)
    return model


def freeze(critic: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Stop training the parameters whose names match one of the patterns (`*self_attn*`); never the head.

    Raises ConfigError for a pattern that matches none, and where all but the head would stand still.
    """
    names = dict(critic.named_parameters())
    head = {name for name in names if name.startswith(("score.", "classifier."))}
    for pattern in patterns:
        matched = [name for name in names if fnmatch(name, pattern) and name not in head]
        if not matched:
            shown = ", ".join(list(names)[:3])
            raise ConfigError(
                f"algorithm.credit.frozen: no parameter of the critic matches {pattern!r}. Its names are like {shown}."
            )
        for name in matched:
            names[name].requires_grad_(False)
    if patterns and not any(names[name].requires_grad for name in names if name not in head):
        raise ConfigError(
            f"algorithm.credit.frozen={list(patterns)} freezes all of the critic but its head, which then reads states "
            "that never learn about outcomes. Name a part, such as '*self_attn*'."
        )


def made_critic(
    config: PreTrainedConfig, labels: Sequence[str], *, trust_remote_code: bool = False
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """A token classifier with an output per label for an architecture without one, and the configuration to load it
    with.

    Weights are named as in the causal language model, so that the folders of both load.
    """
    with torch.device("meta"):  # the structure without weights
        policy = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    backbone = backbone_of(policy)
    prefix = next(name for name, module in policy.named_children() if module is backbone)
    family = [c for c in type(backbone).__mro__ if issubclass(c, PreTrainedModel) and c is not PreTrainedModel][-1]
    own = copy.deepcopy(backbone.config)
    own.id2label = dict(enumerate(labels))
    own.label2id = {label: i for i, label in own.id2label.items()}
    outputs = len(labels)

    def init(self: Any, config: PreTrainedConfig) -> None:
        family.__init__(self, config)
        setattr(self, prefix, type(backbone)(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, outputs)
        self.post_init()

    def forward(self: Any, input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        return self.score(self.base_model(input_ids=input_ids, **how).last_hidden_state)

    # transformers reads the source of the class's module to find what its layers support
    module = type(backbone).__module__
    name = type(policy).__name__.replace("ForCausalLM", "").replace("LMHeadModel", "") + "ForTokenClassification"
    body = {"__init__": init, "forward": forward, "base_model_prefix": prefix, "config_class": type(own)}
    return type(name, (family,), {**body, "__module__": module}), own
