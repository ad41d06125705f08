"""Critics that cost less than a second policy: beside the policy, smaller, with adapters, partly frozen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_invariance import batch_of
from test_resume import hashes, timeless
from transformers import AutoModelForCausalLM, LongcatFlashConfig

import toys
from vapo.durability import checkpoint
from vapo.errors import ConfigError, ModelError
from vapo.models.backbone import layer_states
from vapo.models.critic_notes import value_at
from vapo.models.loading import load_policy, load_side_critic
from vapo.models.saving import save_model
from vapo.models.side import SideModel
from vapo.reports.live import SilentView
from vapo.session import learners
from vapo.session import lifecycle as runs
from vapo.session.layers import set_layer
from vapo.trainer import loop
from vapo.trainer.batch import Batch, concatenate
from vapo.trainer.feature_cache import FeatureCache
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.run import Run
from vapo.trainer.scoring import score

SIDE = {"model": {"critic_kind": "side", "side_layers": 2}}
REPLAYS = {"trainer": {"pretraining_passes": 3}}
FROZEN = {"algorithm": {"credit": {"frozen": ["*self_attn*"]}}}
KINDS: dict[str, dict[str, Any]] = {
    "side": {**SIDE, **REPLAYS},
    "side, beside adapters, with a bounded head": {
        "model": {"critic_kind": "side", "side_attention": True, "policy_lora": 2, "gradient_checkpointing": True},
        "algorithm": {"credit": {"head": {"kind": "bounded"}}},
    },
    "adapters on the critic": {"model": {"critic_lora": 2}},
    "frozen attention": FROZEN,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def weights_of(network: LocalNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def side_run(base: Path, folder: Path, *layers: dict[str, Any]) -> Run:
    """A run with a side critic whose head is random: at 0 it would give the blocks no gradient."""
    run = toys.toy_run(base, folder, SIDE, *layers)
    torch.manual_seed(3)
    torch.nn.init.normal_(run.critic.model.score.weight)
    return run


# --------------------------------------------------------------------------- exact resume, for every kind


@pytest.fixture(scope="module", params=KINDS)
def finished(request, base: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.finish(toys.toy_run(base, folder, KINDS[request.param]))
    return folder


@pytest.mark.parametrize("edge", ["pretrain_000001", "step_000001"])
def test_a_resumed_run_has_the_lines_and_the_bytes_of_one_never_stopped(finished: Path, tmp_path: Path, edge: str):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    serial = json.loads((copy / "checkpoints" / edge / "manifest.json").read_text())["serial"]
    for other in (copy / "checkpoints").iterdir():
        if json.loads((other / "manifest.json").read_text())["serial"] > serial:
            shutil.rmtree(other)
    runs.finish(runs.resume(copy, SilentView(), task=toys.EchoTask()))
    assert timeless(copy, "metrics.jsonl") == timeless(finished, "metrics.jsonl")
    last = "checkpoints/step_000003"
    assert hashes(copy / last) == hashes(finished / last)
    for file in ("policy/model.safetensors", "critic/model.safetensors"):
        assert checkpoint.sha256(copy / file) == checkpoint.sha256(finished / file)


def test_the_critic_learned_and_has_its_own_learning_rate(finished: Path):
    lines = timeless(finished, "metrics.jsonl")
    assert [line["phase"] for line in lines] == ["pretrain", "pretrain", "train", "train", "train"]
    assert all(line["grad_norm/critic"] > 0 and line["lr/critic"] == 1e-2 for line in lines)
    first, last = (load_file(finished / "checkpoints" / name / "critic_optimizer.safetensors")
                   for name in ("pretrain_000001", "step_000003"))  # fmt: skip
    assert first.keys() == last.keys()
    assert not all(torch.equal(tensor, last[name]) for name, tensor in first.items())


# --------------------------------------------------------------------------- the side critic


def test_a_side_critics_folder_is_small_and_loads_beside_the_trained_policy(base: Path, tmp_path: Path):
    run = runs.finish(toys.toy_run(base, tmp_path / "run", {"model": {"critic_kind": "side"}}))
    folder = tmp_path / "run" / "critic"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert run.critic.model.config.hidden_size == 32  # 2 % of the toy would be nothing
    loaded, _ = load_side_critic(folder, run.policy.model)
    assert equal(weights_of(run.critic), loaded.state_dict())
    assert not (tmp_path / "run" / "critic_adapter").exists()
    assert run.critic.published_bytes == 4 * loaded.num_parameters()
    # as docs/tasks.md shows it
    batch = batch_of([5, 5]).select(torch.tensor([0]))
    expected = run.critic.score(batch, ("values", "final_values"), micro_batch_tokens=100)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    critic = SideModel.from_pretrained(folder)
    _, features = layer_states(policy, batch.tokens, "padded", critic.config.policy_layers)
    values = critic.values([features], [3])[:, 0]
    torch.testing.assert_close(values[2:-1], expected["values"][0])
    torch.testing.assert_close(values[-1:], expected["final_values"])


def test_the_critics_updates_leave_the_policy_as_it_is(base: Path, tmp_path: Path):
    run = side_run(base, tmp_path / "run")
    policy, critic = run.policy, run.critic
    before, first = weights_of(policy), weights_of(critic)
    batch = score(batch_of([5, 8, 3, 8]), policy=policy, critic=critic, reads=critic.reads, micro_batch_tokens=1000)
    assert all(not rows.requires_grad for rows in batch.features)
    for learned in (batch, replace(batch, features=None)):
        critic.accumulate(learned, micro_batch_tokens=1000)
        assert all(parameter.grad is None for parameter in policy.model.parameters())
        assert all(bool(parameter.grad.any()) for parameter in critic.parameters)
        critic.step(1e-2)
    run.folder.close()
    assert equal(before, weights_of(policy))
    assert not equal(first, weights_of(critic))


def test_value_pretraining_moves_the_side_critic_alone(base: Path, tmp_path: Path):
    run = side_run(base, tmp_path / "run", REPLAYS)
    policy, critic = weights_of(run.policy), weights_of(run.critic)
    run.hand_over()
    loop.pretrain_critic(run)
    run.folder.close()
    assert equal(policy, weights_of(run.policy))
    assert not equal(critic, weights_of(run.critic))


def test_the_values_of_a_step_are_those_before_the_policys_update(base: Path, tmp_path: Path, monkeypatch):
    run = side_run(base, tmp_path / "run", {"trainer": {"pretraining_steps": 0}})
    seen: list[Batch] = []
    real = LocalNetwork.accumulate

    def watched(self: LocalNetwork, minibatch: Batch, *, micro_batch_tokens: int) -> dict[str, float]:
        if self.name == "critic":
            # the features that it learns from are what the policy says now, at every minibatch
            now = self.network.features_of(replace(minibatch, features=None).sequences)
            for kept, fresh in zip(minibatch.features, now, strict=True):
                torch.testing.assert_close(kept, fresh)
            seen.append(minibatch)
        else:
            assert minibatch.features is None
        return real(self, minibatch, micro_batch_tokens=micro_batch_tokens)

    monkeypatch.setattr(LocalNetwork, "accumulate", watched)
    run.hand_over()
    loop.train_step(run)
    loop.train_step(run)
    run.folder.close()
    assert len(seen) == 2 * 4
    scored = [minibatch for minibatch in seen if minibatch.old_values is not None]
    assert len(scored) == 2 * 3  # the first of a step gives its values while it is learned from
    assert all(float(minibatch.old_values.abs().max()) > 0 for minibatch in scored)


@pytest.mark.parametrize("tokens", [1, 25, 60, 10_000])
@pytest.mark.parametrize("kept", [True, False], ids=["features kept", "computed again"])
def test_the_gradient_does_not_depend_on_micro_batches_or_on_where_features_come_from(
    base: Path, tmp_path: Path, tokens: int, kept: bool
):
    run = side_run(base, tmp_path / "run")

    def gradient(batch: Batch, budget: int) -> torch.Tensor:
        run.critic.accumulate(batch, micro_batch_tokens=budget)
        return torch.cat([parameter.grad.flatten().clone() for parameter in run.critic.parameters])

    batch = score(
        batch_of([2, 11, 5, 17, 1, 8, 30, 3]),
        policy=run.policy,
        critic=run.critic,
        reads=run.critic.reads,
        micro_batch_tokens=10**6,
    )
    whole = gradient(batch, 10**6)
    cut = gradient(batch if kept else replace(batch, features=None), tokens)
    run.folder.close()
    assert float(whole.norm()) > 0.01
    assert float((cut - whole).norm() / whole.norm()) < 1e-5


def test_scored_features_belong_to_their_rows_and_follow_them(base: Path, tmp_path: Path):
    run = side_run(base, tmp_path / "run")
    batch = batch_of([5, 8, 3, 8])
    batch = replace(batch, mask=batch.mask & torch.tensor([True, True, False, True])[:, None])
    scored = score(batch, policy=run.policy, critic=run.critic, reads=run.critic.reads, micro_batch_tokens=20)
    expected = run.critic.network.features_of(batch.sequences)
    run.folder.close()
    assert [tuple(rows.shape) for rows in scored.features] == [(8, 96), (11, 96), (6, 96), (11, 96)]
    for row in (0, 1, 3):
        torch.testing.assert_close(scored.features[row], expected[row])
    assert not bool(scored.features[2].any())  # a row that nobody learns from is not computed
    chosen = scored.select(torch.tensor([3, 0]))
    assert [id(rows) for rows in chosen.features] == [id(scored.features[3]), id(scored.features[0])]
    assert len(concatenate([chosen, scored]).features) == 6
    assert concatenate([chosen, batch]).features is None
    assert "features" not in scored.tensors()
    assert Batch.from_tensors(scored.tensors()).features is None


def test_features_that_do_not_fit_are_computed_again_and_the_run_learns_the_same(
    base: Path, tmp_path: Path, monkeypatch
):
    kept = runs.finish(toys.toy_run(base, tmp_path / "kept", SIDE), report=False)
    monkeypatch.setattr(learners, "total_memory", lambda: 1000)
    again = runs.finish(toys.toy_run(base, tmp_path / "again", SIDE), report=False)
    assert (kept.critic.reads, again.critic.reads) == (("features",), ())
    for one, other in zip(kept.critic.parameters, again.critic.parameters, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    ours, theirs = (timeless(tmp_path / name, "metrics.jsonl")[2] for name in ("kept", "again"))
    assert ours["value/mean"] == pytest.approx(theirs["value/mean"], abs=1e-4)


def test_a_side_critic_can_be_a_reward_model_that_another_run_starts_from(base: Path, tmp_path: Path):
    at_end = {"trainer": {"steps": 0, "pretraining_at": "end"}}
    runs.finish(toys.toy_run(base, tmp_path / "judge", SIDE, at_end), report=False)
    saved, _ = load_side_critic(tmp_path / "judge" / "critic", toys.tiny_llama())
    assert value_at(saved) == "end"
    assert bool(saved.score.weight.any())
    given = {"model": {"critic": str(tmp_path / "judge" / "critic"), "critic_kind": "side"}}
    run = runs.finish(toys.toy_run(base, tmp_path / "run", given, {"trainer": {"pretraining_steps": 0}}), report=False)
    assert value_at(run.critic.model) == "tokens"


def test_a_new_side_critic_starts_from_a_saved_one(base: Path, tmp_path: Path):
    first = runs.finish(toys.toy_run(base, tmp_path / "first", SIDE), report=False)
    folder = tmp_path / "first"
    given = {"model": {"critic": str(folder / "critic"), "critic_kind": "side"}}
    second = toys.toy_run(folder / "policy", tmp_path / "second", given)
    second.folder.close()
    assert "from" in second.critic.origin
    assert equal(weights_of(first.critic), weights_of(second.critic))
    with pytest.raises(ModelError, match=r"saved beside a policy with other weights.*Give that policy: the policy/"):
        toys.toy_run(base, tmp_path / "third", given)  # the policy has moved since


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_with_adapters_is_known_again_merged_or_not_and_in_low_precision(
    base: Path, tmp_path: Path, dtype: str
):
    side = {"model": {"critic_kind": "side", "policy_lora": 2, "dtype": dtype}}
    run = runs.finish(toys.toy_run(base, tmp_path / "run", side, {"trainer": {"actor_lr": 0.02}}), report=False)
    folder = run.folder.path
    saved = folder / "checkpoints" / f"step_{run.state.step:06d}"
    for policy, critic in ((folder, folder), (saved, saved), (folder, saved)):
        load_side_critic(critic / "critic", load_policy(policy / "policy"))
    with pytest.raises(ModelError, match="other weights"):
        load_side_critic(folder / "critic", load_policy(base))
    again = runs.resume(folder, SilentView(), task=toys.EchoTask(), changes=[set_layer("trainer.steps=4")])
    runs.finish(again, report=False)
    load_side_critic(folder / "critic", load_policy(folder / "policy"))


# --------------------------------------------------------------------------- mistakes


def test_mistakes_with_a_side_critic_are_one_line_each(base: Path, tmp_path: Path):
    def refusal(*layers: dict[str, Any], preset: str = "vapo") -> str:
        with pytest.raises((ConfigError, ModelError)) as caught:
            toys.toy_run(base, tmp_path / "run", *layers, preset=preset)
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    side = {"critic_kind": "side"}
    assert "leave out model.critic_lora" in refusal({"model": {**side, "critic_lora": 2}})
    assert "model.side_layers is a side critic's" in refusal({"model": {"side_layers": 2}})
    assert "model.side_layers=3 exceeds the policy's 2 layers" in refusal({"model": {**side, "side_layers": 3}})
    assert "holds no side critic" in refusal({"model": {**side, "critic": str(base)}})
    bounded = {"algorithm": {"credit": {"head": {"kind": "bounded"}}}}
    torch.manual_seed(0)
    sizes = {"policy_layers": [1], "policy_width": 32, "hidden_size": 4}
    save_model(SideModel(SideModel.config_class(**sizes)), None, tmp_path / "saved")
    assert "holds a side critic. Set model.critic_kind=side" in refusal({"model": {"critic": str(tmp_path / "saved")}})
    given = {"model": {**side, "critic": str(tmp_path / "saved")}}
    assert "has a linear head, and the method reads a bounded head" in refusal(given, bounded)
    two = {"model": {**side, "critic": str(tmp_path / "saved"), "side_layers": 2}}
    assert "model.side_layers=2, and the side critic in" in refusal(two)


def test_a_policy_whose_layers_cannot_be_found_is_refused_before_weights_load(tmp_path: Path):
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "n_routed_experts": 2}
    config = LongcatFlashConfig(**sizes, pad_token_id=0, bos_token_id=None, eos_token_id=1, moe_topk=1)
    config.save_pretrained(tmp_path / "base")  # its layers are two in one; the folder has no weights
    toys.tokenizer().save_pretrained(tmp_path / "base")
    rates = {"trainer": {"actor_lr": 1e-3, "critic_lr": 1e-3}}
    with pytest.raises(ModelError, match=r"of LongcatFlashForCausalLM cannot be read.*model.critic_kind=full"):
        toys.toy_run(tmp_path / "base", tmp_path / "run", {"model": {"critic_kind": "side"}}, rates)


# --------------------------------------------------------------------------- a smaller base, frozen parts


def test_a_smaller_base_with_the_same_tokenizer_is_a_critic(base: Path, tmp_path: Path):
    save_model(toys.tiny_llama(1, hidden_size=16, num_hidden_layers=1), toys.tokenizer(), tmp_path / "small")
    run = runs.finish(toys.toy_run(base, tmp_path / "run", {"model": {"critic": str(tmp_path / "small")}}))
    config = json.loads((tmp_path / "run" / "critic" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (16, 1)
    assert run.critic.model.num_parameters() < 0.5 * run.policy.model.num_parameters()
    assert bool(run.critic.model.score.weight.any())


def test_frozen_attention_stays_as_it_is_and_takes_no_moments(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", FROZEN)
    before = weights_of(run.critic)
    runs.finish(run, report=False)
    after = load_file(tmp_path / "run" / "critic" / "model.safetensors")
    attention = {name for name in after if "self_attn" in name}
    assert len(attention) == 2 * 4
    assert all(torch.equal(after[name], before[name]) for name in attention)
    assert all(not torch.equal(after[name], before[name]) for name in after.keys() - attention)
    moments = load_file(tmp_path / "run" / "checkpoints" / "step_000003" / "critic_optimizer.safetensors")
    assert len({name.partition(".")[0] for name in moments}) == len(after) - len(attention)
    whole = toys.toy_run(base, tmp_path / "whole")
    whole.folder.close()
    assert run.critic.checkpoint_bytes < whole.critic.checkpoint_bytes


# --------------------------------------------------------------------------- one base in memory


def base_pointers(network: LocalNetwork) -> set[int]:
    """Where the fixed weights of the backbone lie."""
    return {p.data_ptr() for name, p in network.model.named_parameters() if "model." in name and not p.requires_grad}


def test_adapters_on_policy_and_critic_keep_one_base_through_training_and_resume(base: Path, tmp_path: Path):
    both = {"model": {"policy_lora": 2, "critic_lora": 2}}
    run = runs.finish(toys.toy_run(base, tmp_path / "run", both), report=False)
    assert base_pointers(run.critic) == base_pointers(run.policy)
    assert len(base_pointers(run.critic)) == 2 * 9 + 2
    assert "kept once" in run.critic.origin
    again = runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask())
    again.folder.close()
    assert base_pointers(again.critic) == base_pointers(again.policy)
    for name in ("policy", "critic"):
        one, other = getattr(run, name), getattr(again, name)
        assert equal(weights_of(one), weights_of(other))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    for name, tensor in run.policy.weights():
        torch.testing.assert_close(merged[name], tensor)


def test_sharing_the_base_changes_no_number(base: Path, tmp_path: Path, monkeypatch):
    both = {"model": {"policy_lora": 2, "critic_lora": 2}}
    runs.finish(toys.toy_run(base, tmp_path / "shared", both), report=False)
    monkeypatch.setattr(learners, "share_frozen", lambda critic, policy: 0)
    runs.finish(toys.toy_run(base, tmp_path / "apart", both), report=False)
    last = "checkpoints/step_000003"
    assert timeless(tmp_path / "shared", "metrics.jsonl") == timeless(tmp_path / "apart", "metrics.jsonl")
    for network in ("policy", "critic"):
        for file in (f"{network}/adapter_model.safetensors", f"{network}_optimizer.safetensors"):
            assert checkpoint.sha256(tmp_path / "shared" / last / file) == checkpoint.sha256(
                tmp_path / "apart" / last / file
            )


def test_a_critic_with_adapters_keeps_its_own_base_beside_a_policy_that_moves(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"model": {"critic_lora": 2}})
    start = weights_of(run.critic)
    assert not {p.data_ptr() for p in run.critic.model.parameters()} & {
        p.data_ptr() for p in run.policy.model.parameters()
    }
    runs.finish(run, report=False)
    moved = weights_of(run.policy)["model.layers.0.mlp.up_proj.weight"]
    fixed = "model.layers.0.mlp.up_proj.base_layer.weight"
    assert torch.equal(weights_of(run.critic)[fixed], start[fixed])
    assert not torch.equal(moved, start[fixed])


# --------------------------------------------------------------------------- hidden states of value pretraining


def pretrained(base: Path, folder: Path, limit: int | None, monkeypatch) -> tuple[Run, list[int]]:
    """A run whose value pretraining is over, and how many responses each pass of the policy computed."""
    run = side_run(base, folder, REPLAYS, {"trainer": {"pretraining_steps": 4}})
    if limit is not None:
        run.feature_bytes = limit
    passes: list[int] = []
    real = LocalNetwork.score

    def counted(self: LocalNetwork, batch: Batch, what: Any, *, micro_batch_tokens: int) -> dict[str, torch.Tensor]:
        if "features" in what:
            passes.append(len(batch))
        return real(self, batch, what, micro_batch_tokens=micro_batch_tokens)

    run.hand_over()
    with monkeypatch.context() as patched:
        patched.setattr(LocalNetwork, "score", counted)
        loop.pretrain_critic(run)
    run.folder.close()
    return run, passes


def test_kept_and_recomputed_hidden_states_have_the_same_bits(base: Path, tmp_path: Path, monkeypatch):
    row = 4 * 10 * 96
    kept, once = pretrained(base, tmp_path / "kept", None, monkeypatch)
    some, more = pretrained(base, tmp_path / "some", 30 * row, monkeypatch)
    none, most = pretrained(base, tmp_path / "none", 0, monkeypatch)
    assert equal(weights_of(kept.critic), weights_of(some.critic))
    assert equal(weights_of(kept.critic), weights_of(none.critic))
    lines = [timeless(tmp_path / name, "metrics.jsonl") for name in ("kept", "some", "none")]
    assert lines[0] == lines[1] == lines[2]
    assert sum(once) <= 16 + 4 * 32  # held-out and own responses, each at most once
    assert sum(once) < sum(more) < sum(most)


def test_the_cache_keeps_no_more_than_its_limit_and_skips_what_nobody_learns_from(base: Path, tmp_path: Path):
    run = side_run(base, tmp_path / "run")
    batch = batch_of([5, 8, 3, 8])
    batch = replace(batch, mask=batch.mask & torch.tensor([True, True, False, True])[:, None])
    cache = FeatureCache(run.policy, 4 * 96 * 20)
    found = cache.with_features(batch)
    assert (cache.size, cache.computed) == (4 * 96 * (8 + 11), 3)
    assert [tuple(rows.shape) for rows in found.features] == [(8, 96), (11, 96), (6, 96), (11, 96)]
    assert not bool(found.features[2].any())
    expected = run.critic.network.features_of(batch.sequences)
    for row in (0, 1, 3):
        torch.testing.assert_close(found.features[row], expected[row])
    again = cache.with_features(batch.select(torch.tensor([3, 1])))
    assert cache.computed == 4  # the last one did not fit
    assert torch.equal(again.features[0], found.features[3])
    assert again.features[1] is found.features[1]
    run.folder.close()
