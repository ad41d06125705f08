"""Loads tokenizers and models with `from_pretrained`, from a folder, a hub id or a .gguf file.

A folder of adapters is read as the model that they make of their base.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from vapo.algo.head_ranges import width
from vapo.algo.method import BoundedHead, Head, HistogramHead, LinearHead, SigmoidHead
from vapo.errors import ConfigError, DataError, ModelError
from vapo.hub import hub_access, not_cached
from vapo.json_text import json_text
from vapo.models.critic import classifier_of, made_critic, with_ids
from vapo.models.gguf import converted
from vapo.models.loaded import check_complete, own_memory, read_model
from vapo.models.lora import adapter_base, merge_adapters
from vapo.models.model_source import check_source, is_gguf
from vapo.models.side import SideConfig, SideModel, check_fits, describe, is_side_critic
from vapo.models.weight_sample import same_sample, weight_sample
from vapo.types import Prompt

SIDE_ADVICE = "Set model.critic_kind=side, with the policy it was trained beside."
CRITIC_LABEL = "value"
"""The label of a critic's output. It distinguishes a saved critic from a reward model."""
ValueAt = Literal["tokens", "end"]
"""Where a critic's values are valid: before each response token, or only after the last one (a reward model)."""
VALUE_AT = "vapo_value_at"
"""The entry of a saved critic's config.json that holds its `ValueAt`."""
PRIVILEGED = "vapo_privileged"
"""The entry of a saved critic's config.json that names the column it reads between prompt and response."""
RESIDUAL = "vapo_residual"
"""The entry of a saved critic's config.json that is true if its value lacks the mean of the group."""
POLICY_SAMPLE = "vapo_policy_sample"
"""The entry of a side critic's config.json with a sample of the weights of the policy it was saved beside."""
VALUE_HEAD = "vapo_value_head"
"""The entry of a saved critic's config.json that holds its head: the kind, and the numbers that make values of its
outputs. A critic without it has a linear head."""
_MESSAGE = "The answer is 42"
"""An assistant's message, for finding the token with which the chat template ends a turn."""


