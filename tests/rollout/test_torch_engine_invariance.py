"""The promise: a sample's tokens and logprobs do not depend on its company. Equality here is bitwise."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_prompts, tiny_model

from vapo.rollout.kv_cache import attention_width
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding

PROMPTS = make_prompts([3, 3, 11, 20, 20, 33, 47, 60], per_prompt=5)
SEEDS = [1000 + i for i in range(len(PROMPTS))]
HOW = Decoding(max_tokens=24, stop_token_ids=(7, 8, 9))


@pytest.mark.parametrize("architecture", ["llama-mqa", "mistral-sliding", "gemma3-mixed", "gpt2"])
def test_alone_in_a_batch_reversed_and_with_other_slots_are_bitwise_equal(architecture):
    model = tiny_model(architecture)
    engine = TorchEngine(model, slots=128)
    batch = engine.generate(PROMPTS, HOW, SEEDS)
    assert engine.generate(PROMPTS[::-1], HOW, SEEDS[::-1])[::-1] == batch
    assert TorchEngine(model, slots=7, prefill_tokens=40).generate(PROMPTS, HOW, SEEDS) == batch
    for i in range(0, len(PROMPTS), 8):
        assert engine.generate([PROMPTS[i]], HOW, [SEEDS[i]]) == [batch[i]]


def test_a_bfloat16_model_is_bitwise_equal_too():
    model = tiny_model().to(torch.bfloat16)
    batch = TorchEngine(model).generate(PROMPTS, HOW, SEEDS)
    assert TorchEngine(model, slots=7).generate(PROMPTS, HOW, SEEDS) == batch
    assert TorchEngine(model).generate(PROMPTS[:1], HOW, SEEDS[:1]) == batch[:1]


def test_longer_neighbours_do_not_change_long_samples():
    # Widths from 64 to past the flash kernel's block of 512 columns, beyond the first cache reservation.
    model = tiny_model(max_position_embeddings=1024, hidden_size=32, num_hidden_layers=1)
    prompts = make_prompts([4, 235, 490])
    how = Decoding(max_tokens=40, stop_token_ids=())
    engine = TorchEngine(model)
    together = engine.generate(prompts, how, [1, 2, 3])
    fresh = [TorchEngine(model).generate([p], how, [s])[0] for p, s in zip(prompts, [1, 2, 3], strict=True)]
    assert fresh == together


def test_nucleus_and_greedy_samples_are_bitwise_equal_too():
    model = tiny_model()
    for how in (Decoding(20, (), temperature=0.0), Decoding(20, (7,), temperature=0.7, top_p=0.9)):
        batch = TorchEngine(model).generate(PROMPTS, how, SEEDS)
        assert TorchEngine(model, slots=17).generate(PROMPTS, how, SEEDS) == batch


def test_the_seed_decides_the_tokens():
    model = tiny_model()
    prompt = make_prompts([5])[0]
    how = Decoding(max_tokens=20, stop_token_ids=())
    a, b, c, d = TorchEngine(model).generate([prompt] * 4, how, [11, 12, 11, -(2**70) + 11])
    assert a == c
    assert a.token_ids != b.token_ids
    assert a == d  # the lowest 64 bits count


def test_a_lower_limit_gives_a_prefix():
    model = tiny_model()
    long, short = (
        TorchEngine(model).generate(PROMPTS, Decoding(max_tokens=n, stop_token_ids=()), SEEDS) for n in (30, 12)
    )
    assert [c.token_ids[:12] for c in long] == [c.token_ids for c in short]


def test_attention_widths_are_the_ones_that_keep_sums():
    assert [attention_width(n) for n in (1, 32, 33, 256, 257, 512)] == [32, 32, 64, 256, 512, 512]
    assert [attention_width(n) for n in (513, 768, 769, 1024, 1025)] == [544, 768, 1024, 1024, 1056]
