"""Loads policies and critics with `from_pretrained`, from a folder, a hub id or a .gguf file.

A folder of adapters is read as the model that they make of their base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from vapo.algo.head_ranges import width
from vapo.algo.method import Head, LinearHead
from vapo.errors import ModelError
from vapo.models.critic import classifier_of, made_critic, with_ids
from vapo.models.critic_notes import (
    CRITIC_LABEL,
    POLICY_SAMPLE,
    VALUE_AT,
    check_head,
    check_one_label,
    is_saved_critic,
    saved_head,
    set_head,
    set_value_at,
    value_head,
    value_layers,
)
from vapo.models.loaded import check_complete, own_memory, read_model
from vapo.models.lora import adapter_base, adapter_ids, merge_adapters
from vapo.models.placing import to_device
from vapo.models.pretrained import explained, load_config, model_folder
from vapo.models.side import SideConfig, SideModel, check_fits, describe, is_side_critic
from vapo.models.tokens import load_tokenizer, render, stop_token_ids
from vapo.models.weight_sample import in_bfloat16, same_sample, weight_sample

__all__ = [  # all that is read from a model's folder; its tokenizer is the work of vapo.models.tokens
    "critic_config",
    "load_critic",
    "load_policy",
    "load_side_critic",
    "load_tokenizer",
    "render",
    "side_critic_config",
    "stop_token_ids",
]

SIDE_ADVICE = "Set model.critic_kind=side, with the policy it was trained beside."


def load_policy(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in float32: these are master weights, autocast lowers the precision."""
    architecture = (getattr(load_config(source, trust_remote_code=trust_remote_code), "architectures", None) or [""])[0]
    if "Classification" in architecture:
        raise ModelError(f"{source} holds a {architecture}, a critic or reward model. Give a policy/ folder.")
    with explained(source, "policy"):
        model, info = read_model(
            AutoModelForCausalLM,
            model_folder(source),
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    check_complete(model, info, source, "policy")
    model = _in_float32(model)
    if adapter_base(source):
        merge_adapters(model, Path(source))
    return _without_dropout(model)


def load_critic(
    source: str | Path, *, num_ids: int = 0, trust_remote_code: bool = False, head: Head | None = None
) -> tuple[PreTrainedModel, str]:
    """A token-classification model with the head's outputs per token, and a description of what it was loaded from.

    It has embeddings for at least `num_ids` token ids; those missing in the folder start as the mean of the others.

    A base model gives the backbone, and the head is 0. A reward model (sequence classification with one label) and a
    saved critic give backbone and head. `value_at` says where its value is to be read, `saved_head` how. `head` is the
    one wanted; None takes what the folder says, or a linear one. ModelError if a saved critic has another.
    """
    config = critic_config(source, head, trust_remote_code=trust_remote_code)
    architectures = getattr(config, "architectures", None) or [""]  # a folder made by hand may name none
    is_classifier = "Classification" in architectures[0]
    head = saved_head(config) if head is None else head
    labels = [CRITIC_LABEL] if width(head) == 1 else [f"{CRITIC_LABEL}_{i}" for i in range(width(head))]
    with explained(source, "critic"):
        own: dict[str, Any] = {}
        kind = classifier_of(config)
        if kind is AutoModelForSequenceClassification and (
            "TokenClassification" in architectures[0] or not (is_classifier or head == LinearHead())
        ):
            kind = None  # its head has no bias to start at a value
        if kind is None:
            kind, own["config"] = made_critic(config, labels, trust_remote_code=trust_remote_code)
        else:
            own |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
            own |= {"trust_remote_code": trust_remote_code}
        own |= {"dtype": torch.float32, "use_safetensors": True}  # never a pickle
        model, info = read_model(kind, model_folder(source), **own)
        if is_classifier and (mapping := _head_mapping(model, info)):
            model, info = read_model(kind, model_folder(source), key_mapping=mapping, **own)
            _save_under_own_names(model, mapping)
    check_one_label(source, model, info)
    head_names = {f"{name}.{p}" for name, module in value_layers(model) for p, _ in module.named_parameters()}
    if is_classifier:  # the folder has a head, perhaps without a bias
        head_names = {name for name in head_names if name.endswith(".bias")}
    check_complete(model, info, source, "critic", may_lack=head_names, saved_as=architectures[0] or "a language model")
    missing = set(info["missing_keys"])
    set_head(model, head)
    layer = value_head(model)
    weight_missing = any(name.endswith(".weight") for name in missing)
    with torch.no_grad():
        if weight_missing:
            layer.weight.zero_()
        if layer.bias is not None and any(name.endswith(".bias") for name in missing):
            layer.bias.zero_()
    if weight_missing:
        origin = f"backbone of {architectures[0] or config.model_type} in {source}, {_start_words(head)}"
        set_value_at(model, "tokens")
    elif not is_saved_critic(config):
        origin = f"reward model {architectures[0]} in {source}, head included"
        set_value_at(model, "end")  # its head was trained on the state after the last token
    else:
        origin = f"saved critic {architectures[0]} in {source}"
        set_value_at(model, "end" if getattr(config, VALUE_AT, None) == "end" else "tokens")
    adapted = adapter_base(source) is not None
    ids_of_adapters = adapter_ids(Path(source)) if adapted else 0
    model = _in_float32(with_ids(model, ids_of_adapters or num_ids))
    if adapted:
        merge_adapters(model, Path(source), head=value_head(model))
        origin = f"saved critic, adapters in {source}"
    return _without_dropout(with_ids(model, num_ids)), origin


def _head_mapping(model: PreTrainedModel, info: dict[str, Any]) -> dict[str, str]:
    """For `from_pretrained`: how a source names the head that the model lacks. Some architectures (GPT-2, GPT-NeoX,
    Falcon) have a `score` in a sequence classifier and a `classifier` in a token classifier. Empty where none fits."""
    heads = [name for name, _ in value_layers(model)]
    given = [name.removesuffix(".weight") for name in info["unexpected_keys"] if name.endswith(".weight")]
    if len(heads) != 1 or len(given) != 1 or "." in given[0] or f"{heads[0]}.weight" not in info["missing_keys"]:
        return {}
    return {rf"^{given[0]}\.": f"{heads[0]}."}


def _save_under_own_names(model: PreTrainedModel, mapping: dict[str, str]) -> None:
    """Undo that `save_pretrained` writes the head under the source's name, which the model's class does not read."""
    conversions = getattr(model, "_weight_conversions", None) or []
    vars(model)["_weight_conversions"] = [c for c in conversions if list(mapping) != c.source_patterns]


def critic_config(source: str | Path, head: Head | None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a critic that is not a side critic; reads no weights. ModelError if it cannot be read, and
    for a saved critic with another head than `head` (None: any)."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    if is_side_critic(config):
        raise ModelError(f"{source} holds a side critic, which reads a policy's hidden states. {SIDE_ADVICE}")
    saved = saved_head(config)
    if head is not None and "Classification" in (getattr(config, "architectures", None) or [""])[0]:
        check_head(source, saved, head)
    return config


def side_critic_config(
    source: str | Path, policy: PreTrainedModel | None, head: Head | None, *, trust_remote_code: bool = False
) -> SideConfig:
    """The configuration of a saved side critic; reads no weights. ModelError for another folder, and if the critic does
    not fit the policy, with or without weights, or has another head than `head` (None: any)."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    if not isinstance(config, SideConfig):
        raise ModelError(f"{source} holds no side critic. Leave model.critic out, or set model.critic_kind=full.")
    if head is not None:
        check_head(source, saved_head(config), head)
    if policy is not None:
        check_fits(config, policy, source)
    return config


def load_side_critic(
    source: str | Path,
    policy: PreTrainedModel,
    *,
    head: Head | None = None,
    any_weights: bool = False,
    trust_remote_code: bool = False,
) -> tuple[SideModel, str]:
    """A saved side critic for the policy, and a description of it.

    ModelError if it does not fit the policy or `head` (None: any), or was saved beside a policy with other weights:
    what it has learned to read is not there. `any_weights` is for a resume, whose weights are still to come.
    """
    config = side_critic_config(source, policy, head, trust_remote_code=trust_remote_code)
    sample = getattr(config, POLICY_SAMPLE, None)
    own = [] if any_weights or sample is None else weight_sample(policy)
    if own and not any(same_sample(sample or (), weights) for weights in (own, in_bfloat16(own))):
        raise ModelError(
            f"The side critic in {source} was saved beside a policy with other weights, whose hidden states it reads. "
            "Give that policy: the policy/ folder beside it, or the base model that it was pretrained on."
        )
    with explained(source, "critic"):
        model, info = read_model(SideModel, model_folder(source), dtype=torch.float32, use_safetensors=True)
    check_complete(model, info, source, "critic")
    side = cast(SideModel, own_memory(model))
    return cast(SideModel, _without_dropout(side)), f"{describe(side, policy)}, from {source}"


def _start_words(head: Head) -> str:
    """What a new head does, for the run's log."""
    if head.start == "mean":
        return "value head starts at the mean target of the first rollout"
    return f"value head set to {head.start:g}"


def _in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model in memory of its own, in float32: weights that transformers unpacks (float8) come in bfloat16."""
    return own_memory(to_device(model, torch.float32))


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Turn dropout off: scoring must use the policy that sampled."""
    return model.eval()