def read_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, unchecked; raises ModelError if there is none."""
    with _explained(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(_folder(source), trust_remote_code=trust_remote_code)


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError if it is missing or has no end-of-sequence token."""
    tokenizer = read_tokenizer(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {source} has no EOS token to end a response. "
            "Set `eos_token` in its tokenizer_config.json (or special_tokens_map.json)."
        )
    return tokenizer


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration, for checks before weights load."""
    with _explained(source, "model"):
        return AutoConfig.from_pretrained(_folder(source), trust_remote_code=trust_remote_code)


def count_parameters(config: PreTrainedConfig) -> int:
    """The number of parameters of the configuration's causal language model, without allocating them.

    0 if the model cannot be built without its weights.
    """
    model = skeleton(config)
    return 0 if model is None else model.num_parameters()


def skeleton(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The causal language model of a configuration, without memory for weights; None if it cannot be built so."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError):
        return None


def load_policy(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in float32: these are master weights, autocast lowers the precision."""
    architecture = (getattr(load_config(source, trust_remote_code=trust_remote_code), "architectures", None) or [""])[0]
    if "Classification" in architecture:
        raise ModelError(f"{source} holds a {architecture}, a critic or reward model. Give a policy/ folder.")
    with _explained(source, "policy"):
        model, info = read_model(
            AutoModelForCausalLM,
            _folder(source),
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    check_complete(model, info, source, "policy")
    model = own_memory(model)
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
    architectures = getattr(config, "architectures", None) or [""]
    is_classifier = "Classification" in architectures[0]
    head = saved_head(config) if head is None else head
    labels = [CRITIC_LABEL] if width(head) == 1 else [f"{CRITIC_LABEL}_{i}" for i in range(width(head))]
    with _explained(source, "critic"):
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
        model, info = read_model(
            kind,
            _folder(source),
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            **own,
        )
    head_names = {f"{name}.{p}" for name, module in _heads(model) for p, _ in module.named_parameters()}
    if is_classifier:  # the folder has a head, perhaps without a bias
        head_names = {name for name in head_names if name.endswith(".bias")}
    check_complete(model, info, source, "critic", may_lack=head_names)
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
        origin = f"backbone of {architectures[0]} in {source}, {_start_words(head)}"
        set_value_at(model, "tokens")
    elif not hasattr(config, VALUE_HEAD) and dict(config.id2label or {}) != {0: CRITIC_LABEL}:
        origin = f"reward model {architectures[0]} in {source}, head included"
        set_value_at(model, "end")  # its head was trained on the state after the last token
    else:
        origin = f"saved critic {architectures[0]} in {source}"
        set_value_at(model, "end" if getattr(config, VALUE_AT, None) == "end" else "tokens")
    model = own_memory(with_ids(model, num_ids))
    if adapter_base(source):
        merge_adapters(model, Path(source), head=value_head(model))
        origin = f"saved critic, adapters in {source}"
    return _without_dropout(model), origin


def _start_words(head: Head) -> str:
    """What a new head does, for the run's log."""
    if head.start == "mean":
        return "value head starts at the mean target of the first rollout"
    return f"value head set to {head.start:g}"


def critic_config(source: str | Path, head: Head | None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a critic that is not a side critic; reads no weights. ModelError if it cannot be read, and
    for a saved critic with another head than `head` (None: any)."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    if is_side_critic(config):
        raise ModelError(f"{source} holds a side critic, which reads a policy's hidden states. {SIDE_ADVICE}")
    saved = saved_head(config)
    if head is not None and "Classification" in (getattr(config, "architectures", None) or [""])[0]:
        _check_head(source, saved, head)
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
        _check_head(source, saved_head(config), head)
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
    if not any_weights and sample is not None and not same_sample(sample, weight_sample(policy)):
        raise ModelError(
            f"The side critic in {source} was saved beside a policy with other weights, whose hidden states it reads. "
            "Give that policy: the policy/ folder beside it, or the base model that it was pretrained on."
        )
    with _explained(source, "critic"):
        model, info = read_model(SideModel, _folder(source), dtype=torch.float32, use_safetensors=True)
    check_complete(model, info, source, "critic")
    side = cast(SideModel, own_memory(model))
    return cast(SideModel, _without_dropout(side)), f"{describe(side, policy)}, from {source}"


def value_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer of a token-classification model that maps hidden states to the outputs of its head."""
    heads = _heads(model)
    outputs = width(saved_head(model.config))
    if len(heads) != 1 or heads[0][1].out_features != outputs:
        raise ModelError(
            f"{type(model).__name__} has no single head of {outputs} outputs; a critic needs a token-classification "
            f"model with num_labels={outputs}."
        )
    return heads[0][1]


def saved_head(config: PreTrainedConfig) -> Head:
    """The head that a critic's configuration names; linear where it names none."""
    entry = dict(getattr(config, VALUE_HEAD, None) or {})
    kinds = {"linear": LinearHead, "bounded": BoundedHead, "sigmoid": SigmoidHead, "hl_gauss": HistogramHead}
    kind = entry.pop("kind", "linear")
    try:
        return kinds[kind](**entry)
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"The critic's config.json has a {VALUE_HEAD} that this version does not know: {kind}. Use the version "
            "that wrote it."
        ) from error


def head_entry(head: Head) -> dict[str, Any]:
    """What a configuration holds of a head: all that makes values of its outputs, not where it started."""
    return {name: value for name, value in asdict(head).items() if name != "start"}


def set_head(critic: PreTrainedModel, head: Head) -> None:
    """Note the head in the critic's configuration, which is saved with it; a linear one needs no note."""
    if not isinstance(head, LinearHead):
        setattr(critic.config, VALUE_HEAD, head_entry(head))


def set_policy_sample(critic: PreTrainedModel, sample: Sequence[float]) -> None:
    """Note in a side critic's configuration, which is saved with it, the policy that it stands beside."""
    setattr(critic.config, POLICY_SAMPLE, list(sample))


def set_privileged(critic: PreTrainedModel, column: str | None, source: str) -> None:
    """Note in the configuration of a critic which column it reads; ModelError if a trained one has read another."""
    before = getattr(critic.config, PRIVILEGED, None)
    if bool(value_head(critic).weight.any()) and before != column:
        trained, given = (f"the privileged column {name!r}" if name else "no column" for name in (before, column))
        raise ModelError(
            f"The critic in {source} was trained with {trained}, and the method gives it {given}. Set "
            f"algorithm.credit.privileged={before or 'null'}, or start the critic from a base model."
        )
    if column is not None:
        setattr(critic.config, PRIVILEGED, column)


def set_residual(critic: PreTrainedModel, residual: bool, source: str) -> None:
    """Note in a critic's configuration whether it learns what the group's mean leaves; ModelError if a trained one has
    learned the other."""
    before = bool(getattr(critic.config, RESIDUAL, False))
    if bool(value_head(critic).weight.any()) and before != residual:
        learned, baseline = ("what the mean of the group leaves", "group") if before else ("whole outcomes", "none")
        raise ModelError(
            f"The critic in {source} has learned {learned}, and the method asks for the other. Set "
            f"algorithm.credit.baseline={baseline}, or start the critic from a base model."
        )
    if residual:
        setattr(critic.config, RESIDUAL, True)


def same_values(one: Head, other: Head) -> bool:
    """Whether two heads make the same values of the same outputs."""
    return head_entry(one) == head_entry(other)


def _check_head(source: str | Path, saved: Head, wanted: Head) -> None:
    """Raise ModelError if a saved critic's head makes other values than the wanted one."""
    if not same_values(wanted, saved):
        raise ModelError(
            f"The critic in {source} has {_head_words(saved)}, and the method reads {_head_words(wanted)}. Set "
            f"algorithm.credit.head={{{', '.join(f'{k}: {v}' for k, v in head_entry(saved).items())}}}, or start the "
            "critic from a base model."
        )


def _head_words(head: Head) -> str:
    entry = head_entry(head)
    numbers = ", ".join(f"{name} {value:g}" for name, value in entry.items() if name != "kind")
    return f"a {entry['kind']} head" + (f" ({numbers})" if numbers else "")


def value_at(critic: PreTrainedModel) -> ValueAt:
    """Where to read the critic's values; "tokens" for critics saved without this entry."""
    return getattr(critic.config, VALUE_AT, "tokens")


def set_value_at(critic: PreTrainedModel, at: ValueAt) -> None:
    """Set in the critic's configuration, which is saved with it, where to read its values."""
    setattr(critic.config, VALUE_AT, at)


def context_length(config: PreTrainedConfig) -> int | None:
    """The longest prompt + response that the model has positions for; None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    form: Literal["auto", "chat", "plain"] = "auto",
    tools: Sequence[Mapping[str, Any]] = (),
) -> Prompt:
    """The prompt with its token ids. Messages go through the chat template, with the JSON schemas of `tools`, or become
    plain text.

    `auto` uses the template if the tokenizer has one. ConfigError for `chat` without a template, and for messages that
    the template refuses. A text that begins with a special token gets no BOS.
    """
    if isinstance(prompt.text, str):
        return replace(prompt, token_ids=_text_ids(tokenizer, prompt.text))
    if form == "plain" or (form == "auto" and tokenizer.chat_template is None):
        return replace(prompt, token_ids=_text_ids(tokenizer, plain_text(prompt.text)))
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"Prompt {prompt.id} is a list of messages, but the tokenizer has no chat template. "
            "Set model.prompt_format=plain, or take a model with a chat template."
        )
    return replace(prompt, token_ids=_templated(tokenizer, prompt, tools))


def with_privileged(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, column: str) -> Prompt:
    """The prompt with the tokens of one of its columns for the critic's eyes: `answer`, or a column of the data.

    Raises DataError for a prompt that lacks it.
    """
    content = prompt.answer if column == "answer" else prompt.columns.get(column)
    if content is None or content == "":
        known = (
            ", ".join(dict.fromkeys([*(["answer"] if prompt.answer is not None else []), *prompt.columns])) or "none"
        )
        raise DataError(
            f"Prompt {prompt.id} has no {column!r}, the column of algorithm.credit.privileged; it has: {known}. "
            "Add the column to the data, or set algorithm.credit.privileged to null."
        )
    text = content if isinstance(content, str) else json_text(content)
    ids = tokenizer(f"\n[Reference: {text}]\n", add_special_tokens=False)["input_ids"]
    return replace(prompt, privileged_ids=tuple(cast(list[int], ids)))


def plain_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as plain text in a form that base models have seen: a problem and its solution."""
    names = {"user": "Problem: ", "assistant": "Solution: "}
    return "\n\n".join([*(names.get(m["role"], "") + m["content"] for m in messages), "Solution:"])


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_ids: Collection[int]) -> str:
    """The text of a response without padding and without the end tokens at its end.

    Keeps other special tokens: verifiers look for `<think>` and `<answer>`, which are special tokens in some models.
    """
    kept = [token for token in token_ids if token != tokenizer.pad_token_id]
    while kept and kept[-1] in stop_ids:
        kept.pop()
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, source: str | Path, config: PreTrainedConfig | None = None
) -> tuple[int, ...]:
    """Every token that ends a response, in ascending order.

    These are the EOS token of the tokenizer; those of generation_config.json, where chat models have their end-of-turn
    token; those of config.json and of its text part, where converted and merged models have it; and the special token
    that ends an assistant's turn in the chat template. Ids of ordinary text are left out: configuration classes have
    defaults that may not fit the tokenizer. `config` is the model's, if it is loaded already.
    """
    config = load_config(source) if config is None else config
    try:
        with hub_access(source):
            generation = GenerationConfig.from_pretrained(_folder(source))
    except OSError:  # a folder without generation_config.json
        generation = None
    named = [getattr(settings, "eos_token_id", None) for settings in (generation, config, config.get_text_config())]
    ids = {int(i) for eos in named for i in (eos if isinstance(eos, (list, tuple)) else [eos]) if i is not None}
    ids &= {*_added_tokens(tokenizer), *_special_tokens(tokenizer).values()}
    return tuple(sorted({int(cast(int, tokenizer.eos_token_id)), *ids, *_turn_ends(tokenizer)}))


