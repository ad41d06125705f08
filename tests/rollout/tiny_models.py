"""Tiny random models of several architectures, prompts for them, and what a full forward pass says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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


def tiny_model(architecture: str = "llama-mqa", seed: int = 0, **changes: Any) -> Any:
    """A random model in training mode, as a trainer would hand it over."""
    config_class, model_class, settings = _MODELS[architecture]
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
