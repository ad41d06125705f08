"""A sample's tokens and logprobs do not depend on the other samples.

Equality is bitwise where the machine's matrix library allows it, which `library_sums_alike` computes without the
engine. Elsewhere tokens are equal and logprobs agree to 1e-5.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_prompts, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from vapo.rollout import decoder as decoder_module
from vapo.rollout.kv_cache import attention_width
from vapo.rollout.row_counts import exact_row_counts
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Completion, Decoding

PROMPTS = make_prompts([3, 3, 11, 20, 20, 33, 47, 60], per_prompt=5)
SEEDS = [1000 + i for i in range(len(PROMPTS))]
HOW = Decoding(max_tokens=24, stop_token_ids=(7, 8, 9))


@torch.no_grad()
def library_sums_alike(model) -> bool:
    """Whether each dense layer of the model, the output layer included, gives one row the same bits among 16 and among
    32, 48, ... 160 rows, wherever it stands.

    The strictest case: a machine that sums only some of these alike may still give bitwise equal samples.
    """
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        inner = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        row = torch.randn(1, inner, generator=torch.Generator().manual_seed(1))
        expected = module(row.repeat(16, 1))[0]
        if any(not torch.equal(module(row.repeat(n, 1)), expected.repeat(n, 1)) for n in range(16, 161, 16)):
            return False
    return True


def check_equal(samples: list[Completion], expected: list[Completion], bitwise: bool) -> None:
    if bitwise:
        assert samples == expected
    for a, b in zip(samples, expected, strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama-mqa", "mistral-sliding", "gemma3-mixed", "gpt2"])
def test_a_sample_is_equal_alone_in_a_batch_reversed_and_with_other_slots(architecture):
    model = tiny_model(architecture)
    bitwise = library_sums_alike(model)
    engine = TorchEngine(model, slots=128)
    batch = engine.generate(PROMPTS, HOW, SEEDS)
    check_equal(engine.generate(PROMPTS[::-1], HOW, SEEDS[::-1])[::-1], batch, bitwise)
    check_equal(TorchEngine(model, slots=7, prefill_tokens=40).generate(PROMPTS, HOW, SEEDS), batch, bitwise)
    for i in range(0, len(PROMPTS), 8):
        check_equal(engine.generate([PROMPTS[i]], HOW, [SEEDS[i]]), [batch[i]], bitwise)


def test_samples_are_equal_with_row_counts_left_out(monkeypatch):
    # As on a machine whose library sums 32 and 128 rows otherwise.
    model = tiny_model()
    expected = TorchEngine(model).generate(PROMPTS, HOW, SEEDS)
    monkeypatch.setattr(decoder_module, "exact_row_counts", lambda *_: [16, 48, 64, 96, 112, 144])
    engine = TorchEngine(model)
    assert [engine._decoder.row_count(n) for n in (1, 17, 49, 65, 113)] == [16, 48, 64, 96, 144]
    assert not engine._decoder.prefills_many
    check_equal(engine.generate(PROMPTS, HOW, SEEDS), expected, library_sums_alike(model))


def test_without_exact_row_counts_rows_are_multiples_of_16(monkeypatch):
    monkeypatch.setattr(decoder_module, "exact_row_counts", lambda *_: [])
    engine = TorchEngine(tiny_model(), slots=40)
    assert [engine._decoder.row_count(n) for n in (1, 16, 17, 40)] == [16, 16, 32, 48]
    check_equal(engine.generate(PROMPTS, HOW, SEEDS), TorchEngine(tiny_model()).generate(PROMPTS, HOW, SEEDS), False)


@pytest.mark.parametrize("architecture", ["llama-mqa", "gpt2"])
def test_row_counts_whose_sums_differ_are_left_out(architecture, monkeypatch):
    linear, addmm = torch.nn.functional.linear, torch.addmm

    def in_the_last_row_of_32(result):
        if len(result) == 32:
            result[-1] += 1e-6
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: in_the_last_row_of_32(linear(*given)))
    monkeypatch.setattr(torch, "addmm", lambda *given: in_the_last_row_of_32(addmm(*given)))
    counts = exact_row_counts(tiny_model(architecture), 32)
    assert 32 not in counts
    assert not TorchEngine(tiny_model(architecture), slots=7)._decoder.prefills_many  # 2 prompts would be 32 rows
    monkeypatch.undo()
    assert set(counts) <= set(exact_row_counts(tiny_model(architecture), 64))


def test_no_row_count_is_exact_if_16_rows_differ(monkeypatch):
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda *given: linear(*given) + 1e-3 * torch.arange(len(given[0]))[:, None]
    )
    assert exact_row_counts(tiny_model(), 32) == []


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
