"""Operations of a model's passes, and the machine's rate."""

from __future__ import annotations

import time

import pytest
import torch

import toys
from vapo.models import matrix_rate as rates
from vapo.models.lora import add_lora
from vapo.models.model_flops import ModelFlops, model_flops
from vapo.models.side import SideConfig, SideModel

# hidden 32, MLP 64, 2 heads of 16, 1 key-value head: q and o 2·32·32, k and v 2·32·16, MLP 3·32·64
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64


def test_weights_and_attention_of_a_small_llama():
    # the embedding is tied: 16 x 32 weights meet the response's tokens as output layer; 2 layers of width 32
    assert model_flops(toys.tiny_llama()) == ModelFlops(body=2 * LAYER, head=16 * 32, trained=1.0, attention=64)


def test_operations_worked_by_hand():
    flops = ModelFlops(body=100, head=10, trained=1.0, attention=2)
    # 2·100·(3 + 4) + 2·10·5 = 1500; 2·2·(9 + 16) = 100
    assert flops.score([3, 4], 5) == 1600
    assert flops.update([3, 4], 5) == 3 * 1600
    # nothing trained: no gradient of weights
    assert ModelFlops(100, 10, 0.0, 2).update([3, 4], 5) == 2 * 1500 + 3 * 100


def test_the_count_agrees_with_torchs_own_of_a_forward_pass():
    from torch.utils.flop_counter import FlopCounterMode

    model = toys.tiny_llama(tie_word_embeddings=False)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 24, dtype=torch.long))
    flops = model_flops(model)
    # torch counts both halves of the attention's square, and the rotary embedding's 2·8·24 products of angles
    ours = flops.score([24], 24) + 2 * flops.attention * 24**2
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)


def test_adapters_are_a_small_share_of_what_is_trained():
    model = toys.tiny_llama()
    add_lora(model, 1, None)
    assert 0 < model_flops(model).trained < 0.1


def test_a_side_critic_and_experts_have_counts():
    side = SideModel(SideConfig(policy_layers=[0, 1], policy_width=32, hidden_size=8))
    assert 0 < model_flops(side).body < side.num_parameters()


def test_the_rate_is_positive_takes_little_time_and_leaves_the_random_numbers_alone():
    rates.matrix_rate.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    began = time.perf_counter()
    found = rates.matrix_rate(torch.device("cpu"), torch.float32, torch.get_num_threads())
    assert time.perf_counter() - began < 3
    assert 1e8 < found < 1e14
    assert torch.equal(torch.get_rng_state(), before)


def test_rates_have_units():
    assert (rates.rate_words(61.4e9), rates.rate_words(7.1e14)) == ("61 GFLOP/s", "710 TFLOP/s")
