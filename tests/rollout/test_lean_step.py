"""Steps without modules: which models have them, that their numbers are the modules', and what else then happens."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_prompts, tiny_model

from vapo.models.lora import add_lora
from vapo.rollout import lean_step
from vapo.rollout.lean_step import is_lean
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding

LEAN = ("llama-mqa", "qwen2", "qwen3-tied", "mistral-sliding")
PROMPTS = make_prompts([1, 5, 17, 40], per_prompt=2)
SEEDS = list(range(len(PROMPTS)))
HOW = Decoding(max_tokens=24, stop_token_ids=(7,))


def calls_of(monkeypatch) -> list[int]:
    """Rows of each step that is taken without modules, from now on."""
    rows, step = [], lean_step.LeanStep.__call__

    def counted(self, ids, *given):
        rows.append(len(ids))
        return step(self, ids, *given)

    monkeypatch.setattr(lean_step.LeanStep, "__call__", counted)
    return rows


@pytest.mark.parametrize("architecture", LEAN)
def test_samples_are_those_of_the_modules(architecture, monkeypatch):
    model = tiny_model(architecture)
    engine = TorchEngine(model)
    steps = calls_of(monkeypatch)
    lean = engine.generate(PROMPTS, HOW, SEEDS)
    assert steps
    engine._decoder._may_be_lean = False
    steps.clear()
    plain = engine.generate(PROMPTS, HOW, SEEDS)
    assert not steps
    for a, b in zip(lean, plain, strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_step_that_fails_leaves_the_modules(monkeypatch):
    def fails(*_):
        raise RuntimeError("the rotation has another size")

    plain = TorchEngine(tiny_model(LEAN[0]))
    plain._decoder._may_be_lean = False
    expected = plain.generate(PROMPTS, HOW, SEEDS)
    monkeypatch.setattr(lean_step.LeanStep, "__call__", fails)
    found = TorchEngine(tiny_model(LEAN[0])).generate(PROMPTS, HOW, SEEDS)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


@pytest.mark.parametrize("architecture", ["gemma3-mixed", "gpt-neox", "gpt2"])
def test_other_architectures_take_their_modules(architecture, monkeypatch):
    steps = calls_of(monkeypatch)
    TorchEngine(tiny_model(architecture)).generate(PROMPTS[:1], HOW, SEEDS[:1])
    assert not steps


def test_adapters_hooks_half_precision_eager_attention_and_moving_rotations_take_the_modules():
    assert is_lean(tiny_model())
    assert not is_lean(tiny_model().to(torch.bfloat16))
    assert not is_lean(tiny_model(attn_implementation="eager"))
    assert not is_lean(tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    assert not is_lean(tiny_model(hidden_act="gelu"))
    hooked = tiny_model()
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    assert not is_lean(hooked)
    adapted = tiny_model()
    add_lora(adapted, 2, 4.0)
    assert not is_lean(adapted)


def test_a_step_with_other_numbers_than_the_modules_is_not_used(monkeypatch):
    monkeypatch.setattr(lean_step, "_rotated", lambda states, *_: states)
    engine = TorchEngine(tiny_model())
    steps = calls_of(monkeypatch)
    engine.generate(PROMPTS[:1], HOW, SEEDS[:1])
    assert not steps


def test_weights_of_an_update_are_sampled_from_at_once():
    model = tiny_model()
    engine = TorchEngine(model)
    before = engine.generate(PROMPTS, HOW, SEEDS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    after = engine.generate(PROMPTS, HOW, SEEDS)
    assert after != before
    assert after == TorchEngine(model).generate(PROMPTS, HOW, SEEDS)
