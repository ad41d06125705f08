"""Tiny random models of several architectures, prompts for them, and what a full forward pass says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from vapo.types import Completion, Prompt

VOCAB = 53

# Large initial weights, so that attention matters and the distributions are far from uniform.
_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GATED = {**_SHARED, "intermediate_size": 48}
_WINDOW = 9

_MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama-mqa": (LlamaConfig, LlamaForCausalLM, {**_GATED, "num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**_GATED, "num_key_value_heads": 2}),
    "qwen3-tied": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {**_GATED, "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True},
    ),
    "mistral-sliding": (
        MistralConfig,
        MistralForCausalLM,
        {**_GATED, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": _WINDOW},
    ),
    "gemma3-mixed": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            **_GATED,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": _WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt-neox": (GPTNeoXConfig, GPTNeoXForCausalLM, _GATED),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _SHARED),
}
ARCHITECTURES = tuple(_MODELS)
"""Those of both engines."""

_SPECIAL = {
    key: _SHARED[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
}
_OWN_MEMORY: dict[str, tuple[type, type, dict[str, Any]]] = {
    "bloom": (BloomConfig, BloomForCausalLM, {**_SPECIAL, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neo": (
        GPTNeoConfig,
        GPTNeoForCausalLM,
        {
            **_SPECIAL,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": _WINDOW,
            "max_position_embeddings": 256,
        },
    ),
    "llama4-chunked": (
        Llama4TextConfig,
        Llama4ForCausalLM,
        {
            **_GATED,
            "intermediate_size_mlp": 48,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_local_experts": 2,
            "attention_chunk_size": _WINDOW,
        },
    ),
    "lfm2-convolutions": (
        Lfm2Config,
        Lfm2ForCausalLM,
        {**_GATED, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    "mamba-recurrent": (MambaConfig, MambaForCausalLM, {**_SPECIAL, "hidden_size": 32, "num_hidden_layers": 2}),
    "jamba-hybrid": (
        JambaConfig,
        JambaForCausalLM,
        {
            **_GATED,
            "num_key_value_heads": 2,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "qwen3-next-hybrid": (
        Qwen3NextConfig,
        Qwen3NextForCausalLM,
        {
            **_GATED,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
OWN_MEMORY = tuple(_OWN_MEMORY)
"""Those that only their own `generate` decodes."""


def tiny_model(architecture: str = "llama-mqa", seed: int = 0, **changes: Any) -> Any:
    """A random model in training mode, as a trainer would hand it over."""
    config_class, model_class, settings = {**_MODELS, **_OWN_MEMORY}[architecture]
    torch.manual_seed(seed)
    return model_class(config_class(**{**settings, **changes})).train()


def make_prompts(lengths: list[int], per_prompt: int = 1) -> list[Prompt]:
    """Random prompts of these lengths, each `per_prompt` times in a row; never with a special token."""
    generator = torch.Generator().manual_seed(len(lengths))
    prompts = []
    for i, length in enumerate(lengths):
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        prompts += [Prompt(id=f"p{i}", text="", token_ids=tuple(ids))] * per_prompt
    return prompts


@torch.no_grad()
def full_logits(model: Any, prompt: Prompt, response: tuple[int, ...]) -> Tensor:
    """Logits (len(response), VOCAB) of each response token, from one forward pass without any cache."""
    was_training = model.training
    model.eval()
    logits = model(torch.tensor([prompt.token_ids + response]), use_cache=False).logits[0].float()
    model.train(was_training)
    return logits[len(prompt.token_ids) - 1 : -1]


def teacher_forced(model: Any, prompt: Prompt, completion: Completion, temperature: float = 1.0) -> Tensor:
    """Logprobs of a completion's tokens under softmax(logits / temperature), from `full_logits`."""
    logp = (full_logits(model, prompt, completion.token_ids) / temperature).log_softmax(-1)
    return logp.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
