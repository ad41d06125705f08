"""Value pretraining: what is learned from, how a reward model differs, and that a resume changes nothing."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from vapo.algo.presets import VAPO
from vapo.durability.checkpoint import sha256
from vapo.errors import ConfigError, StoppedError, VapoError
from vapo.models.backbone import hidden_states
from vapo.session import lifecycle as runs
from vapo.session.layers import Layer, Source
from vapo.trainer import replay
from vapo.trainer.batch import Batch, concatenate
from vapo.trainer.loop import train_step
from vapo.trainer.pretrain import pretrain_critic, replayed, rollouts_are_due, with_returns
from vapo.trainer.replay import ReplayPool, Rows, drawn_from
from vapo.trainer.rollouts import Rollout
from vapo.trainer.run import Run
from vapo.trainer.state import State


def batch_of(lengths: list[int], outcomes: list[float], first_token: int = 0) -> Batch:
    """Responses of the given lengths to prompts of one token; tokens count up from `first_token`."""
    width = max(lengths)
    inside = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    starts = [first_token + 100 * i for i in range(len(lengths))]
    return Batch(
        tokens=tuple(torch.arange(start, start + n + 1) for start, n in zip(starts, lengths, strict=True)),
        response_lengths=torch.tensor(lengths),
        mask=inside,
        groups=torch.arange(len(lengths)),
        right=torch.tensor(outcomes) > 0,
        valid=torch.ones(len(lengths), dtype=torch.bool),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        outcomes=torch.tensor(outcomes),
        critic_outcomes=torch.tensor(outcomes),
        policy_rows=torch.ones(len(lengths), dtype=torch.bool),
        sampled_logp=torch.zeros(len(lengths), width),
    )


def test_returns_are_what_was_earned_discounted_to_each_token():
    batch = with_returns(batch_of([3, 1], [1.0, -1.0]), replace(VAPO, credit=replace(VAPO.credit, gamma=0.5)))
    assert batch.returns is not None
    assert batch.returns.tolist() == [[0.25, 0.5, 1.0], [-1.0, 0.0, 0.0]]


def test_without_discount_every_tokens_return_is_the_outcome():
    batch = with_returns(batch_of([3, 2], [1.0, 0.0]), VAPO)
    assert batch.returns is not None
    assert batch.returns.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_concatenation_keeps_rows_widens_them_and_keeps_groups_apart():
    joined = concatenate([batch_of([2], [1.0]), batch_of([4, 1], [0.0, 1.0], first_token=50)])
    assert joined.mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert joined.groups.tolist() == [0, 1, 2]
    assert [t.tolist() for t in joined.tokens] == [[0, 1, 2], [50, 51, 52, 53, 54], [150, 151]]
    assert joined.outcomes.tolist() == [1.0, 0.0, 1.0]
    assert joined.returns is None


@pytest.mark.parametrize(("count", "drawn"), [(0, 0), (3, 3), (100, 4)])
def test_a_replay_holds_all_new_responses_and_draws_no_earlier_one_twice(count: int, drawn: int):
    new = batch_of([2, 3], [1.0, 0.0], first_token=1000)
    earlier = [batch_of([1, 2], [0.0, 1.0]), batch_of([5, 1], [0.0, 0.0], first_token=500)]
    learned = replayed(new, earlier, count, torch.Generator().manual_seed(0))
    starts = [int(t[0]) for t in learned.tokens]
    assert starts[:2] == [1000, 1100]
    assert len(starts) == 2 + drawn
    assert len(set(starts)) == len(starts)
    assert set(starts[2:]) <= {0, 100, 500, 600}


def test_a_draw_gives_the_rows_that_drawing_from_all_batches_at_once_would():
    earlier = [with_returns(batch_of(lengths, [1.0] * len(lengths), 300 * i), VAPO)
               for i, lengths in enumerate([[1, 4], [5], [2, 2, 3]])]  # fmt: skip
    for count in range(8):
        whole = concatenate(earlier)
        expected = whole.select(torch.randperm(6, generator=torch.Generator().manual_seed(count))[:count])
        found = drawn_from(earlier, count, torch.Generator().manual_seed(count))
        if count == 0:
            assert found is None
            continue
        assert found is not None
        one, other = found.tensors(), expected.tensors()
        assert one.keys() == other.keys()
        for name in one.keys() - {"groups"}:  # numbered anew
            assert torch.equal(one[name], other[name]), name


def everything(stored: Rows) -> Batch:
    return stored.select(torch.arange(len(stored)))


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in other.tensors().items():
        assert torch.equal(one.tensors()[name], tensor), name
        assert one.tensors()[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("row_read_bytes", [0, 2**15], ids=["row by row", "whole tensors"])
def test_the_pool_reads_the_same_rows_from_disk_that_batches_in_memory_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_read_bytes: int
):
    monkeypatch.setattr(replay, "ROW_READ_BYTES", row_read_bytes)
    batches = [
        with_returns(batch_of([1, 4, 2], [1.0, 0.0, 1.0]), VAPO),
        with_returns(batch_of([6, 3], [0.0, 1.0], 900), VAPO),
    ]
    pool = ReplayPool(tmp_path, pytest.fail)
    for batch in batches:
        pool.add(batch)
    for rows in ([0], [2, 0], [1, 2, 0]):
        assert_equal(pool.batches[0].select(torch.tensor(rows)), batches[0].select(torch.tensor(rows)))
    for count in range(1, 6):
        drawn, expected = (
            drawn_from(source, count, torch.Generator().manual_seed(count)) for source in (pool.batches, batches)
        )
        assert drawn is not None
        assert expected is not None
        assert_equal(drawn, expected)


def test_the_pool_keeps_no_batch_in_memory_unless_the_disk_refused_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    batch, refusals = batch_of([2, 3], [1.0, 0.0]), []
    kept = weakref.ref(batch.sampled_logp)
    pool = ReplayPool(tmp_path, refusals.append)
    pool.add(batch)
    del batch
    gc.collect()
    assert kept() is None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replay, "_write", full)
    pool.add(batch_of([4, 1], [1.0, 0.0], 50))
    assert "step_000002.safetensors" in refusals[0]
    assert everything(pool.batches[1]).response_lengths.tolist() == [4, 1]


def test_a_pool_file_that_cannot_be_read_stops_the_run_with_the_command_to_resume(tmp_path: Path):
    pool = ReplayPool(tmp_path, pytest.fail)
    pool.add(batch_of([2, 3], [1.0, 0.0]))
    (tmp_path / "pretraining" / "step_000001.safetensors").unlink()
    with pytest.raises(StoppedError, match=f"sampled again by: .*resume {tmp_path}"):
        drawn_from(pool.batches, 1, torch.Generator())


class RecordedSource:
    """A source of pretraining rollouts that were made before: no engine takes part."""

    max_age = 0

    def __init__(self, steps: list[Rollout], heldout: Rollout) -> None:
        self.steps, self.held, self.given = steps, heldout, []

    def next(self, state: State) -> Rollout:
        return self.at(state.pretrain_step, state)

    def at(self, step: int, state: State) -> Rollout:
        self.given.append(step)
        return self.steps[step]

    def heldout(self, state: State) -> Rollout:
        return self.held

    def close(self) -> None:
        pass


def test_pretraining_takes_its_responses_from_any_source(tmp_path: Path):
    base, replays = toys.toy_base(tmp_path / "base"), {"trainer": {"pretraining_passes": 2, "steps": 1}}
    run = toys.toy_run(base, tmp_path / "run", replays)
    source = RecordedSource(
        [run.pretraining_source.at(step, run.state) for step in (0, 1)], run.pretraining_source.heldout(run.state)
    )
    pretrain_critic(run)
    run.folder.close()
    other = toys.toy_run(base, tmp_path / "other", replays)
    other.pretraining_source = source

    def fail(*_: object) -> None:
        pytest.fail("the engine sampled")

    other.engine.generate = fail
    pretrain_critic(other)
    other.folder.close()
    assert source.given == [0, 1]
    for one, two in zip(run.critic.parameters, other.critic.parameters, strict=True):
        assert torch.equal(one, two)


def test_pretraining_refuses_a_rollout_of_another_weight_version(tmp_path: Path):
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run")
    rollout = run.pretraining_source.at(0, run.state)
    newer = replace(rollout, drawn=tuple(replace(e, policy_version=1) for e in rollout.drawn))
    run.pretraining_source = RecordedSource([newer], run.pretraining_source.heldout(run.state))
    with pytest.raises(VapoError, match="weights of step 1, the trainer is at step 0"):
        pretrain_critic(run)
    run.folder.close()


def test_a_resume_reads_the_pool_and_samples_again_only_what_is_missing_or_damaged(tmp_path: Path):
    batches = [batch_of([2, 3], [1.0, 0.0], 300 * i) for i in range(4)]
    pool = ReplayPool(tmp_path, pytest.fail)
    for batch in batches:
        pool.add(batch)
    files = sorted((tmp_path / "pretraining").iterdir())
    assert [file.name for file in files] == [f"step_{i:06d}.safetensors" for i in (1, 2, 3, 4)]
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    files[2].unlink()
    sampled: list[int] = []

    def sample(step: int) -> Batch:
        sampled.append(step)
        return batches[step]

    for again in ([1, 2], []):  # what was sampled again is written again
        sampled.clear()
        restored = ReplayPool(tmp_path, pytest.fail)
        restored.restore(4, sample)
        assert sampled == again
        for one, other in zip(restored.batches, batches, strict=True):
            assert_equal(everything(one), other)


def test_every_bit_of_a_pools_file_counts(tmp_path: Path):
    batch = batch_of([1], [1.0])
    ReplayPool(tmp_path, pytest.fail).add(batch)
    (file,) = (tmp_path / "pretraining").iterdir()
    content = file.read_bytes()
    for at in range(8, len(content)):
        spoiled = bytearray(content)
        spoiled[at] ^= 1 << (at % 8)
        file.write_bytes(spoiled)
        restored = ReplayPool(tmp_path, pytest.fail)
        restored.restore(1, lambda step: batch_of([1], [0.5]))  # its outcome shows that it was sampled again
        found = everything(restored.batches[0])
        if float(found.outcomes[0]) == 1.0:  # white space of the header, or the like
            assert_equal(found, batch)


def stopped_in_pretraining(folder: Path, steps: int) -> None:
    """Leave a run in folder/run that was stopped in its value pretraining, with a pool to replay."""
    replays = {"trainer": {"pretraining_steps": steps, "pretraining_passes": 3, "steps": 1}}
    run = toys.toy_run(toys.toy_base(folder / "base"), folder / "run", replays)
    stopping(run)
    with pytest.raises(StoppedError):
        runs.finish(run)


def test_a_resumed_pretraining_asks_the_engine_for_no_response_it_has_and_leaves_no_pool(tmp_path: Path):
    stopped_in_pretraining(tmp_path, 3)
    assert [file.name for file in (tmp_path / "run" / "pretraining").iterdir()] == ["step_000001.safetensors"]
    run = runs.resume(tmp_path / "run", toys.SilentView(), task=toys.EchoTask())
    requested: list[int] = []
    generate = run.engine.generate

    def counting(prompts, *rest):
        requested.append(len(prompts))
        return generate(prompts, *rest)

    run.engine.generate = counting
    pretrain_critic(run)
    run.folder.close()
    assert requested == [16, 32, 32]  # held out, step 2, step 3
    assert not (tmp_path / "run" / "pretraining").exists()


def test_a_resume_under_other_settings_samples_the_pool_again_for_its_targets(tmp_path: Path):
    stopped_in_pretraining(tmp_path, 2)
    assert (tmp_path / "run" / "pretraining").exists()
    change = Layer(Source.OPTION, "--set", {"algorithm": {"reward": {"right": 2.0}}})
    again = runs.resume(tmp_path / "run", toys.SilentView(), task=toys.EchoTask(), changes=[change], allow_change=True)
    again.folder.close()
    assert not (tmp_path / "run" / "pretraining").exists()


def test_the_pool_is_part_of_the_disk_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = toys.toy_base(tmp_path / "base")
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    many = {"pretraining_steps": 100_000, "steps": 1}
    toys.toy_run(base, tmp_path / "once", {"trainer": {**many, "pretraining_passes": 1}}).folder.close()
    with pytest.raises(ConfigError, match="The run needs about"):
        toys.toy_run(base, tmp_path / "run", {"trainer": {**many, "pretraining_passes": 2}})


def stopping(run: Run) -> None:
    """Ask for a stop in the moment a step is finished."""
    run.observer.step = lambda _: setattr(run, "stop_requested", True)


def test_pretraining_that_is_resumed_between_its_steps_learns_from_the_same_responses(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    replays = {"trainer": {"pretraining_steps": 4, "pretraining_passes": 3, "steps": 1}}
    runs.finish(toys.toy_run(base, tmp_path / "whole", replays))
    run = toys.toy_run(base, tmp_path / "stopped", replays)
    for _ in range(2):  # stops after the first step, then after the second
        stopping(run)
        with pytest.raises(StoppedError):
            runs.finish(run)
        run = runs.resume(tmp_path / "stopped", toys.SilentView(), task=toys.EchoTask())
    assert run.state.pretrain_step == 2
    runs.finish(run)
    for file in ("policy/model.safetensors", "critic/model.safetensors"):
        assert sha256(tmp_path / "whole" / file) == sha256(tmp_path / "stopped" / file)
    last = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("whole", "stopped")]
    assert last[0]["num_samples"] == last[1]["num_samples"]


def test_zero_steps_pretrain_a_critic_and_leave_the_policy_unevaluated(tmp_path: Path):
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", {"trainer": {"steps": 0}})
    before = {k: v.clone() for k, v in run.policy.model.state_dict().items()}
    runs.finish(run)
    assert all(torch.equal(v, before[k]) for k, v in run.policy.model.state_dict().items())
    assert (tmp_path / "run" / "critic" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_zero_steps_without_a_critic_to_pretrain_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="steps=0 pretrains a critic"):
        toys.toy_config(tmp_path, {"trainer": {"steps": 0}}, preset="grpo")


def test_a_reward_model_learns_from_the_state_after_the_last_token_only(tmp_path: Path):
    reward_model = {"trainer": {"steps": 0, "pretraining_at": "end", "pretraining_steps": 3, "pretraining_passes": 2}}
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", reward_model)
    critic = run.critic
    assert critic is not None
    batch = batch_of([2, 3], [1.0, 0.0])
    batch = replace(batch, tokens=tuple(t % 12 + 2 for t in batch.tokens))  # the toy has 16 tokens
    critic.accumulate(batch, micro_batch_tokens=1000)
    head = next(p for name, p in critic.model.named_parameters() if name.endswith("score.weight"))
    assert head.grad is not None
    # by hand: L = ½·½·Σ(V - R)², V = w·h + b = 0 at the start, so dL/dw = -½·Σ R·h(end) = -½·h(end of the first)
    with torch.no_grad():
        hidden = hidden_states(critic.model, batch.tokens, critic.network.layout)
    end = len(batch.tokens[0]) - 1
    torch.testing.assert_close(head.grad[0], -0.5 * hidden[end])
    cut_off = replace(batch, truncated=torch.tensor([False, True]))
    assert critic.objective.weights(cut_off)["value"].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    critic.optimizer.zero_grad()
    pretrain_critic(run)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "pretrain/end_explained_variance" in row
    run.folder.close()


def test_a_reward_model_makes_no_step_from_responses_that_were_all_cut_off(tmp_path: Path):
    settings = {
        "trainer": {"steps": 0, "pretraining_at": "end", "pretraining_steps": 1},
        "rollout": {"max_response_tokens": 1},
    }
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", settings)
    assert run.critic is not None
    before = [parameter.clone() for parameter in run.critic.model.parameters()]
    pretrain_critic(run)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    run.folder.close()
    assert [row["completions/clipped_ratio"] for row in rows] == [1]
    assert [row["pretrain/gradient_steps"] for row in rows] == [0]
    assert all(torch.equal(a, b) for a, b in zip(before, run.critic.model.parameters(), strict=True))


def test_pretraining_saves_the_responses_of_its_first_its_last_and_every_nth_step(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")

    def saved(name: str, **more: int) -> list[str]:
        settings = {"trainer": {"steps": 0, "save_rollouts_every": 3, "pretraining_steps": 7} | more}
        runs.finish(toys.toy_run(base, tmp_path / name, settings), report=False)
        return sorted(path.name[9:15] for path in (tmp_path / name / "rollouts").glob("*.jsonl.gz"))

    assert saved("whole") == ["000001", "000003", "000006", "000007"]
    # a critic that cannot learn: the second step is the last
    assert saved("impatient", pretraining_patience=1, critic_lr=0) == ["000001", "000002"]
    assert [rollouts_are_due(step, 0, last=step == 2) for step in (1, 2)] == [False, False]


def test_value_clipping_begins_with_joint_training_since_pretraining_has_no_old_values(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    rows = []
    for name, clip in (("clipped", 1e-3), ("free", None)):
        settings = {"algorithm": {"credit": {"value_clip": clip}}, "trainer": {"steps": 1}}
        runs.finish(toys.toy_run(base, tmp_path / name, settings), report=False)
        rows.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    clipped, free = rows
    assert [row["phase"] for row in clipped] == ["pretrain", "pretrain", "train"]
    assert [row["value/loss"] for row in clipped[:2]] == [row["value/loss"] for row in free[:2]]
    assert clipped[2]["value/loss"] > free[2]["value/loss"]


@pytest.mark.parametrize(
    ("passes", "minibatches", "critic_steps"),
    [(1, None, 4), (3, None, 12), (1, 2, 2), (3, 8, 24)],  # 32 responses, 8 a step where nothing else is said
)
def test_the_critic_makes_its_own_passes_in_its_own_number_of_gradient_steps(
    passes: int, minibatches: int | None, critic_steps: int, tmp_path: Path
):
    critic = {"critic_updates": passes} | ({} if minibatches is None else {"critic_minibatches": minibatches})
    settings = {"algorithm": {"credit": critic}, "trainer": {"steps": 1}}
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", settings)
    run.state.phase = "train"
    run.hand_over()
    train_step(run)
    run.folder.close()
    steps = {n.name: int(next(iter(n.optimizer.state.values()))["step"]) for n in run.learners}
    assert steps == {"critic": critic_steps, "policy": 4}


def test_a_policy_cannot_be_trained_while_a_reward_model_is_made(tmp_path: Path):
    with pytest.raises(ConfigError, match="pretraining_at=end makes a reward model"):
        toys.toy_config(tmp_path, {"trainer": {"pretraining_at": "end"}})
