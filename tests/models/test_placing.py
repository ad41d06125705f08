"""A model in bfloat16 reads positions as the trainer does, whose frequencies are float32."""

from __future__ import annotations

import copy

import pytest
import torch

import toys
from vapo.models.placing import to_device


def long_llama():
    return toys.tiny_llama(head_dim=64, max_position_embeddings=8192).requires_grad_(False)


def test_frequencies_stay_float32_in_bfloat16_and_far_positions_are_read_as_with_halved_weights():
    halved = long_llama()
    frequencies = halved.model.rotary_emb.inv_freq.clone()
    converted = to_device(copy.deepcopy(halved), torch.bfloat16)
    for parameter in halved.parameters():
        parameter.data = parameter.data.bfloat16()
    assert converted.dtype == torch.bfloat16
    assert torch.equal(converted.model.rotary_emb.inv_freq, frequencies)

    tokens = torch.arange(2, 14)[None]
    positions = torch.arange(6)[None].repeat(1, 2) + torch.tensor([[0] * 6 + [4321] * 6])
    logits = [model(input_ids=tokens, position_ids=positions).logits for model in (converted, halved)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(("dtype", "bias"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_weights_that_an_architecture_wants_in_float32_stay_so(dtype, bias):
    model = long_llama()
    model._keep_in_fp32_modules_strict = {"norm.weight"}
    to_device(model, dtype)
    assert model.model.norm.weight.dtype == bias
    assert model.model.embed_tokens.weight.dtype == dtype
