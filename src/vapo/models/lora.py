"""Low-rank adapters on a policy or a critic, with peft. They reduce the optimizer's memory.

peft can also open their folders: `PeftModel.from_pretrained(base, folder)`.

W x becomes W x + (α/r) B A x in every linear layer of the backbone, with W fixed (Hu et al. 2021, arXiv:2106.09685,
eq. 3). B starts at 0, so the first policy is the base.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from vapo.errors import CheckpointError, ConfigError, ModelError
from vapo.json_text import json_text
from vapo.models.backbone import backbone_of
from vapo.models.critic import known_ids
from vapo.models.loaded import read_tensors
from vapo.models.model_source import ADAPTER_CONFIG
from vapo.models.whole import whole

ADAPTER = "vapo"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base"
"""The entry of that file's metadata about the weights below the adapters."""
PEFT_PREFIX = "base_model.model."
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""The entries of an adapter_config.json for W + (α/r) B A; with other values peft computes something else."""


def add_lora(model: PreTrainedModel, rank: int, alpha: float | None, *, keep: torch.nn.Module | None = None) -> None:
    """Add adapters of this rank to the model, in place, and freeze all other weights except `keep` (a critic's head).

    `alpha` None means twice the rank. A is drawn from torch's generator. Raises ConfigError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("Low-rank adapters need peft: pip install 'vapo[lora]'.") from error
    backbone = backbone_of(model)
    # peft gets a plain module, because for some mixtures of experts that it knows, it replaces linear layers (shared
    # experts, dense blocks) by the experts' fused tensors
    below = torch.nn.ModuleDict({"backbone": backbone})
    targets = [
        f"backbone.{name}"
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and _is_plain(module) and not _read_directly(backbone, name)
    ]
    if not targets:
        raise ConfigError(
            f"{type(model).__name__} has no linear layers for adapters. Train all weights: model.policy_lora=0, "
            "model.critic_lora=0."
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets)  # type: ignore[arg-type]
    try:
        inject_adapter_in_model(config, below, adapter_name=ADAPTER)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"peft cannot put adapters into {type(model).__name__}: {error} Train all weights: model.policy_lora=0, "
            "model.critic_lora=0."
        ) from error
    kept = {id(p) for p in keep.parameters()} if keep is not None else set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or id(parameter) in kept)


@torch.no_grad()
def _is_plain(layer: torch.nn.Linear) -> bool:
    """Whether the layer computes W x + b only: some routers are linear layers that return choices."""
    if type(layer).forward is torch.nn.Linear.forward:
        return True
    x = torch.linspace(-1, 1, 2 * layer.in_features).view(2, -1).to(layer.weight)
    result = layer(x)
    return isinstance(result, Tensor) and torch.allclose(result, F.linear(x, layer.weight, layer.bias), atol=1e-5)


def _read_directly(backbone: PreTrainedModel, name: str) -> bool:
    """Whether the model uses a layer's weight without its `forward`, so that an adapter would have no effect.

    Mamba's scans do that with these two layers. A mixer with A_log and D is one of Mamba's.
    """
    parent, _, own = name.rpartition(".")
    mixer = backbone.get_submodule(parent)
    return own in ("out_proj", "dt_proj") and hasattr(mixer, "A_log") and hasattr(mixer, "D")


def share_frozen(model: PreTrainedModel, owner: PreTrainedModel) -> int:
    """Let the fixed weights of a model with adapters use the memory of another such model, where both backbones hold
    the same numbers under one name; the bytes that this frees.

    Fixed weights never change, so each model stays as it is. A weight that either of them trains is left alone.
    """
    if not (has_lora(model) and has_lora(owner)):
        return 0
    theirs = dict(backbone_of(owner).named_parameters())
    freed = 0
    for name, own in backbone_of(model).named_parameters():
        other = theirs.get(name)
        if other is None or own.requires_grad or other.requires_grad or _is_adapter(name):
            continue
        if own.shape == other.shape and own.device == other.device and torch.equal(own, other):
            freed += own.numel() * own.element_size()
            own.data = other.data
    return freed


def has_lora(model: PreTrainedModel) -> bool:
    """Whether the model has adapters."""
    return any(_is_adapter(name) for name, _ in model.named_parameters())


