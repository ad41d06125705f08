"""Hidden states of ragged sequences from any Hugging Face decoder, packed or padded, with the same numbers.

`packed` puts all sequences end to end in one row and attends within each, without padding. `padded` is the ordinary
right-padded rectangle. Both return one row per real token.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vapo.errors import ModelError
from vapo.models import flash

Layout = Literal["packed", "padded"]

PACKED_ATTENTION = "vapo_packed"
"""The name that `packed_attention` is registered under; transformers makes no masks for names it does not know."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: Sequence[int],
    segment_ends: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment of a packed row: (1, heads, tokens, dim) -> (1, tokens, heads, dim).

    On a GPU in half precision one flash kernel takes all segments. Elsewhere it makes one SDPA call per segment: on a
    CPU the fastest exact attention over ragged sequences, because it computes no padding and no mask over all tokens.
    Raises ModelError for attention variants SDPA cannot express.
    """
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise ModelError("This architecture's attention (soft cap, sinks or position bias) cannot be packed.")
    if segment_ends is not None and flash.takes(query, value, dropout):
        return flash.attention(query, key, value, segment_ends, max(segment_lengths), scaling, sliding_window), None
    gqa = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(
        query.split(list(segment_lengths), dim=2),
        key.split(list(segment_lengths), dim=2),
        value.split(list(segment_lengths), dim=2),
        strict=True,
    ):
        mask = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            distance = torch.arange(q.shape[2], device=q.device)
            distance = distance[:, None] - distance[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        outputs.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=gqa,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


MASKED_WINDOWS = ("doge", "phimoe", "qwen2_moe")
"""Architectures that apply a sliding window by their mask and do not hand it to the attention function."""
FULL_CRITIC = "Take a full critic: model.critic_kind=full."

AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The network below a model's head; the model itself if it has no head. Raises ModelError if there is no one part.

    It is `base_model`, except in a few architectures (Llama 4) whose `base_model` does not exist.
    """
    base = cast(PreTrainedModel, model.base_model)
    if base is not model or model.get_output_embeddings() is None:
        return base
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(inner) != 1:
        raise ModelError(
            f"{type(model).__name__} does not declare the language model below its head (its base_model_prefix "
            f"{model.base_model_prefix!r} names no part). Use a text-only model of the family."
        )
    return inner[0]


def hidden_states(model: PreTrainedModel, sequences: Sequence[Tensor], layout: Layout = "packed") -> Tensor:
    """Last hidden states of every token of every sequence: (sum of lengths, hidden), in order.

    `model` may carry any head; only its backbone runs. `sequences` are 1-D token id tensors.
    """
    return layer_states(model, sequences, layout, ())[0]


def layer_states(
    model: PreTrainedModel, sequences: Sequence[Tensor], layout: Layout, layers: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Last hidden states (n, hidden), and those that the given decoder layers put out, side by side (n, K · hidden).

    n is the sum of lengths. Layers count from 0, and -1 is what goes into the first; without any the second is None.
    Raises ModelError for an architecture whose layers do not put out one state per token.
    """
    with _outputs_of(model, layers) as outputs:
        last, mask = _forward(model, sequences, layout)
    if not layers:
        return last, None
    found = []
    for layer in layers:
        states = outputs.get(layer)
        if states is not None and states.ndim == 3 and states.shape[-1] == last.shape[-1]:
            states = states[0] if mask is None else states[mask] if states.shape[:2] == mask.shape else None
        if states is None or states.shape != last.shape:
            shape = None if outputs.get(layer) is None else tuple(outputs[layer].shape)
            raise ModelError(
                f"The hidden states of {type(model).__name__} cannot be read: its layer {layer} puts out {shape}, not "
                f"one state per token. {FULL_CRITIC}"
            )
        found.append(states)
    return last, torch.cat(found, dim=-1)


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The layers of the model's backbone, in order. Raises ModelError for an architecture that has no one such list."""
    backbone = backbone_of(model)
    count = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    }
    # experts and heads may stand in lists of the same length inside the layers
    outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise ModelError(
            f"The hidden states of {type(model).__name__} cannot be read: its backbone has {len(outer)} lists of "
            f"{count} layers, not one. {FULL_CRITIC}"
        )
    return outer[0]


