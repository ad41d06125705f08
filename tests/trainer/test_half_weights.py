"""`model.dtype: bfloat16-weights` in a network that trains: exact resume, its gradient, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_invariance import LENGTHS, batch_of
from transformers import LlamaForTokenClassification

import toys
from vapo.algo.presets import VAPO
from vapo.errors import ConfigError
from vapo.models.critic_notes import value_head
from vapo.models.networks import Critic, Policy
from vapo.session.scaling import placement_of
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, PolicyObjective

LR = 1e-4


def network(kind: str, *, half: bool = True, seed: int = 0) -> LocalNetwork:
    """A policy or a critic, trained under autocast as a run does."""
    if kind == "policy":
        policy = Policy(toys.tiny_llama(seed), autocast=half)
        return LocalNetwork(kind, policy, objective=PolicyObjective(policy, VAPO), half_weights=half)
    torch.manual_seed(seed)
    config = toys.tiny_llama().config
    config.num_labels = 1
    critic = Critic(LlamaForTokenClassification(config).eval(), autocast=half)
    return LocalNetwork(kind, critic, objective=CriticObjective(critic, VAPO.credit), half_weights=half)


def learn(learner: LocalNetwork, steps: range) -> list[dict[str, float]]:
    figures = []
    for step in steps:
        found = learner.accumulate(batch_of(LENGTHS, seed=step), micro_batch_tokens=40).figures
        figures.append(found | learner.step(LR).figures)
    return figures


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_a_resumed_network_writes_the_bytes_of_one_that_went_on(kind, tmp_path: Path):
    whole, resumed = network(kind), network(kind, seed=1)
    learn(whole, range(2))
    whole.save(tmp_path / "two")
    resumed.load(tmp_path / "two")
    assert learn(whole, range(2, 4)) == learn(resumed, range(2, 4))
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "resumed")
    for file in (f"{kind}/model.safetensors", f"{kind}_optimizer.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()
    moments = load_file(tmp_path / "whole" / f"{kind}_optimizer.safetensors")
    assert moments["0.master"].dtype == torch.float32
    assert torch.equal(moments["0.master"].bfloat16(), next(whole.model.parameters()))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("half", [True, False], ids=["into bfloat16", "into float32"])
def test_a_run_may_be_resumed_in_the_other_precision(half, steps, tmp_path: Path):
    before, after = network("policy", half=not half), network("policy", half=half, seed=1)
    learn(before, range(steps))
    before.save(tmp_path)
    after.load(tmp_path)
    for old, new in zip(before.parameters, after.parameters, strict=True):
        assert torch.equal(new, old.bfloat16().float() if half else old)
    learn(after, range(steps, steps + 1))
    after.save(tmp_path / "again")
    stored = load_file(tmp_path / "again" / "policy_optimizer.safetensors")
    assert ("0.master" in stored) == half


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_the_gradient_is_that_of_float32_weights_up_to_rounding(kind):
    gradients = []
    for learner in (network(kind, half=False), network(kind)):
        learner.accumulate(batch_of(LENGTHS), micro_batch_tokens=40)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None]))
    assert gradients[0].shape == gradients[1].shape
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05


def test_a_critics_head_stays_float32():
    critic = network("critic")
    assert value_head(critic.model).weight.dtype == torch.float32
    assert critic.start_at(0.5) or bool(value_head(critic.model).weight.any())
    assert {p.dtype for p in critic.parameters} == {torch.float32}


def test_it_is_refused_with_adapters_and_where_weights_are_sharded(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    half = {"model": {"dtype": "bfloat16-weights"}}
    with pytest.raises(ConfigError, match="adapters"):
        toys.toy_config(base, {"model": {"dtype": "bfloat16-weights", "policy_lora": 2}})
    with pytest.raises(ConfigError, match="shards the weights"):
        placement_of(toys.toy_config(base, half, {"scale": {"backend": "ray"}}))
