"""Every engine and architecture: what the engine says is what a full forward pass says, and a sample is its seed."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny_models import ARCHITECTURES, OWN_MEMORY, VOCAB, full_logits, make_prompts, teacher_forced, tiny_model

from vapo.errors import ConfigError, DataError, DivergedError, ModelError
from vapo.rollout.generate_engine import GenerateEngine
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Completion, Decoding, Prompt

ENGINES = [TorchEngine, GenerateEngine]
EACH = [(TorchEngine, name) for name in ARCHITECTURES] + [(GenerateEngine, name) for name in ("llama-mqa", *OWN_MEMORY)]
IDS = [f"{engine.__name__}-{name}" for engine, name in EACH]
each_engine = pytest.mark.parametrize("engine_class", ENGINES)
each_model = pytest.mark.parametrize(("engine_class", "architecture"), EACH, ids=IDS)

# Shorter and longer than the window of 9; one token, one bucket, more than one; equal neighbours.
PROMPTS = make_prompts([1, 5, 17, 40], per_prompt=2)
SEEDS = list(range(len(PROMPTS)))


def gap(expected: torch.Tensor, completion: Completion) -> float:
    return (expected - torch.tensor(completion.logprobs)).abs().max().item()


@each_model
def test_logprobs_are_those_of_a_teacher_forced_pass(engine_class, architecture):
    model = tiny_model(architecture)
    engine = engine_class(model, slots=6, **({"prefill_tokens": 64} if engine_class is TorchEngine else {}))
    completions = engine.generate(PROMPTS, Decoding(max_tokens=20, stop_token_ids=(7,)), SEEDS)
    gaps = [gap(teacher_forced(model, p, c), c) for p, c in zip(PROMPTS, completions, strict=True)]
    assert max(gaps) < 1e-4


@each_model
def test_greedy_is_what_transformers_generates(engine_class, architecture):
    model = tiny_model(architecture)
    how = Decoding(max_tokens=12, stop_token_ids=(), temperature=0.0)
    prompts = PROMPTS[::2]
    completions = engine_class(model, slots=4).generate(prompts, how, [0] * len(prompts))
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


@each_engine
def test_a_bfloat16_model_gives_logprobs_near_its_own_full_pass(engine_class):
    model = tiny_model().to(torch.bfloat16)
    completions = engine_class(model, slots=8).generate(PROMPTS, Decoding(max_tokens=20, stop_token_ids=()), SEEDS)
    gaps = [gap(teacher_forced(model, p, c), c) for p, c in zip(PROMPTS, completions, strict=True)]
    assert max(gaps) < 0.5  # bfloat16 has 8 bits; logits here are up to about 10
    assert sum(gaps) / len(gaps) < 0.1


@each_engine
def test_temperature_is_part_of_the_logprobs(engine_class):
    model = tiny_model()
    how = Decoding(max_tokens=20, stop_token_ids=(), temperature=0.6)
    for prompt, c in zip(PROMPTS, engine_class(model).generate(PROMPTS, how, SEEDS), strict=True):
        assert gap(teacher_forced(model, prompt, c, temperature=0.6), c) < 1e-4


@each_engine
def test_top_p_draws_from_the_nucleus_and_renormalises(engine_class):
    model = tiny_model()
    top_p = 0.8
    how = Decoding(max_tokens=20, stop_token_ids=(), top_p=top_p)
    for prompt, c in zip(PROMPTS, engine_class(model).generate(PROMPTS, how, SEEDS), strict=True):
        probs = full_logits(model, prompt, c.token_ids).softmax(-1).double()
        for row, token, logprob in zip(probs, c.token_ids, c.logprobs, strict=True):
            # The nucleus: tokens more probable than this one weigh less than top_p, written without sorting.
            assert row[row > row[token]].sum() < top_p + 1e-5
            nucleus = [t for t in range(VOCAB) if row[row > row[t]].sum() < top_p - 1e-9]
            assert logprob == pytest.approx(float(row[token].log() - row[nucleus].sum().log()), abs=1e-4)


@each_engine
def test_samples_follow_the_softmax(engine_class):
    model = tiny_model(initializer_range=0.15)
    prompt = make_prompts([6])[0]
    count = 4000
    how = Decoding(max_tokens=1, stop_token_ids=())
    completions = engine_class(model, slots=512).generate([prompt] * count, how, range(count))
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCAB).double()
    expected = full_logits(model, prompt, (0,))[0].softmax(-1).double() * count
    often = expected >= 5
    chi2 = float(((seen - expected)[often] ** 2 / expected[often]).sum())
    degrees = int(often.sum()) - 1
    assert degrees > 15
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5  # four standard deviations of chi-square


@each_model
def test_a_sample_is_its_seed_alone_in_a_batch_and_reversed(engine_class, architecture):
    engine = engine_class(tiny_model(architecture), slots=5)
    how = Decoding(max_tokens=12, stop_token_ids=(7, 8, 9))
    batch = engine.generate(PROMPTS, how, SEEDS)
    again = engine.generate(PROMPTS[::-1], how, SEEDS[::-1])[::-1]
    chosen = (0, 5)
    alone = [engine.generate([PROMPTS[i]], how, [SEEDS[i]])[0] for i in chosen]
    for a, b in [*zip(batch, again, strict=True), *zip([batch[i] for i in chosen], alone, strict=True)]:
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_both_engines_draw_the_same_samples():
    model, how = tiny_model("gemma3-mixed"), Decoding(max_tokens=20, stop_token_ids=(7, 8))
    first, second = (engine_class(model).generate(PROMPTS, how, SEEDS) for engine_class in ENGINES)
    assert [(c.token_ids, c.finish_reason) for c in first] == [(c.token_ids, c.finish_reason) for c in second]


@each_engine
def test_a_response_ends_at_its_stop_token_or_at_the_limit(engine_class):
    completions = engine_class(tiny_model()).generate(PROMPTS, Decoding(30, (7, 8, 9, 10)), SEEDS)
    for c in completions:
        assert all(token not in (7, 8, 9, 10) for token in c.token_ids[:-1])
        assert (c.token_ids[-1] in (7, 8, 9, 10)) == (c.finish_reason == "stop")
        assert len(c.token_ids) == len(c.logprobs)
        assert c.finish_reason == "stop" or len(c.token_ids) == 30
    assert {c.finish_reason for c in completions} == {"stop", "length"}


@each_engine
def test_the_models_generation_config_changes_nothing_and_stays(engine_class):
    plain, model = tiny_model(), tiny_model()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(3, 30))
    how = Decoding(12, ())
    assert engine_class(model).generate(PROMPTS, how, SEEDS) == engine_class(plain).generate(PROMPTS, how, SEEDS)
    assert model.generation_config.repetition_penalty == 5.0
    assert model.training


@each_engine
def test_new_weights_are_sampled_from_and_stamped(engine_class):
    engine, other, how = engine_class(tiny_model(seed=0)), tiny_model(seed=1), Decoding(12, ())
    before = engine.generate(PROMPTS, how, SEEDS)
    engine.load_weights(other.state_dict().items(), version=17)
    after = engine.generate(PROMPTS, how, SEEDS)
    assert ({c.policy_version for c in before}, {c.policy_version for c in after}) == ({0}, {17})
    assert [c.token_ids for c in before] != [c.token_ids for c in after]
    assert [c.token_ids for c in after] == [c.token_ids for c in engine_class(other).generate(PROMPTS, how, SEEDS)]


@each_engine
def test_progress_ends_with_everything_done(engine_class):
    progress = []
    completions = engine_class(tiny_model(), slots=3).generate(
        PROMPTS, Decoding(5, ()), SEEDS, lambda done, tokens: progress.append((done, tokens))
    )
    assert progress == sorted(progress)
    assert progress[-1] == (len(PROMPTS), sum(len(c.token_ids) for c in completions))


@each_engine
def test_invalid_requests_are_refused_before_sampling(engine_class):
    engine, how = engine_class(tiny_model()), Decoding(4, ())
    with pytest.raises(DataError, match="no token_ids"):
        engine.generate([Prompt("a", "")], how, [0])
    with pytest.raises(DataError, match="another tokenizer"):
        engine.generate([Prompt("a", "", token_ids=(VOCAB,))], how, [0])
    with pytest.raises(ConfigError, match="256 positions"):
        engine.generate(make_prompts([254]), how, [0])
    with pytest.raises(ConfigError, match="max_response_tokens"):
        engine.generate(PROMPTS, Decoding(0, ()), SEEDS)
    with pytest.raises(ValueError, match="one seed per prompt"):
        engine.generate(PROMPTS, how, [0])


@each_engine
def test_weights_that_are_not_numbers_are_a_divergence(engine_class):
    model = tiny_model()
    engine = engine_class(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="not numbers"):
        engine.generate(PROMPTS, Decoding(4, ()), SEEDS)


@pytest.mark.parametrize("architecture", OWN_MEMORY)
def test_the_torch_engine_names_the_engine_that_serves_what_it_refuses(architecture):
    with pytest.raises(ModelError, match=r"--set rollout\.engine=generate"):
        TorchEngine(tiny_model(architecture))


def test_a_model_whose_own_cache_is_wrong_is_refused():
    model = tiny_model()
    forward = model.forward
    model.forward = lambda **how: _shifted(forward(**how), how.get("use_cache", False))
    with pytest.raises(ModelError, match="differs from a full forward pass"):
        GenerateEngine(model)


def _shifted(output, cached: bool):
    output.logits = output.logits + torch.arange(VOCAB) * cached
    return output


def test_a_model_that_cannot_generate_is_refused_with_its_error():
    model = tiny_model()

    @functools.wraps(model.prepare_inputs_for_generation)
    def broken(*args, **how):
        raise KeyError("missing")

    model.prepare_inputs_for_generation = broken
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be sampled from .* \(KeyError: 'missing'\)"):
        GenerateEngine(model)
    with pytest.raises(ModelError, match="with `generate`; Linear has none"):
        GenerateEngine(torch.nn.Linear(1, 1))
