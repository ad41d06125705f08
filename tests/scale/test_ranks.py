"""Two training ranks on a Ray of their own, which all tests of this file share, against networks in this process."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file

import toys
from vapo.durability.checkpoint import Entries, file_entry
from vapo.errors import RankError
from vapo.models import logprobs
from vapo.models.loading import load_policy
from vapo.reports.live import SilentView
from vapo.reports.runfiles import read_jsonl
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.rank import Failure, Rank
from vapo.scale.ray_network import Ranks
from vapo.scale.sharding import RankGroup
from vapo.session import lifecycle as runs
from vapo.session.learners import LearnerPlan, learner_plan, load_learners
from vapo.trainer.batch import Batch
from vapo.trainer.group import ALONE, Group
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.network import Network
from vapo.trainer.run import Run
from vapo.trainer.spans import Spans

pytestmark = pytest.mark.timeout(120)
LENGTHS = [3, 8, 5, 1, 7, 6, 2]
SIDE = {"model": {"critic_kind": "side"}}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "full critic": ({}, "vapo"),
    "side critic": (SIDE, "vapo"),
    "adapters and a reference": (
        {"model": {"policy_lora": 4, "critic_lora": 4}, "algorithm": {"kl": {"coef": 0.5}}},
        "vapo",
    ),
    "taking turns": ({"scale": {"offload": True}}, "vapo"),
    "frozen, checkpointed": (
        {"model": {"gradient_checkpointing": True}, "algorithm": {"credit": {"frozen": ["*self_attn*"]}}},
        "vapo",
    ),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    cluster = Cluster(Wanted(2))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks cannot import tests
    made = Ranks([cluster.spawn(Rank, name=f"training rank {i}") for i in range(2)], limit_s=60)
    made.meet()
    yield made
    made.close()
    cluster.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def plan_of(base: Path, *layers: dict[str, Any], preset: str = "vapo") -> LearnerPlan:
    task = toys.EchoTask()
    config = runs.with_task(toys.toy_config(base, *layers, preset=preset), task)
    return learner_plan(*runs.prepare(config, SilentView(), task))


def small_chunks(plan: LearnerPlan, group: Group) -> Mapping[str, LocalNetwork]:
    """The networks, whose output layer works in chunks of a few rows: the backward pass computes them again."""
    logprobs.CPU_LOGITS = 64
    return load_learners(plan, group)


def batch_of(lengths: list[int]) -> Batch:
    draws = torch.Generator().manual_seed(1)
    count, width = len(lengths), max(lengths)
    inside = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    numbers = partial(torch.rand, generator=draws)
    mask = inside.clone()
    mask[2] = False  # nothing is learned from one of the rows
    return Batch(
        tokens=tuple(torch.randint(2, 13, (length + 3,), generator=draws) for length in lengths),
        response_lengths=torch.tensor(lengths),
        mask=mask,
        groups=torch.zeros(count, dtype=torch.long),
        right=torch.arange(count) % 2 == 0,
        valid=torch.ones(count, dtype=torch.bool),
        truncated=torch.zeros(count, dtype=torch.bool),
        outcomes=numbers(count),
        critic_outcomes=numbers(count),
        policy_rows=torch.ones(count, dtype=torch.bool),
        sampled_logp=-3 * numbers(count, width),
        old_logp=-3 * numbers(count, width),
        ref_logp=-3 * numbers(count, width),
        advantages=numbers(count, width) - 0.5,
        returns=numbers(count, width),
    )


def do_steps(networks: Mapping[str, Network], count: int = 2) -> list[Any]:
    """What the networks say while they score and learn: tensors and numbers."""
    batch, said = batch_of(LENGTHS), list[Any]()
    for tokens in (1000, 12)[:count]:  # with few tokens at a time there are pieces that one rank is idle in
        for name in ("critic", "policy"):
            network = networks[name]
            what = ("logp", "entropy") if name == "policy" else ("values", "final_values")
            said += network.score(batch, what, micro_batch_tokens=tokens).values()
            gradient = network.accumulate(batch, micro_batch_tokens=tokens)
            said += [gradient.figures, network.step(1e-3).figures]
            said += [] if gradient.values is None else [gradient.values]
    if "reference" in networks:
        said += networks["reference"].score(batch, ("logp",), micro_batch_tokens=12).values()
    return said


def check_equal(ours: list[Any], theirs: list[Any]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        else:
            assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_score_and_learn_what_one_process_does(ranks: Ranks, base: Path, case: str, monkeypatch):
    layers, preset = CASES[case]
    plan = plan_of(base, layers, preset=preset)
    shared = ranks.build(partial(small_chunks, plan), Spans())
    monkeypatch.setattr(logprobs, "CPU_LOGITS", 64)
    local = load_learners(plan, ALONE)
    assert {name: n.origin.split(";")[0] for name, n in local.items()} == {n: shared[n].origin for n in shared}
    check_equal(do_steps(shared), do_steps(local))
    for name, network in local.items():
        assert network.checkpoint_bytes == shared[name].checkpoint_bytes
        for (own_name, own), (their_name, their) in zip(network.weights(), shared[name].weights(), strict=True):
            assert own_name == their_name
            torch.testing.assert_close(own, their, rtol=1e-5, atol=1e-5)


def test_a_bad_number_in_one_rank_stops_the_step_in_both(ranks: Ranks, base: Path):
    policy = ranks.build(partial(load_learners, plan_of(base)), Spans())["policy"]
    before = dict(policy.weights())
    good = batch_of(LENGTHS)
    assert good.advantages is not None
    advantages = good.advantages.clone()
    advantages[1, 0] = float("nan")
    policy.accumulate(replace(good, advantages=advantages), micro_batch_tokens=100)
    assert not policy.step(1e-3).taken
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.weights())
    policy.accumulate(good, micro_batch_tokens=100)
    assert policy.step(1e-3).taken


@pytest.mark.parametrize("case", ["full critic", "side critic", "adapters and a reference"])
def test_checkpoints_move_between_one_process_and_two_ranks_bit_for_bit(
    ranks: Ranks, base: Path, tmp_path: Path, case: str
):
    plan = plan_of(base, CASES[case][0])
    shared, local = ranks.build(partial(load_learners, plan), Spans()), load_learners(plan, ALONE)
    do_steps(shared)
    known = save_all(shared, tmp_path / "two")
    load_all(local, tmp_path / "two")
    save_all(local, tmp_path / "one")
    do_steps(shared, 1)  # so that the next line has something to do
    load_all(shared, tmp_path / "one")
    save_all(shared, tmp_path / "again")
    check_same_files(tmp_path / "two", tmp_path / "again")
    load_all(local, tmp_path / "again")
    save_all(local, tmp_path / "last")
    check_same_files(tmp_path / "one", tmp_path / "last")
    check_equal(do_steps(shared), do_steps(local))
    in_shards = list((tmp_path / "two").rglob("shard-*.safetensors"))
    assert {str(path.relative_to(tmp_path / "two")) for path in in_shards} == known.keys()
    assert len(in_shards) == (0 if case == "adapters and a reference" else 8)  # 2 networks, 2 files of 2 ranks each
    assert known == {name: file_entry(tmp_path / "two" / name) for name in known}
    shared["policy"].publish(tmp_path / "published")
    told = dict(shared["policy"].weights())
    assert all(
        torch.equal(tensor, told[name]) for name, tensor in load_policy(tmp_path / "published").state_dict().items()
    )


def save_all(networks: Mapping[str, Network], folder: Path) -> Entries:
    folder.mkdir()
    known: Entries = {}
    for network in networks.values():
        known |= network.save(folder)
    return known


def load_all(networks: Mapping[str, Network], folder: Path) -> None:
    for network in networks.values():
        network.load(folder)


def check_same_files(one: Path, other: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.endswith(".safetensors"):
            mine, theirs = load_file(one / name), load_file(other / name)
            assert mine.keys() == theirs.keys(), name
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items()), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_group_of_one_rank_is_the_same_again(ranks: Ranks, base: Path, tmp_path: Path):
    plan = plan_of(base)
    shared = ranks.build(partial(load_learners, plan), Spans())
    do_steps(shared)
    save_all(shared, tmp_path / "two")
    group = RankGroup(0, 1, f"file://{tmp_path}/meet", limit_s=30)
    try:
        alone = load_learners(plan, group)
        load_all(alone, tmp_path / "two")
        save_all(alone, tmp_path / "one")
        load_all(shared, tmp_path / "one")
        save_all(shared, tmp_path / "again")
        check_same_files(tmp_path / "two", tmp_path / "again")
        check_equal(do_steps(shared), do_steps(alone))
    finally:
        group.close()


def test_layers_are_gathered_in_bfloat16_where_products_are_made_in_it(base: Path, tmp_path: Path):
    plan = plan_of(base, {"model": {"dtype": "bfloat16"}})
    group = RankGroup(0, 1, f"file://{tmp_path}/meet", limit_s=30)
    seen: dict[str, torch.dtype] = {}

    def look(name: str, module: torch.nn.Module, _: object) -> None:
        seen[name] = module.weight.dtype  # type: ignore[assignment]

    try:
        sharded, local = load_learners(plan, group), load_learners(plan, ALONE)
        inside = sharded["policy"].model
        for name in ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.norm"):
            inside.get_submodule(name).register_forward_pre_hook(partial(look, name))
        ours, theirs = do_steps(sharded), do_steps(local)
        assert list(seen.values()) == [torch.float32, torch.bfloat16, torch.float32]
        for mine, other in zip(ours, theirs, strict=True):
            if isinstance(mine, torch.Tensor):
                torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)  # two updates round differently
            else:
                assert mine == pytest.approx(other, rel=3e-3, abs=1e-6)
        assert {tensor.dtype for _, tensor in sharded["policy"].weights()} == {torch.float32}
    finally:
        group.close()


def test_a_reference_takes_the_policys_weights_without_the_driver(ranks: Ranks, base: Path):
    plan = plan_of(base, {"algorithm": {"kl": {"coef": 0.5}}})
    networks = ranks.build(partial(load_learners, plan), Spans())
    do_steps(networks)
    policy, reference = networks["policy"], networks["reference"]
    reference.copy_weights(policy.weights(merged=False))
    told = dict(policy.weights())
    assert all(torch.equal(tensor, told[name]) for name, tensor in reference.weights())


def test_an_error_that_a_run_knows_comes_as_it_is_and_the_ranks_go_on(ranks: Ranks, base: Path, tmp_path: Path):
    networks = ranks.build(partial(load_learners, plan_of(base)), Spans())
    do_steps(networks)  # so that the optimizers have moments, which the ranks exchange in a save
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        networks["policy"].save(blocked)
    assert networks["policy"].score(batch_of(LENGTHS), ("logp",), micro_batch_tokens=100)["logp"].any()
    save_all(networks, tmp_path / "free")


def test_an_error_that_no_run_knows_is_an_error_of_the_rank(ranks: Ranks):
    error = ranks._cause("step the policy", [], {}, {1: ValueError("x\nValueError: no such shape.")}, {})
    assert isinstance(error, RankError)
    assert error.would_repeat
    assert re.match(r"Training rank 1 .* failed, asked to step the policy: ValueError: no such shape\.", str(error))


def test_a_rank_that_runs_out_of_memory_while_it_hands_out_weights_says_so():
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    rank = Rank.__new__(Rank)
    rank._weights = weights()
    found = rank.next_weights(1)
    assert isinstance(found, Failure)
    assert found.out_of_memory


RUNS = {
    "full critic": ({}, "vapo"),
    # in one process the features come from a pass over all responses, which also tells the entropy
    "side critic": (SIDE | {"trainer": {"scoring": "all"}}, "vapo"),
    "residual baseline": ({}, "vapo2"),
    "dynamic sampling": ({}, "dapo"),
}
TIMED = ("time/", "throughput/", "mfu/", "memory/", "step_time")


@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_two_ranks_writes_the_metrics_of_one_process(ranks: Ranks, base: Path, tmp_path: Path, case: str):
    layers, preset = RUNS[case]
    rates = {"trainer": {"actor_lr": 1e-3, "critic_lr": 1e-3}, "checkpoint": {"every": 0}}
    local = toys.toy_run(base, tmp_path / "one", layers, rates, preset=preset)
    runs.finish(local, report=False)
    shared = toys.toy_run(base, tmp_path / "two", layers, rates, preset=preset)
    put_on_ranks(shared, ranks, plan_of(base, layers, rates, preset=preset))
    runs.finish(shared, report=False)
    lines = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for mine, theirs in zip(*lines, strict=True):
        compared = {key for key in mine if not key.startswith(TIMED)}
        assert compared == {key for key in theirs if not key.startswith(TIMED)}
        numbers = {key: mine[key] for key in compared if isinstance(mine[key], int | float)}
        assert {key: theirs[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)
        assert all(theirs[key] == mine[key] for key in compared - numbers.keys())  # words and nulls


def put_on_ranks(run: Run, ranks: Ranks, plan: LearnerPlan) -> None:
    networks = ranks.build(partial(load_learners, plan), run.spans)
    run.policy, run.critic = networks["policy"], networks.get("critic")


def test_a_rank_that_hangs_is_named_and_all_are_ended(ranks: Ranks, base: Path):
    networks = ranks.build(partial(load_learners, plan_of(base)), Spans())
    pids = [process.place().pid for process in ranks.processes]
    os.kill(pids[1], signal.SIGSTOP)
    ranks.limit_s = 2.0
    with pytest.raises(RankError, match=rf"raining rank 1 \(process {pids[1]}\).* did not answer within 2 s"):
        networks["policy"].score(batch_of(LENGTHS), ("logp",), micro_batch_tokens=100)
    check_ended(pids)
    with pytest.raises(RankError, match="were ended"):
        networks["policy"].step(0.0)


def check_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