def adapter_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters, by name, of the adapters and of the modules trained with them, such as a critic's head."""
    # a reference has adapters without trainable parameters
    return {name: p for name, p in model.named_parameters() if p.requires_grad or _is_adapter(name)}


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of the model's state, with adapters added to the weights they adapt; whole ones of a
    sharded model, one after another."""
    layers = _adapted_layers(model)
    for name, tensor in model.state_dict().items():
        if _is_adapter(name):
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        tensor = whole(tensor)
        if layer is not None and name.endswith(".base_layer.weight"):
            tensor = tensor + whole(layer.get_delta_weight(ADAPTER))
        yield name.replace(".base_layer.", "."), tensor


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write a PEFT folder: the adapters, a critic's head, and of the weights that they were trained on a digest and the
    number of token ids, which a critic may have more of than its base."""
    layers = _adapted_layers(model)
    own = adapter_parameters(model)
    kept = {name.rpartition(".")[0] for name in own if not _is_adapter(name)}
    first = next(iter(layers.values()))
    config = {
        **PLAIN,
        "task_type": None if kept else "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": first.r[ADAPTER],
        "lora_alpha": first.lora_alpha[ADAPTER],
        "lora_dropout": 0.0,
        "target_modules": list(layers),
        "modules_to_save": sorted(kept) or None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # a single entry, because safetensors writes several in random order
    tensors = {_peft_name(name): parameter.detach().contiguous() for name, parameter in own.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={BASE: f"{_digest(model)} {known_ids(model)}"})
    (folder / ADAPTER_CONFIG).write_text(json_text(config, indent=1))


def peft_opens(model: PreTrainedModel, folder: Path) -> bool:
    """Whether peft, given the base and the folder that `save_adapters` wrote, adapts the trained layers.

    For some mixtures of experts that it knows (DeepSeek-V3), it silently adapts the experts instead.
    """
    from peft import LoraConfig, inject_adapter_in_model

    with torch.device("meta"):  # the structure without weights
        base = type(model)(copy.deepcopy(model.config))
    try:
        with warnings.catch_warnings(action="ignore"):  # the return value replaces peft's warnings about the layers
            inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), base)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return _adapted_layers(base).keys() == _adapted_layers(model).keys()


def load_adapters(model: PreTrainedModel, path: Path) -> None:
    """Load saved adapters into the model, from a PEFT file or from the first formats' file with the model's names.

    Raises CheckpointError if the file is missing, or if the adapters were trained on other weights.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path.parent} holds no adapters: this network was trained without them. Set model.policy_lora and "
            "model.critic_lora back to their earlier values."
        )
    own = adapter_parameters(model)
    with safe_open(path, "pt") as file:
        if _saved_base(file)[0] != _digest(model):
            raise CheckpointError(
                f"{path} was trained on other base weights than the model's. Set model.policy back to that base model."
            )
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        names = {name: name if name in shapes else _peft_name(name) for name in own}
        if shapes != {names[name]: tuple(parameter.shape) for name, parameter in own.items()}:
            raise CheckpointError(
                f"{path} holds adapters of another shape than the model's. Set model.policy_lora and model.critic_lora "
                "back to their earlier values."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(file.get_tensor(names[name]))


def adapter_base(source: str | Path) -> str | None:
    """The base model of a folder that holds adapters only; None for any other source.

    Raises ModelError if the folder names no base model or one that does not exist.
    """
    folder = Path(source)
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").exists():
        return None
    base = _adapter_config(folder).get("base_model_name_or_path")
    if not base or (Path(base).is_absolute() and not Path(base).exists()):
        raise ModelError(
            f"{source} holds adapters only, and their base model {base or '(not named)'} is not here. Set "
            f"base_model_name_or_path in its {ADAPTER_CONFIG}, or give a merged model (a run's policy/ or critic/)."
        )
    return str(base)


def adapter_ids(folder: Path) -> int:
    """The number of token ids of the model that a folder's adapters were trained on; 0 where nobody noted it."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        return _saved_base(file)[1]


def _saved_base(file: Any) -> tuple[str | None, int]:
    """What `save_adapters` noted of the weights below: their digest, and the number of token ids."""
    digest, _, ids = (file.metadata() or {}).get(BASE, "").partition(" ")
    return digest or None, int(ids) if ids.isdigit() else 0


