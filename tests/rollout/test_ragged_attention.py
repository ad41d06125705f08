"""Attention of decode steps in runs of rows: which runs, and that cutting changes no bit of a sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_prompts, tiny_model

from vapo.rollout import decoder as decoder_module
from vapo.rollout import ragged_attention
from vapo.rollout.ragged_attention import Reach, reaches
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding

PROMPTS = make_prompts([3, 40, 11, 20], per_prompt=5)
SEEDS = list(range(len(PROMPTS)))
HOW = Decoding(max_tokens=40, stop_token_ids=(7, 8, 9))


def test_equal_rows_are_one_run_and_unused_ones_are_left_out():
    assert reaches([64, 64, 64], call=0) == (Reach(0, 3, 64),)
    assert reaches([0, 64, 64, 0], call=0) == (Reach(1, 3, 64),)
    assert reaches([0, 0], call=100) == ()


def test_a_row_joins_while_the_columns_read_in_vain_cost_no_more_than_a_call():
    assert reaches([64, 96], call=32) == (Reach(0, 2, 96),)
    assert reaches([64, 96], call=31) == (Reach(0, 1, 64), Reach(1, 2, 96))
    assert reaches([64, 0, 64], call=64) == (Reach(0, 3, 64),)
    assert reaches([64, 0, 64], call=63) == (Reach(0, 1, 64), Reach(2, 3, 64))


@given(st.lists(st.integers(0, 20).map(lambda n: 32 * n), max_size=60), st.floats(0, 3000))
def test_every_used_row_is_in_one_run_that_is_wide_enough(widths, call):
    runs = reaches(widths, call=call)
    holders = [[run for run in runs if run.first <= row < run.end] for row in range(len(widths))]
    for width, held in zip(widths, holders, strict=True):
        assert len(held) == 1 if width else len(held) <= 1
        assert all(run.width >= width for run in held)
    assert sum(run.columns for run in runs) <= sum(widths) + call * max(0, len(widths) - 1)


@pytest.mark.parametrize("architecture", ["llama-mqa", "qwen2", "mistral-sliding", "gemma3-mixed", "gpt2", "gpt-neox"])
def test_samples_are_bitwise_equal_however_attention_is_cut(architecture, monkeypatch):
    model = tiny_model(architecture)
    monkeypatch.setattr(decoder_module, "CALL_BYTES", 1e12)
    whole = TorchEngine(model).generate(PROMPTS, HOW, SEEDS)
    monkeypatch.setattr(decoder_module, "CALL_BYTES", 0)
    calls: list[tuple[Reach, ...]] = []
    sdpa = ragged_attention.sdpa_attention_forward

    def counted(module, query, *rest, **kwargs):
        calls.append(ragged_attention._present.get())
        return sdpa(module, query, *rest, **kwargs)

    monkeypatch.setattr(ragged_attention, "sdpa_attention_forward", counted)
    assert TorchEngine(model).generate(PROMPTS, HOW, SEEDS) == whole
    assert max(len(runs) for runs in calls) > 1


def test_the_model_keeps_its_own_attention():
    model = tiny_model()
    TorchEngine(model).generate(PROMPTS, HOW, SEEDS)
    assert model.config._attn_implementation == "sdpa"


def test_rows_in_no_run_are_zero_and_the_others_are_sdpas():
    torch.manual_seed(0)
    module = torch.nn.Module()
    query, key, value = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 64, 8), torch.randn(3, 2, 64, 8)
    mask = torch.zeros(3, 1, 1, 64)
    mask[0, ..., 20:] = float("-inf")
    whole, _ = ragged_attention.ragged_attention(module, query, key, value, mask, scaling=0.3)
    with ragged_attention.reading((Reach(0, 1, 32), Reach(2, 3, 64))):
        cut, _ = ragged_attention.ragged_attention(module, query, key, value, mask, scaling=0.3)
    assert torch.equal(cut[[0, 2]], whole[[0, 2]])
    assert not cut[1].any()
