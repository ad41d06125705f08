"""Every architecture: what the engine says is what a full forward pass says."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCAB, full_logits, make_prompts, teacher_forced, tiny_model

from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Completion, Decoding

# Shorter and longer than the window of 9; one token, one bucket, more than one; equal neighbours.
PROMPTS = make_prompts([1, 5, 17, 40], per_prompt=2)
SEEDS = list(range(len(PROMPTS)))


def gap(expected: torch.Tensor, completion: Completion) -> float:
    return (expected - torch.tensor(completion.logprobs)).abs().max().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_those_of_a_teacher_forced_pass(architecture):
    model = tiny_model(architecture)
    engine = TorchEngine(model, slots=6, prefill_tokens=64)
    completions = engine.generate(PROMPTS, Decoding(max_tokens=20, stop_token_ids=(7,)), SEEDS)
    gaps = [gap(teacher_forced(model, p, c), c) for p, c in zip(PROMPTS, completions, strict=True)]
    assert max(gaps) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_what_transformers_generates(architecture):
    model = tiny_model(architecture)
    how = Decoding(max_tokens=12, stop_token_ids=(), temperature=0.0)
    prompts = PROMPTS[::2]
    completions = TorchEngine(model, slots=4).generate(prompts, how, [0] * len(prompts))
    model.eval()
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt.token_ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, min_new_tokens=12
        )[0, ids.shape[1] :]
        # transformers keeps EOS out while fewer than min_new_tokens are there; up to the first, both are free.
        upto = completion.token_ids.index(1) if 1 in completion.token_ids else 12
        assert completion.token_ids[:upto] == tuple(expected[:upto].tolist())
        assert gap(teacher_forced(model, prompt, completion), completion) < 1e-4


def test_eager_attention_gives_the_same_samples():
    how = Decoding(max_tokens=20, stop_token_ids=())
    results = []
    for attention in ("sdpa", "eager"):
        model = tiny_model("gemma3-mixed")
        model.set_attn_implementation(attention)
        results.append(TorchEngine(model).generate(PROMPTS, how, SEEDS))
        assert model.config._attn_implementation == attention
    for a, b in zip(*results, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_bfloat16_model_gives_logprobs_near_its_own_full_pass():
    model = tiny_model().to(torch.bfloat16)
    completions = TorchEngine(model, slots=8).generate(PROMPTS, Decoding(max_tokens=20, stop_token_ids=()), SEEDS)
    gaps = [gap(teacher_forced(model, p, c), c) for p, c in zip(PROMPTS, completions, strict=True)]
    assert max(gaps) < 0.5  # bfloat16 has 8 bits; logits here are up to about 10
    assert sum(gaps) / len(gaps) < 0.1


def test_temperature_is_part_of_the_logprobs():
    model = tiny_model()
    how = Decoding(max_tokens=20, stop_token_ids=(), temperature=0.6)
    for prompt, c in zip(PROMPTS, TorchEngine(model).generate(PROMPTS, how, SEEDS), strict=True):
        assert gap(teacher_forced(model, prompt, c, temperature=0.6), c) < 1e-4


def test_top_p_draws_from_the_nucleus_and_renormalises():
    model = tiny_model()
    top_p = 0.8
    how = Decoding(max_tokens=20, stop_token_ids=(), top_p=top_p)
    for prompt, c in zip(PROMPTS, TorchEngine(model).generate(PROMPTS, how, SEEDS), strict=True):
        probs = full_logits(model, prompt, c.token_ids).softmax(-1).double()
        for row, token, logprob in zip(probs, c.token_ids, c.logprobs, strict=True):
            # The nucleus: tokens more probable than this one weigh less than top_p, written without sorting.
            assert row[row > row[token]].sum() < top_p + 1e-5
            nucleus = [t for t in range(VOCAB) if row[row > row[t]].sum() < top_p - 1e-9]
            assert logprob == pytest.approx(float(row[token].log() - row[nucleus].sum().log()), abs=1e-4)


def test_samples_follow_the_softmax():
    model = tiny_model(initializer_range=0.15)
    prompt = make_prompts([6])[0]
    count = 4000
    how = Decoding(max_tokens=1, stop_token_ids=())
    completions = TorchEngine(model, slots=512).generate([prompt] * count, how, range(count))
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCAB).double()
    expected = full_logits(model, prompt, (0,))[0].softmax(-1).double() * count
    often = expected >= 5
    chi2 = float(((seen - expected)[often] ** 2 / expected[often]).sum())
    degrees = int(often.sum()) - 1
    assert degrees > 15
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5  # four standard deviations of chi-square
