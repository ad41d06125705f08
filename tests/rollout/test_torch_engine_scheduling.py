"""Rows come and go: finish reasons, shared prefixes, refilled slots, growing caches, interruptions."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB, make_prompts, teacher_forced, tiny_model

from vapo.errors import ConfigError, DataError, DivergedError, ModelError
from vapo.rollout import decoder
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding, Prompt

PROMPTS = make_prompts([4, 9, 9, 16, 25, 3], per_prompt=4)
SEEDS = list(range(len(PROMPTS)))


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit():
    completions = TorchEngine(tiny_model(), slots=8).generate(PROMPTS, Decoding(30, (7, 11, 20)), SEEDS)
    for c in completions:
        assert len(c.token_ids) == len(c.logprobs) <= 30
        assert not {7, 11, 20} & set(c.token_ids[:-1])
        if c.finish_reason == "stop":
            assert c.token_ids[-1] in {7, 11, 20}
        else:
            assert len(c.token_ids) == 30
            assert c.token_ids[-1] not in {7, 11, 20}
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_a_stop_token_as_the_very_last_allowed_token_is_a_stop():
    model = tiny_model()
    free = TorchEngine(model).generate(PROMPTS[:1], Decoding(10, ()), [5])[0]
    last = free.token_ids[9]
    assert last not in free.token_ids[:9]
    stopped = TorchEngine(model).generate(PROMPTS[:1], Decoding(10, (last,)), [5])[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids, "stop")
    cut = TorchEngine(model).generate(PROMPTS[:1], Decoding(9, (last,)), [5])[0]
    assert (cut.token_ids, cut.finish_reason) == (free.token_ids[:9], "length")


def test_one_token_responses_work():
    completions = TorchEngine(tiny_model(), slots=4).generate(PROMPTS, Decoding(1, (7,)), SEEDS)
    assert all(len(c.token_ids) == 1 for c in completions)


@pytest.mark.parametrize("slots", [3, 5, 100])
def test_equal_neighbours_are_prefilled_once_even_if_their_group_is_admitted_in_parts(slots):
    engine = TorchEngine(tiny_model(), slots=slots)
    engine.generate(PROMPTS, Decoding(12, (7, 11)), SEEDS)
    # The last token of a prompt is fed by the first decode step. The neighbours of length 9 differ.
    assert engine.num_prefilled_tokens == 3 + 8 + 8 + 15 + 24 + 2


def test_slots_are_refilled_while_others_go_on():
    model = tiny_model()
    prompts = make_prompts([3] * 48)
    calls = []
    forward = model.forward

    def counted(*args, **kwargs):
        calls.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    engine = TorchEngine(model, slots=16)
    engine._decoder._may_be_lean = False  # its steps call the model
    model.forward = counted
    completions = engine.generate(prompts, Decoding(40, tuple(range(5, 9))), range(48))
    steps = sum(1 for _, length in calls if length == 1)
    lengths = [len(c.token_ids) for c in completions]
    # Waves of 16 that wait for their longest member would take the sum of the waves' maxima.
    waves = sum(max(lengths[i : i + 16]) for i in range(0, 48, 16))
    assert max(lengths) > 3 * sorted(lengths)[24]
    assert sum(lengths) / 16 <= steps < 0.75 * waves


def test_the_last_samples_run_in_a_small_batch(monkeypatch):
    monkeypatch.setattr(decoder, "exact_row_counts", lambda *_: list(range(16, 113, 16)))  # on every machine
    model = tiny_model()
    rows = []
    forward = model.forward

    def counted(*args, **kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    engine = TorchEngine(model, slots=100)
    engine._decoder._may_be_lean = False  # its steps call the model
    model.forward = counted
    completions = engine.generate(make_prompts([2] * 100), Decoding(60, (5, 6, 7)), range(100))
    assert [len(c.token_ids) for c in completions].count(60) < 16
    assert rows[:2] == [100, 112]  # the prompts' prefill; then all of them, in buckets of 16
    assert rows[-1] == 16


def test_the_cache_grows_for_long_responses():
    model = tiny_model(max_position_embeddings=512, num_hidden_layers=1)
    prompts = make_prompts([5, 30])
    engine = TorchEngine(model)
    completions = engine.generate(prompts, Decoding(300, ()), [1, 2])
    for prompt, c in zip(prompts, completions, strict=True):
        gap = teacher_forced(model, prompt, c) - torch.tensor(c.logprobs)
        assert gap.abs().max() < 1e-4


def test_progress_counts_up_to_everything():
    seen = []
    completions = TorchEngine(tiny_model(), slots=8).generate(
        PROMPTS, Decoding(30, (7,)), SEEDS, lambda finished, tokens: seen.append((finished, tokens))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (len(PROMPTS), sum(len(c.token_ids) for c in completions))


def test_an_interrupted_engine_can_be_used_again():
    model = tiny_model()
    engine = TorchEngine(model, slots=8)
    expected = engine.generate(PROMPTS, Decoding(20, (7,)), SEEDS)

    def interrupt(finished, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, Decoding(20, (7,)), SEEDS, interrupt)
    assert model.training
    assert engine.generate(PROMPTS, Decoding(20, (7,)), SEEDS) == expected


def test_no_prompts_give_no_completions():
    assert TorchEngine(tiny_model()).generate([], Decoding(5, ()), []) == []


def test_a_closed_engine_has_freed_its_cache():
    engine = TorchEngine(tiny_model())
    engine.generate(PROMPTS[:1], Decoding(5, ()), [1])
    engine.close()
    assert engine._decoder._cache is None


def test_wrong_requests_raise_errors_that_name_the_problem():
    engine = TorchEngine(tiny_model())
    good = PROMPTS[0]
    with pytest.raises(ValueError, match=r"2 seeds for 1 prompt$"):
        engine.generate([good], Decoding(5, ()), [1, 2])
    with pytest.raises(ConfigError, match=r"'p0' has 4 tokens; with max_tokens=253 .* 256 positions.* at most 252"):
        engine.generate([good], Decoding(253, ()), [1])
    with pytest.raises(DataError, match="'empty' has no token_ids"):
        engine.generate([good, Prompt(id="empty", text="hi")], Decoding(5, ()), [1, 2])
    with pytest.raises(DataError, match=f"'big' has token ids from 3 to {VOCAB}, but the model knows 0 to {VOCAB - 1}"):
        engine.generate([Prompt(id="big", text="", token_ids=(3, VOCAB))], Decoding(5, ()), [1])
    for how in (Decoding(0, ()), Decoding(5, (), temperature=-1.0), Decoding(5, (), top_p=0.0)):
        with pytest.raises(ConfigError):
            engine.generate([good], how, [1])
    with pytest.raises(ConfigError, match="slots=0"):
        TorchEngine(tiny_model(), slots=0)


@pytest.mark.parametrize("architecture", ["llama-mqa", "gpt2"])
def test_a_sample_may_fill_the_context_to_the_last_position(architecture):
    model = tiny_model(architecture, max_position_embeddings=24)
    engine = TorchEngine(model)
    # A prompt of 20 is padded beyond the 24 positions that gpt2 has in its table.
    for prompt in make_prompts([4, 20]):
        room = 24 - len(prompt.token_ids)
        completion = engine.generate([prompt], Decoding(room, ()), [1])[0]
        assert len(completion.token_ids) == room
        assert (teacher_forced(model, prompt, completion) - torch.tensor(completion.logprobs)).abs().max() < 1e-4


def test_a_long_prompt_with_a_short_response_fits_the_cache():
    # 513 tokens are padded to 576 for the prefill; attention needs only 544 columns.
    model = tiny_model(max_position_embeddings=600)
    prompt = make_prompts([514])[0]
    completion = TorchEngine(model).generate([prompt], Decoding(1, ()), [1])[0]
    assert (teacher_forced(model, prompt, completion) - torch.tensor(completion.logprobs)).abs().max() < 1e-4


def test_logits_that_are_not_numbers_stop_the_rollout_and_do_not_outlive_the_weights():
    model = tiny_model()
    engine = TorchEngine(model)
    expected = engine.generate(PROMPTS, Decoding(10, ()), SEEDS)
    good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in good.items()}
    engine.load_weights(bad.items(), version=3)
    with pytest.raises(DivergedError, match="version 3"):
        engine.generate(PROMPTS, Decoding(10, ()), SEEDS)
    engine.load_weights(good.items(), version=0)
    assert engine.generate(PROMPTS, Decoding(10, ()), SEEDS) == expected


def test_models_without_plain_attention_are_refused():
    from transformers import LlamaConfig, MambaConfig, MambaForCausalLM, Qwen3NextConfig

    from vapo.rollout.decoder import _layer_windows

    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="MambaForCausalLM is recurrent or hybrid"):
        TorchEngine(mamba)
    with pytest.raises(ModelError, match="linear_attention"):
        _layer_windows(Qwen3NextConfig())
    assert _layer_windows(LlamaConfig()) == {"full_attention": None}
    with pytest.raises(ModelError, match="no transformers config"):
        TorchEngine(torch.nn.Linear(2, 2))


def test_a_model_whose_cached_steps_disagree_with_its_full_pass_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    # Bloom's position bias comes from a 2-D mask, which a batch of different positions does not have.
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        TorchEngine(bloom)
