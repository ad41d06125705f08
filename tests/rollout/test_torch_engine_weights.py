"""Weights come in, versions go out, and a shared model stays trainable."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, make_prompts, teacher_forced, tiny_model

from vapo.errors import ModelError
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.torch_engine import TorchEngine
from vapo.types import Decoding

PROMPTS = make_prompts([4, 9, 16], per_prompt=2)
SEEDS = list(range(len(PROMPTS)))
HOW = Decoding(max_tokens=12, stop_token_ids=())


def test_loaded_weights_change_the_samples_and_stamp_their_version():
    engine: RolloutEngine = TorchEngine(tiny_model(seed=0))
    other = tiny_model(seed=1)
    before = engine.generate(PROMPTS, HOW, SEEDS)
    assert engine.version == 0
    engine.load_weights(other.state_dict().items(), version=17)
    after = engine.generate(PROMPTS, HOW, SEEDS)
    assert engine.version == 17
    assert {c.policy_version for c in before} == {0}
    assert {c.policy_version for c in after} == {17}
    assert [c.token_ids for c in before] != [c.token_ids for c in after]
    fresh = TorchEngine(other).generate(PROMPTS, HOW, SEEDS)
    assert [(c.token_ids, c.logprobs) for c in after] == [(c.token_ids, c.logprobs) for c in fresh]


def test_shared_weights_are_seen_without_a_copy_and_follow_the_optimizer():
    model = tiny_model()
    engine = TorchEngine(model)
    engine.generate(PROMPTS, HOW, SEEDS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = model(torch.tensor([PROMPTS[0].token_ids])).logits.square().mean()
    loss.backward()
    optimizer.step()
    engine.load_weights(model.named_parameters(), version=1)
    for prompt, c in zip(PROMPTS, engine.generate(PROMPTS, HOW, SEEDS), strict=True):
        assert (teacher_forced(model, prompt, c) - torch.tensor(c.logprobs)).abs().max() < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_can_be_trained_after_it_has_sampled(architecture):
    model = tiny_model(architecture)
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Embedding))
    frozen.eval()
    engine = TorchEngine(model)
    engine.generate(PROMPTS, HOW, SEEDS)
    assert model.training
    assert not frozen.training
    assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    assert all(p.grad is None for p in model.parameters())
    model(torch.tensor([PROMPTS[0].token_ids])).logits.logsumexp(-1).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_tied_weights_may_come_under_one_name():
    engine = TorchEngine(tiny_model("qwen3-tied", seed=0))
    other = tiny_model("qwen3-tied", seed=1)
    assert "lm_head.weight" in other.state_dict()
    assert "lm_head.weight" not in dict(other.named_parameters())
    engine.load_weights(other.named_parameters(), version=1)
    for prompt, c in zip(PROMPTS, engine.generate(PROMPTS, HOW, SEEDS), strict=True):
        assert (teacher_forced(other, prompt, c) - torch.tensor(c.logprobs)).abs().max() < 1e-4


def test_weights_of_another_dtype_are_converted():
    model = tiny_model().to(torch.bfloat16)
    other = tiny_model(seed=1)
    TorchEngine(model).load_weights(other.named_parameters(), version=1)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.equal(model.lm_head.weight, other.lm_head.weight.to(torch.bfloat16))


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    model = tiny_model()
    engine = TorchEngine(model)
    expected = engine.generate(PROMPTS, HOW, SEEDS)
    weights = dict(tiny_model(seed=1).state_dict())
    missing = {name: t for name, t in weights.items() if name != "model.norm.weight"}
    unknown = {**weights, "model.layers.99.weight": torch.zeros(1)}
    shape = {**weights, "model.norm.weight": torch.zeros(33)}
    for wrong, message in (
        (missing, "missing: model.norm.weight"),
        (unknown, "unknown: model.layers.99.weight"),
        (shape, r"model.norm.weight \(33,\) instead of \(32,\)"),
    ):
        with pytest.raises(ModelError, match=message):
            engine.load_weights(wrong.items(), version=5)
        assert engine.version == 0
    assert engine.generate(PROMPTS, HOW, SEEDS) == expected