@contextmanager
def _outputs_of(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within: a forward pass fills the dictionary with what these layers put out."""
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    def keep_input(_module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        outputs[-1] = inputs[0] if inputs else named["hidden_states"]

    blocks = decoder_layers(model) if layers else []
    handles = [
        blocks[layer].register_forward_hook(lambda _module, _inputs, output, layer=layer: keep(layer, output))
        for layer in layers
        if layer >= 0
    ]
    if -1 in layers:
        handles.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: PreTrainedModel, sequences: Sequence[Tensor], layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Last hidden states (n, hidden), and the mask of real tokens (B, T) where the layout is padded."""
    backbone = backbone_of(model)
    if layout == "packed":
        tokens = torch.cat(list(sequences))[None]
        positions = torch.cat([torch.arange(len(s), device=s.device) for s in sequences])[None]
        with _attention(backbone, PACKED_ATTENTION):
            output = backbone(
                input_ids=tokens,
                position_ids=positions,
                use_cache=False,
                segment_lengths=[len(s) for s in sequences],
                segment_ends=flash.segment_ends(sequences),
            )
        return output.last_hidden_state[0], None
    width = max(len(s) for s in sequences)
    tokens = torch.stack([F.pad(s, (0, width - len(s))) for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences], device=tokens.device)
    mask = torch.arange(width, device=tokens.device)[None] < lengths[:, None]
    positions = torch.arange(width, device=tokens.device)[None].expand(len(sequences), -1)
    # recurrent models take no positions, and some no mask: tokens do not read the padding on their right
    extra = {"attention_mask": mask.long(), "position_ids": positions}
    output = backbone(input_ids=tokens, use_cache=False, **_understood(backbone, extra))
    return output.last_hidden_state[mask], mask


def _understood(model: PreTrainedModel, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the model's forward pass accepts."""
    known = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within: the model uses another attention function. Restored afterwards, for the engine and `save_pretrained`."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing: the backward pass recomputes the activations inside layers.

    transformers does that in training mode only. So this sets training mode for the checkpointed modules alone, and all
    dropout to 0: the modules inside would add noise in that mode, such as a router's.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and name.endswith(("dropout", "layerdrop")):
                setattr(module, name, 0.0)
    backbone = backbone_of(model)

    def contexts() -> tuple[Any, Any]:
        # the recomputation runs after `hidden_states` has restored the attention function, so set it again
        return nullcontext(), _attention(backbone, str(backbone.config._attn_implementation))

    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            if isinstance(module, GradientCheckpointingLayer) and hasattr(module, "config"):
                module.config = _without_dropout(module.config)  # Falcon's layers read it there


def _without_dropout(config: Any) -> Any:
    """A copy of a configuration with every dropout 0: the original is saved with the model. Itself where all are 0."""
    given = [name for name, value in vars(config).items() if name.endswith("dropout") and isinstance(value, float)]
    if not any(getattr(config, name) for name in given):
        return config
    config = copy.copy(config)
    for name in given:
        setattr(config, name, 0.0)
    return config


def supports_packing(model: PreTrainedModel) -> bool:
    """Whether the attention function can be chosen, and all layers are full or sliding attention.

    Chunked attention, convolutions and recurrences would mix neighbouring sequences of a packed row. A window that only
    a mask applies would be lost, and no short probe could see it.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) or math.inf
    if config.model_type in MASKED_WINDOWS and window < (getattr(config, "max_position_embeddings", None) or math.inf):
        return False
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and not getattr(model, "_is_stateful", False)
        and kinds <= {"full_attention", "sliding_attention"}
        and (bool(kinds) or getattr(config, "attention_chunk_size", None) is None)
    )
