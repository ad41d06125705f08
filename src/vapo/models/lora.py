"""Low-rank adapters on a policy or a critic, with peft: they need a fraction of the optimizer's memory.

W x becomes W x + (α/r) B A x in every linear layer of the backbone, with W fixed (Hu et al. 2021, arXiv:2106.09685,
eq. 3). B starts at 0, so the first policy is the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from vapo.errors import CheckpointError, ConfigError
from vapo.models.backbone import backbone_of

ADAPTER = "vapo"


def add_lora(model: PreTrainedModel, rank: int, alpha: float | None, *, keep: torch.nn.Module | None = None) -> None:
    """Add adapters of this rank to the model, in place, and freeze all other weights except `keep` (a critic's head).

    `alpha` None means twice the rank. A is drawn from torch's generator. Raises ConfigError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("Low-rank adapters need peft: pip install peft.") from error
    backbone = backbone_of(model)
    # peft gets a bare module: where it knows the architecture, it replaces linear layers of some mixtures of experts
    # (shared experts, dense blocks) by the experts' fused tensors
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


def has_lora(model: PreTrainedModel) -> bool:
    """Whether the model has adapters."""
    return any(_is_adapter(name) for name, _ in model.named_parameters())


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of the model's state, with adapters added to the weights they adapt."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in model.state_dict().items():
        if _is_adapter(name):
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None and name.endswith(".base_layer.weight"):
            tensor = tensor + layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
        yield name.replace(".base_layer.", "."), tensor


def save_adapters(model: PreTrainedModel, path: Path) -> None:
    """Save the trained weights, and a digest of the frozen ones."""
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, path, metadata={"base": _digest(model)})


def load_adapters(model: PreTrainedModel, path: Path) -> None:
    """Load saved adapters into the model; CheckpointError if they were trained on other weights."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("base") != _digest(model):
            raise CheckpointError(f"{path} was trained on other base weights than the model's. Has it been changed?")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if shapes != {name: tuple(parameter.shape) for name, parameter in trained.items()}:
            raise CheckpointError(f"{path} does not fit the model: it holds adapters of another shape.")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(file.get_tensor(name))


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _digest(model: PreTrainedModel) -> str:
    """A hash of the frozen weights' names, shapes and first numbers, which differ between base models."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()
