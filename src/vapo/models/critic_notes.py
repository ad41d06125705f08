"""What a critic's configuration notes, and is saved with it: its head, where its values are read, what it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from vapo.algo.head_ranges import width
from vapo.algo.method import BoundedHead, Head, HistogramHead, LinearHead, SigmoidHead
from vapo.errors import ModelError

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


def value_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer of a token-classification model that maps hidden states to the outputs of its head."""
    heads = value_layers(model)
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


def is_saved_critic(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a critic that was trained here, not of a reward model from elsewhere."""
    return hasattr(config, VALUE_HEAD) or dict(config.id2label or {}) == {0: CRITIC_LABEL}


def head_entry(head: Head) -> dict[str, Any]:
    """What a configuration holds of a head: all that makes values of its outputs, not where it started."""
    return {name: value for name, value in asdict(head).items() if name != "start"}


def set_head(critic: PreTrainedModel, head: Head) -> None:
    """Note the head in the critic's configuration, which is saved with it; a linear one needs no note."""
    if not isinstance(head, LinearHead):
        setattr(critic.config, VALUE_HEAD, head_entry(head))


def same_values(one: Head, other: Head) -> bool:
    """Whether two heads make the same values of the same outputs."""
    return head_entry(one) == head_entry(other)


def check_head(source: str | Path, saved: Head, wanted: Head) -> None:
    """Raise ModelError if a saved critic's head makes other values than the wanted one."""
    if not same_values(wanted, saved):
        raise ModelError(
            f"The critic in {source} has {_head_words(saved)}, and the method reads {_head_words(wanted)}. Set "
            f"algorithm.credit.head={{{', '.join(f'{k}: {v}' for k, v in head_entry(saved).items())}}}, or start the "
            "critic from a base model."
        )


def check_one_label(source: str | Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raise ModelError if the source's head has more labels than the loaded model's one: no output is the reward.

    `info` tells how loading went (`read_model`). A configuration may forget how many labels there are.
    """
    heads = {f"{name}.weight" for name, layer in value_layers(model) if layer.out_features == 1}
    for name, there, _ in info["mismatched_keys"]:
        if name in heads and there[0] > 1:
            raise ModelError(
                f"{source} holds a classifier of {there[0]} labels, and a reward or a value is one number. Give a "
                "reward model with one label, or for a critic a base model."
            )


def _head_words(head: Head) -> str:
    entry = head_entry(head)
    numbers = ", ".join(f"{name} {value:g}" for name, value in entry.items() if name != "kind")
    return f"a {entry['kind']} head" + (f" ({numbers})" if numbers else "")


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


def value_at(critic: PreTrainedModel) -> ValueAt:
    """Where to read the critic's values; "tokens" for critics saved without this entry."""
    return getattr(critic.config, VALUE_AT, "tokens")


def set_value_at(critic: PreTrainedModel, at: ValueAt) -> None:
    """Set in the critic's configuration, which is saved with it, where to read its values."""
    setattr(critic.config, VALUE_AT, at)


def value_layers(model: PreTrainedModel) -> list[tuple[str, torch.nn.Linear]]:
    """The linear layers outside the backbone, with their names: a critic has one, its value head."""
    backbone = model.base_model_prefix
    return [(n, m) for n, m in model.named_children() if n != backbone and isinstance(m, torch.nn.Linear)]