@torch.no_grad()
def merge_adapters(model: PreTrainedModel, folder: Path, *, head: torch.nn.Linear | None = None) -> None:
    """Add the adapters of a PEFT folder to a plain model's weights, in place; also load a critic's `head`.

    Raises ModelError for adapters of another kind or of another model.
    """
    config = _adapter_config(folder)
    if others := [key for key, value in PLAIN.items() if config.get(key, value) != value]:
        raise ModelError(
            f"{folder} holds adapters that are not plain LoRA ({ADAPTER_CONFIG}: {', '.join(others)}). Merge them with "
            "peft (`merge_and_unload`, then `save_pretrained`) and give that folder."
        )
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} lacks {ADAPTER_WEIGHTS}. Save the adapters again, as safetensors.")
    tensors = read_tensors(path)
    modules = dict(model.named_modules())
    kept = next((name for name, module in modules.items() if module is head), None)
    wanted = {_peft_name(f"{kept}.{p}"): parameter for p, parameter in head.named_parameters()} if head else {}
    pairs = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    expected = {f"{pair}.lora_{side}.weight" for pair in pairs for side in "AB"} | wanted.keys()
    if wrong := sorted(expected ^ tensors.keys()):
        kind = "a policy's adapters, not a critic's" if head else "more than a policy's adapters (a critic's, perhaps)"
        raise ModelError(f"{folder} holds {kind}: {wrong[0]}. Give the other network's folder.")
    layers = {pair: modules.get(pair.removeprefix(PEFT_PREFIX)) for pair in pairs}
    if strange := sorted(pair for pair, layer in layers.items() if not isinstance(layer, torch.nn.Linear)):
        raise ModelError(f"{folder} has an adapter for {strange[0]}, and {type(model).__name__} has no such layer.")
    if missing := sorted(_targets(config, modules) - {pair.removeprefix(PEFT_PREFIX) for pair in pairs}):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{folder} lacks the adapter of {missing[0]}{others}, which would stay as in the base model though its "
            f"{ADAPTER_CONFIG} targets it. It is damaged or not finished: save the adapters again."
        )
    with safe_open(path, "pt") as file:
        digest, _ = _saved_base(file)
    fixed = {pair.removeprefix(PEFT_PREFIX) for pair in pairs}
    if digest is not None and digest != _digest(model, adapted=fixed, kept=kept):
        raise ModelError(
            f"{folder} was trained on other weights than those of its base model. Set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to the base model that it was trained on."
        )
    for pair, layer in layers.items():
        down, up = tensors[f"{pair}.lora_A.weight"], tensors[f"{pair}.lora_B.weight"]
        layer.weight += (up @ down).to(layer.weight) * (config["lora_alpha"] / len(down))  # type: ignore[union-attr]
    for name, parameter in wanted.items():
        parameter.copy_(tensors[name])


def _targets(config: Mapping[str, Any], modules: Mapping[str, torch.nn.Module]) -> set[str]:
    """The linear layers that a list of target modules means, each by its whole name or the end of it, as in peft.

    Empty for configurations that select layers by patterns or numbers.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(key) for key in ("layers_to_transform", "exclude_modules")):
        return set()
    ends = tuple(f".{target}" for target in targets)
    return {
        name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and f".{name}".endswith(ends)
    }


def _adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers, by the names of the linear layers that they replace."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def _peft_name(name: str) -> str:
    """A parameter's name in peft's files, which omit the adapter's name."""
    return PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read {folder / ADAPTER_CONFIG}: {error}. Save the adapters again.") from error


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _digest(model: PreTrainedModel, adapted: Collection[str] = (), kept: str | None = None) -> str:
    """A hash of the fixed weights' names, shapes and first numbers, which differs between base models.

    For a plain model, it is the hash of the model with adapters on the layers `adapted` and `kept` as a trained module.
    """
    digest = hashlib.sha256()
    own = adapter_parameters(model) if has_lora(model) else {}
    for name, parameter in model.named_parameters():
        layer, _, leaf = name.rpartition(".")
        if name not in own and (kept is None or layer != kept):
            name = f"{layer}.base_layer.{leaf}" if layer in adapted else name
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()
