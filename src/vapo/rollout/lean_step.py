"""A decode step of Llama-like models on a CPU, without their modules: the same numbers by a third of the calls.

A step of a small model feeds a few rows. Its products take less time than Python takes to walk through the modules and
to start the small operations around them. Here a normalisation is one call, and rotary tables are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vapo.rollout.kv_cache import SlotCache
from vapo.rollout.ragged_attention import Reach, attend

KINDS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")
"""Classes of transformers whose layers are written out here."""
STATIC_ROPES = ("default", "linear", "llama3")
"""Rotary embeddings that depend on the position alone."""


def is_lean(model: nn.Module) -> bool:
    """Whether `LeanStep` knows the model: one of `KINDS` as transformers has it, with SDPA, float32, on a CPU.

    Adapters, hooks and quantised layers are for the modules.
    """
    config: Any = getattr(model, "config", None)
    if type(model).__name__ not in KINDS or not type(model).__module__.startswith("transformers."):
        return False
    dense = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    return (
        config._attn_implementation != "eager"
        and config.rope_parameters.get("rope_type") in STATIC_ROPES
        and config.hidden_act == "silu"
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        and all(type(m) is nn.Linear for m in dense)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


class LeanStep:
    """The step of a model that `is_lean`; reads the model's own weights."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._eps: float = model.config.rms_norm_eps
        attention = model.model.layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._scale: float = attention.scaling
        self._cos = self._sin = torch.zeros(0, self._head_dim)

    def __call__(
        self, ids: Tensor, positions: Tensor, cache: SlotCache, masks: Sequence[Tensor], runs: tuple[Reach, ...]
    ) -> Tensor:
        """Logits (B, V) after feeding ids (B,) at positions (B,). The cache has begun the step; a mask for each layer,
        (B, 1, 1, width)."""
        body = self._model.model
        if cache.capacity > len(self._cos):
            self._make_tables(cache.capacity)
        cos = self._cos.index_select(0, positions)[:, None]
        sin = self._sin.index_select(0, positions)[:, None]
        x = F.embedding(ids, body.embed_tokens.weight)
        for number, (layer, mask) in enumerate(zip(body.layers, masks, strict=True)):
            x = self._attention(layer, x, cos, sin, cache, number, mask, runs)
            x = self._mlp(layer, x)
        return _linear(self._norm(x, body.norm), self._model.lm_head)

    def _attention(
        self,
        layer: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: SlotCache,
        number: int,
        mask: Tensor,
        runs: tuple[Reach, ...],
    ) -> Tensor:
        own, normed = layer.self_attn, self._norm(x, layer.input_layernorm)
        heads = (len(x), -1, self._head_dim)
        query = _linear(normed, own.q_proj).view(heads)
        key = _linear(normed, own.k_proj).view(heads)
        value = _linear(normed, own.v_proj).view(heads)
        if hasattr(own, "q_norm"):
            query, key = self._norm(query, own.q_norm), self._norm(key, own.k_norm)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        keys, values = cache.update(key[:, :, None], value[:, :, None], number)
        read = attend(query[:, :, None], keys, values, mask, runs, self._scale)
        return _linear(read.reshape(len(x), -1), own.o_proj).add_(x)

    def _mlp(self, layer: Any, x: Tensor) -> Tensor:
        mlp, normed = layer.mlp, self._norm(x, layer.post_attention_layernorm)
        inner = F.silu(_linear(normed, mlp.gate_proj), inplace=True).mul_(_linear(normed, mlp.up_proj))
        return _linear(inner, mlp.down_proj).add_(x)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, self._eps)

    def _make_tables(self, capacity: int) -> None:
        """Cosine and sine for each position, (capacity, head_dim)."""
        positions = torch.arange(capacity)[None]
        cos, sin = (table[0] for table in self._model.model.rotary_emb(self._cos, positions))
        first, second = sin.chunk(2, dim=1)
        self._cos, self._sin = cos, torch.cat([-first, second], dim=1)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, H, D) turned by the angles of their position, (B, 1, D); the first half of `sin` has the other sign."""
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)
