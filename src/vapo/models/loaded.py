"""Reads tensors and models from files into memory that torch allocates, and checks that nothing is missing.

A safetensors file is mapped into memory. A tensor left there starts where the file's header ends, at any multiple of 4
bytes. Matrix products on a CPU choose their kernels by that alignment and differ in the last bit, so equal weights from
two files would give different runs. torch allocates at multiples of 64 bytes on a CPU (512 on a GPU), and the copies
made here are contiguous, so that products depend on numbers and shapes only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from vapo.errors import ModelError, command
from vapo.models.shards import is_in_shards, load_whole

SHOWN = 3
"""Names that a message lists; it counts the others."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, copied to contiguous memory."""
    return {name: _copy(tensor) for name, tensor in load_file(path).items()}


def read_model(loader: Any, source: str | Path, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`loader.from_pretrained`: the model, perhaps mapped to its file, and the info for `check_complete`."""
    if is_in_shards(source):
        return _read_shards(loader, Path(source), **options)
    # `check_complete` refuses tensors of another shape by name; transformers' own error gives no names
    found = loader.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    return cast(tuple[PreTrainedModel, dict[str, Any]], found)


def _read_shards(
    loader: Any,
    folder: Path,
    *,
    config: PreTrainedConfig | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`read_model` of a folder of shards. They are named as in the class that was saved, and no other can read them.

    Raises ModelError for another class.
    """
    options = {key: value for key, value in options.items() if key not in ("dtype", "use_safetensors")}
    if config is None:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    saved_as = (getattr(config, "architectures", None) or [""])[0]
    if hasattr(loader, "from_config"):
        model = loader.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    else:
        model = loader(config)
    if type(model).__name__ != saved_as:
        raise ModelError(
            f"{folder} holds shards of a {saved_as}, which cannot be read as {type(model).__name__}. Make an ordinary "
            f"folder of them first: {command('export', folder, '--dtype', 'float32', '--out', 'FOLDER')}"
        )
    if (folder / GENERATION_CONFIG_NAME).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, load_whole(model, folder)


def own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Copy every parameter and buffer of the model to new memory, in place; tied ones stay tied."""
    copies: dict[Any, Tensor] = {}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            # tied parameters may be two objects with the same memory: copy each memory once
            memory = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if memory not in copies:
                copies[memory] = _copy(tensor)
            tensor.data = copies[memory]
    return model


def check_complete(
    model: PreTrainedModel,
    info: dict[str, Any],
    source: str | Path,
    what: str,
    *,
    may_lack: Collection[str] = (),
    saved_as: str = "",
) -> None:
    """Raise ModelError unless the source has every tensor of the model, except `may_lack`, and no others.

    `info` comes from `read_model`; transformers has removed tied tensors from it, and those it knows to be harmless. A
    source of another class may have parts that the model lacks (a vision tower, or the LM head for a critic): these are
    ignored. An extra tensor inside a part that the model has is an error: the model would compute something else than
    was trained. `saved_as` is the source's class; empty takes it from the configuration, or else the model's.
    """
    kind = type(model).__name__
    saved_as = saved_as or (getattr(model.config, "architectures", None) or [kind])[0]
    faults = {
        f"lacks tensors of {kind}, which would stay random": set(info["missing_keys"]) - set(may_lack),
        f"has tensors of another shape than {kind} with its config.json": [
            f"{name} {tuple(there)} instead of {tuple(here)}" for name, there, here in info["mismatched_keys"]
        ],
        f"has tensors that {kind} has no place for": [
            name for name in info["unexpected_keys"] if saved_as == kind or _inside(model, name)
        ],
    }
    if found := [f"it {fault}: {_shown(names)}" for fault, names in faults.items() if names]:
        raise ModelError(
            f"Cannot load the {what} from {source}: {'; '.join(found)}. It is damaged, not finished, or its "
            "config.json belongs to other weights. Save it again with `save_pretrained`."
        )


def _shown(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _inside(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of that name belongs inside one of the model's parts."""
    modules = dict(model.named_modules())
    prefix = model.base_model_prefix
    whole = name if name.startswith(f"{prefix}.") or name.split(".")[0] in modules else f"{prefix}.{name}"
    parents = [whole.rsplit(".", depth)[0] for depth in range(1, whole.count(".") + 1)]
    nearest = next((parent for parent in parents if parent in modules), "")
    return nearest not in ("", prefix)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
