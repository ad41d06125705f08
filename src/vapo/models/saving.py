"""Models and optimizers to safetensors and JSON, and back, bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from vapo.errors import CheckpointError
from vapo.models.lora import has_lora, load_adapters, plain_weights, save_adapters


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """A Hugging Face folder that `from_pretrained` loads: one safetensors file, config, tokenizer, chat template.

    Adapters are added to the weights they adapt.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        merged = dict(plain_weights(model)) if has_lora(model) else None
        model.save_pretrained(folder, max_shard_size="1000GB", state_dict=merged)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, folder)
    finally:
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # a full disk makes the tokenizers library raise a bare Exception, which nothing could tell from a bug
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), str(error)) from error


def save_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """`save_model`, and beside it the adapters, if there are any, to go on from: sums do not come apart again."""
    save_model(model, tokenizer, folder)
    if has_lora(model):
        save_adapters(model, folder.with_name(f"{folder.name}_adapters.safetensors"))


def load_trained(model: PreTrainedModel, folder: Path) -> None:
    """Put what `save_trained` wrote back into the model, in place; raises CheckpointError on any mismatch."""
    if has_lora(model):
        load_adapters(model, folder.with_name(f"{folder.name}_adapters.safetensors"))
    else:
        load_weights(model, folder)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights `save_model` wrote back into the model, in place; raises CheckpointError on any mismatch."""
    tensors = load_file(folder / "model.safetensors")
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit the model: {error}") from error
    stored = {t.data_ptr() for name, t in model.state_dict(keep_vars=True).items() if name in tensors}
    lost = [n for n in missing if model.state_dict(keep_vars=True)[n].data_ptr() not in stored]  # tied ones are fine
    if lost or unexpected:
        raise CheckpointError(f"{folder} does not fit the model: missing {lost[:3]}, unexpected {unexpected[:3]}.")


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """All moments as `<parameter index>.<name>` tensors; hyper-parameters belong to the config, not here."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
    save_file(tensors, path, metadata={"content": json.dumps({"parameters": len(state)})})


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Put saved moments back; an optimizer that has not stepped yet has none."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(path).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    if state and max(state) >= sum(len(g["params"]) for g in groups):
        raise CheckpointError(f"{path} holds more parameters than the model has; it belongs to another model.")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
