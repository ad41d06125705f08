"""A tiny random model of many architectures, as folders that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

import toys
from vapo.models.saving import save_model

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
MIXED = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: dict[str, tuple[type[PreTrainedModel], type[hf.PreTrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, GROUPED),
    "llama, tied": (hf.LlamaForCausalLM, hf.LlamaConfig, {**GROUPED, "tie_word_embeddings": True}),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {**GROUPED, "sliding_window": 8}),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, GROUPED),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {**GROUPED, "head_dim": 8}),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, {**GROUPED, **MIXED}),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, {**GROUPED, **MIXED}),
    "phi": (hf.PhiForCausalLM, hf.PhiConfig, {}),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, GROUPED),
    "stablelm": (hf.StableLmForCausalLM, hf.StableLmConfig, GROUPED),
    "nemotron": (hf.NemotronForCausalLM, hf.NemotronConfig, GROUPED),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {"n_inner": 80, "intermediate_size": None}),
    "granite": (hf.GraniteForCausalLM, hf.GraniteConfig, GROUPED),
    # what transformers writes under other names, or in other shapes, than it holds in memory
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, {}),
    "qwen2_moe": (
        hf.Qwen2MoeForCausalLM,
        hf.Qwen2MoeConfig,
        {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_moe": (hf.Qwen3MoeForCausalLM, hf.Qwen3MoeConfig, {**GROUPED, **EXPERTS, "head_dim": 8}),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig, {**GROUPED, "num_local_experts": 4}),
    "deepseek_v3": (hf.DeepseekV3ForCausalLM, hf.DeepseekV3Config, LATENT),
}
RENAMED = ("gpt_neox", "qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v3")


def tiny(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    model, config, special = ARCHITECTURES[name]
    torch.manual_seed(seed)
    sizes = {key: value for key, value in {**SIZES, **special, **overrides}.items() if value is not None}
    return model(config(**sizes, bos_token_id=None)).eval()


def folder_of(model: PreTrainedModel, folder: Path, shift: int = 0) -> Path:
    """The model and a tokenizer as a folder; the data in its file begin `shift` bytes further on, a multiple of 8."""
    save_model(model, toys.tokenizer(), folder)
    shift_data(folder / "model.safetensors", shift)
    return folder


def shift_data(path: Path, by: int) -> None:
    """Lengthen the header of a safetensors file, with the spaces that the format allows."""
    assert by % 8 == 0
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    json.loads(data[8 : 8 + length])
    path.write_bytes((length + by).to_bytes(8, "little") + data[8 : 8 + length] + b" " * by + data[8 + length :])


def data_start(path: Path) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
