"""Saves models and optimizers as safetensors and JSON, and loads them bit for bit."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from vapo.errors import CheckpointError, ModelError
from vapo.json_text import json_text
from vapo.models.loaded import check_complete, read_model
from vapo.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, has_lora, load_adapters, plain_weights, save_adapters
from vapo.models.master_weights import MASTER, MasterAdamW, without_masters
from vapo.models.shards import NOTES, StoredTensors, is_in_shards, load_parts
from vapo.models.whole import whole


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write a folder for `from_pretrained`: one safetensors file, config, tokenizer, chat template.

    Adapters are merged into the weights.
    """
    with _quiet():
        merged = dict(plain_weights(model)) if has_lora(model) else None
        model.save_pretrained(folder, max_shard_size="1000GB", state_dict=merged)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, folder)


def move_into(folder: Path, target: Path) -> None:
    """Move a finished folder to `target`, which is new or an empty folder of the same disk.

    An empty folder stays the same one, because a shell may stand in it.
    """
    if not target.exists():
        folder.rename(target)
        return
    for file in folder.iterdir():
        file.rename(target / file.name)
    folder.rmdir()


def save_frame(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """What `save_model` writes beside the weights."""
    save_weights(model, {}, folder)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder)


def save_weights(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """`save_model` of a model with these weights instead of its own, which may be on the meta device."""
    with _quiet():
        model.save_pretrained(folder, max_shard_size="1000GB", state_dict=dict(weights))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: no reports and no progress bars of transformers."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # on a full disk the tokenizers library raises a bare Exception; turn it into an OSError
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), str(error)) from error


def save_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Save the trained weights for a resume: the adapters as a PEFT folder if there are any, else the whole model."""
    if has_lora(model):
        save_adapters(model, folder)
    else:
        save_model(model, tokenizer, folder)


def load_trained(model: PreTrainedModel, folder: Path) -> None:
    """Load what `save_trained` wrote into the model, in place; CheckpointError on any mismatch."""
    if is_in_shards(folder):
        load_parts(model, folder)
    elif has_lora(model):
        beside = folder.with_name(f"{folder.name}_adapters.safetensors")  # formats 1 and 2
        load_adapters(model, beside if beside.exists() else folder / ADAPTER_WEIGHTS)
    else:
        load_weights(model, folder)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save_model` wrote into the model, in place; CheckpointError on any mismatch.

    In a model with adapters they become the base weights, and the adapters are set to 0.

    transformers writes some architectures (GPT-NeoX, most mixtures of experts) under other names and shapes. So its
    own reader loads a second model, whose tensors are copied.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder} holds adapters, but this run trains all weights. Set model.policy_lora and model.critic_lora "
            "back to their earlier values."
        )
    # a critic's head is float32 beside bfloat16 weights, and `model.dtype` is that of the first weight
    dtype = torch.float32 if len({p.dtype for p in model.parameters()}) > 1 else model.dtype
    try:
        with _quiet():
            stored, info = read_model(
                type(model), folder, config=copy.deepcopy(model.config), dtype=dtype, use_safetensors=True
            )
        check_complete(stored, info, folder, "model")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ModelError) as error:
        raise CheckpointError(f"{folder} does not fit the model: {error}") from error
    weights = stored.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".lora_" in name:
                tensor.zero_()
            else:
                tensor.copy_(weights[name.replace(".base_layer.", ".")])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All moments as `<parameter index>.<name>` tensors, sharded as the parameters are; an optimizer's hyper-parameters
    are in the config and not saved."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def moment_notes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is saved beside `moments`: the parameters' names by index, where the optimizer knows them."""
    return {"names": _names(optimizer)}


def whole_moments(optimizer: torch.optim.Optimizer, *, first: bool = True) -> dict[str, Tensor]:
    """`moments`, whole and on the CPU. Of a sharded model every process takes part, and only the `first` one gets
    them."""
    gathered = {}
    for name, value in moments(optimizer).items():
        moment = whole(value)
        if first:
            gathered[name] = moment.cpu()
    return gathered


def save_moments(tensors: Mapping[str, Tensor], path: Path, notes: Mapping[str, Any] | None = None) -> None:
    """Save what `whole_moments` returned, with `moment_notes`."""
    parameters = len({name.split(".", 1)[0] for name in tensors})
    save_file(dict(tensors), path, metadata={NOTES: json_text({"parameters": parameters, **(notes or {})})})


def load_optimizer(optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Load saved moments from a file or a folder of shards; an optimizer that has not stepped yet has none. Every
    process of a sharded model reads its part.

    Each parameter gets its own moments, by its name: one that was not trained before starts without. Where no names
    were saved (in earlier versions), the same parameters must be trained. CheckpointError for those of other ones.

    Of masters that a run with bfloat16 weights saved, float32 weights become the masters.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own_names = {name: index for index, name in enumerate(_names(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    with StoredTensors(place) as stored:
        there: list[str] = stored.notes.get("names") or []
        if there and own_names and not own_names.keys() & set(there):
            raise CheckpointError(
                f"{place} holds moments of none of the model's parameters. Set model.policy and model.critic back to "
                "the models of that run."
            )
        for entry in stored:
            text, key = entry.split(".", 1)
            index = own_names.get(there[int(text)]) if there and own_names else int(text)
            if index is None:  # it is no longer trained
                continue
            shape = stored.shape(entry)
            if index >= len(parameters) or (shape and shape != tuple(parameters[index].shape)):
                raise CheckpointError(
                    f"{place} holds moments of other parameters than those that are trained now. Set "
                    "algorithm.credit.frozen, model.policy_lora and model.critic_lora back to their earlier values."
                )
            own = parameters[index]
            fits = shape == tuple(own.shape)
            state.setdefault(index, {})[key] = stored.read_like(entry, own) if fits else stored.read(entry)
    if not isinstance(optimizer, MasterAdamW):
        with torch.no_grad():
            for index, entry in state.items():
                if MASTER in entry:
                    parameters[index].copy_(entry[MASTER])
        state = without_masters(state)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the optimizer's order; none where it was made without."""
    return [name for group in optimizer.param_groups for name in group.get("param_names", ())]