def _templated(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, tools: Sequence[Mapping[str, Any]]
) -> tuple[int, ...]:
    """The token ids of messages through the chat template; ConfigError with the template's message if it refuses."""
    messages = [dict(message) for message in prompt.text if not isinstance(message, str)]
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except Exception as error:  # the template is the model's code and may raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        system = any(message.get("role") == "system" for message in messages)
        advice = "Leave out the system message (task.system, or the one in the data), or set" if system else "Set"
        raise ConfigError(
            f"The tokenizer's chat template refuses prompt {prompt.id}: {reason}. {advice} model.prompt_format=plain."
        ) from error
    return tuple(cast(list[int], ids))


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    # a text that begins with a special token went through a template, which has added BOS
    rendered = text.startswith(tuple(_special_tokens(tokenizer)))
    ids = tokenizer(text, add_special_tokens=not rendered)["input_ids"]
    # some tokenizers add EOS to every text; a prompt must not end with it
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return tuple(ids)


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    return getattr(tokenizer, "added_tokens_decoder", {})


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every special token and its id, with or without a role such as BOS or EOS."""
    added = {str(token): i for i, token in _added_tokens(tokenizer).items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _turn_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special token that the chat template puts directly after an assistant's message, if any."""
    if tokenizer.chat_template is None:
        return set()
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _MESSAGE}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # `render` reports a template that fails
        return set()
    after = text.rpartition(_MESSAGE)[2].lstrip() if _MESSAGE in text else ""
    special = _special_tokens(tokenizer)
    ends = [token for token in special if after.startswith(token) and token != tokenizer.bos_token]
    return {special[max(ends, key=len)]} if ends else set()


def _heads(model: PreTrainedModel) -> list[tuple[str, torch.nn.Linear]]:
    backbone = model.base_model_prefix
    return [(n, m) for n, m in model.named_children() if n != backbone and isinstance(m, torch.nn.Linear)]


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Turn dropout off: scoring must use the policy that sampled."""
    return model.eval()


def _folder(source: str | Path) -> str:
    """The folder or hub id for `from_pretrained`."""
    if base := adapter_base(source):
        return _folder(base)
    return str(converted(Path(source)) if is_gguf(source) else source)


@contextmanager
def _explained(source: str | Path, what: str):
    """Turn an error of the loader into a ModelError of one line: what was to be loaded, the reason, and the fix."""
    check_source(source, what)
    verbosity, bars = transformers_logging.get_verbosity(), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    cut_off = ""
    try:
        with hub_access(source) as cut_off:
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if cut_off and not_cached(error):
            first = f"there is no such folder here, it is not in the cache, and {cut_off}."
        raise ModelError(
            f"Cannot load the {what} from {source}: {first} "
            "Give a folder written by `save_pretrained`, a .gguf file, or a hub id this machine can reach."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars is None:
            transformers_logging.enable_progress_bar()
