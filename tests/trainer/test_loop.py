"""The loop's duties besides learning: verdicts, guards, dynamic sampling, phases, files."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

import toys
from vapo.algo.presets import GRPO
from vapo.errors import ConfigError, DataError, DivergedError, ModelError, StoppedError, VapoError, VerifierBrokenError
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer.batch import collate
from vapo.trainer.loop import train_step
from vapo.trainer.pricing import price
from vapo.trainer.record import RunFolder, read_episodes
from vapo.trainer.rollouts import Rollout, check_age, consume
from vapo.trainer.sources import stream
from vapo.trainer.state import State
from vapo.types import Episode, Prompt, Turn, Verdict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def vapo_run(base: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vapo") / "run"
    runs.finish(toys.toy_run(base, folder, {"trainer": {"save_rollouts_every": 2}}))
    return folder


def test_a_run_writes_its_files_models_and_evaluations(vapo_run: Path):
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "evaluations.jsonl",
                 "report.html", "curves.png"):  # fmt: skip
        assert (vapo_run / name).stat().st_size > 0, name
    policy = AutoModelForCausalLM.from_pretrained(vapo_run / "policy")
    critic = AutoModelForTokenClassification.from_pretrained(vapo_run / "critic")
    assert AutoTokenizer.from_pretrained(vapo_run / "policy").eos_token == "<eos>"
    assert critic.config.num_labels == 1
    assert policy.dtype == torch.float32
    labels = [json.loads(line)["label"] for line in (vapo_run / "evaluations.jsonl").read_text().splitlines()]
    assert labels == ["before", "after"]


def test_rollout_files_carry_every_token_with_its_numbers(vapo_run: Path):
    names = sorted(p.name for p in (vapo_run / "rollouts").iterdir())
    steps = ("pretrain_000001", "pretrain_000002", "step_000001", "step_000002", "step_000003")
    assert names == [f"{step}.{kind}.gz" for step in steps for kind in ("index.json", "jsonl")]
    with gzip.open(vapo_run / "rollouts" / "step_000002.jsonl.gz", "rt") as file:
        samples = [json.loads(line) for line in file]
    assert len(samples) == 32
    for sample in samples:
        columns = [sample[c] for c in ("tokens", "logp", "value", "advantage", "return")]
        assert len({len(column) for column in columns}) == 1
        assert sample["weight_version"] == 1
        assert sample["reward"] == (1.0 if sample["verdict"] == "right" else 0.0)
        assert all(r == sample["reward"] for r in sample["return"])  # lambda_critic = 1


def test_a_saved_rollout_can_be_scored_again(base: Path, vapo_run: Path, tmp_path: Path):
    episodes = read_episodes(vapo_run / "rollouts" / "step_000001.jsonl.gz")
    fresh = toys.toy_run(base, tmp_path / "fresh")  # the policy that sampled the first step
    batch = collate(episodes, price(episodes, fresh.algorithm, max_response_tokens=8))
    logp = fresh.policy.score(batch, ("logp",), micro_batch_tokens=1000)["logp"]
    fresh.folder.close()
    assert len(episodes) == 32
    assert int(batch.mask.sum()) > 32
    torch.testing.assert_close(logp[batch.mask], batch.sampled_logp[batch.mask], rtol=0, atol=2e-4)
    assert {e.verdict.status for e in episodes} == {"right", "wrong"}
    assert all(e.prompt.token_ids and e.policy_version == 0 for e in episodes)


def test_rollouts_of_several_turns_are_read_back_as_they_were(base: Path, tmp_path: Path):
    turns = (Turn("policy", (2, 3), (-1.5, -0.25)), Turn("environment", (4,)), Turn("policy", (1,), (-0.5,)))
    prompt = Prompt("p", ({"role": "user", "content": "?"},), token_ids=(9, 9))
    episode = Episode(prompt, 3, turns, "text", "length", 7, Verdict("wrong", "digit not named"))
    batch = collate([episode], price([episode], GRPO, max_response_tokens=8))
    folder = RunFolder(tmp_path / "run")
    folder.rollouts("step_000008", [episode], batch, lambda ids: [str(i) for i in ids])
    folder.close()
    file = tmp_path / "run" / "rollouts" / "step_000008.jsonl.gz"
    assert read_episodes(file) == [episode]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"step_000008.jsonl.gz cannot be read"):
        read_episodes(file)


def test_the_sampler_and_the_trainer_agree_on_every_token(vapo_run: Path):
    gaps = [m["sampler/logp_gap_max"] for m in metrics(vapo_run) if m["phase"] == "train"]
    assert len(gaps) == 3
    assert max(gaps) < 1e-4


def test_pretraining_leaves_the_policy_alone_and_moves_the_critic(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 1}})
    before = {k: v.clone() for k, v in run.policy.model.state_dict().items()}
    from vapo.trainer.pretrain import pretrain_critic

    pretrain_critic(run)
    assert run.state.pretrain_step == 2  # pitfall 22: N means exactly N
    assert run.state.phase == "train"
    assert run.state.gradient_steps == 0
    assert all(torch.equal(v, before[k]) for k, v in run.policy.model.state_dict().items())
    assert any(bool((p != 0).any()) for p in run.critic.model.score.parameters())
    run.folder.close()


def test_pretraining_stops_when_patience_runs_out(base: Path, tmp_path: Path):
    patient = {"trainer": {"pretraining_steps": 50, "pretraining_patience": 1, "critic_lr": 0.0}}
    run = toys.toy_run(base, tmp_path / "run", patient)
    from vapo.trainer.pretrain import pretrain_critic

    pretrain_critic(run)  # a critic that cannot learn: the first step is the best, the second no better
    assert run.state.pretrain_step == 2
    run.folder.close()


def test_a_critic_that_is_not_ready_raises_an_alarm(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"pretraining_ready": 0.99, "steps": 1}})
    runs.finish(run)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert any("critic is not ready" in e.get("message", "") for e in events if e["event"] == "alarm")


def test_a_method_with_a_group_baseline_builds_no_critic(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", preset="dapo")
    assert run.critic is None
    assert [network.name for network in run.learners] == ["policy"]
    runs.finish(run)
    assert not (tmp_path / "run" / "critic").exists()
    assert all("value/loss" not in m for m in metrics(tmp_path / "run"))


def test_head_and_backbone_share_one_scheduled_optimizer(base: Path, tmp_path: Path):
    # pitfall 13: the value head had an optimizer of its own at peak learning rate
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"warmup_steps": 10}})
    assert {id(p) for p in run.critic.parameters} == {id(p) for p in run.critic.model.parameters()}
    run.state.phase = "train"
    run.hand_over()
    train_step(run)
    peak = run.algorithm.optimization
    assert run.critic.optimizer.param_groups[0]["lr"] == pytest.approx(peak.critic_lr / 10)
    assert run.policy.optimizer.param_groups[0]["lr"] == pytest.approx(peak.actor_lr / 10)
    run.folder.close()


def test_the_critics_warm_up_counts_pretraining_steps_and_the_policys_starts_with_joint_training(
    base: Path, tmp_path: Path
):
    runs.finish(toys.toy_run(base, tmp_path / "run", {"trainer": {"warmup_steps": 10}}), report=False)
    joint = [line for line in metrics(tmp_path / "run") if line["phase"] == "train"]
    # 2 pretraining steps come before; the peaks are 1e-2 and 3e-3
    assert [line["lr/critic"] for line in joint] == pytest.approx([3e-3, 4e-3, 5e-3])
    assert [line["lr/actor"] for line in joint] == pytest.approx([3e-4, 6e-4, 9e-4])


def test_the_kl_reference_becomes_the_policy_after_refresh_every_gradient_steps(base: Path, tmp_path: Path):
    # 4 gradient steps a step: 8 of them reach the limit of 6 at the end of the second step
    kl = {"algorithm": {"kl": {"coef": 0.01, "refresh_every": 6}}}
    run = toys.toy_run(base, tmp_path / "run", kl, preset="grpo")
    initial = weights_of(run.policy)
    run.state.phase = "train"
    run.hand_over()
    ages = []
    for expected in ("the initial policy", "the policy", "the policy of step 2"):
        train_step(run)
        ages.append(run.state.reference_age)
        if expected == "the policy":
            refreshed = weights_of(run.policy)
        same = {"the initial policy": initial}.get(expected) or refreshed
        reference = weights_of(run.reference)
        assert all(torch.equal(reference[name], same[name]) for name in same), expected
    assert ages == [4, 0, 4]
    assert any(not torch.equal(initial[name], refreshed[name]) for name in initial)
    run.folder.close()


def weights_of(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.model.state_dict().items()}


def test_the_kl_penalty_is_a_loss_term_and_never_part_of_the_reward(base: Path, tmp_path: Path):
    # pitfall 12: counted in both
    run = toys.toy_run(base, tmp_path / "run", {"algorithm": {"kl": {"coef": 5.0}}}, preset="grpo")
    runs.finish(run)
    for line in metrics(tmp_path / "run"):
        assert line["reward"] == pytest.approx(line["accuracy"])
    assert metrics(tmp_path / "run")[0]["loss/kl"] < metrics(tmp_path / "run")[-1]["loss/kl"]


def test_too_many_invalid_verdicts_stop_the_run(base: Path, tmp_path: Path):
    broken = toys.EchoTask({f"train-{i}": Verdict("invalid", "no gold answer") for i in range(4)})
    run = toys.toy_run(base, tmp_path / "run", preset="grpo", task=broken)
    with pytest.raises(VerifierBrokenError, match="no gold answer"):
        runs.finish(run)
    assert VerifierBrokenError.exit_code == 4


def finite(network) -> dict[str, torch.Tensor]:
    """The network's weights, which are all numbers."""
    weights = {name: weight.clone() for name, weight in network.model.state_dict().items()}
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    return weights


def unmoved(before: dict[str, torch.Tensor], network) -> bool:
    after = finite(network)
    return all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("preset", ["vapo2", "easyppo"])
def test_where_every_response_is_cut_off_the_critic_learns_that_and_the_policy_nothing(
    preset: str, base: Path, tmp_path: Path
):
    filtered = {"trainer": {"pretraining_ready": -10.0}, "algorithm": {"truncated": "drop-from-policy"}}
    run = toys.toy_run(base, tmp_path / "run", filtered, preset=preset)
    run.decoding = replace(run.decoding, stop_token_ids=(99,))
    policy, critic = finite(run.policy), finite(run.critic)
    runs.finish(run, report=False)
    lines = [m for m in metrics(tmp_path / "run") if m["phase"] == "train"]
    assert {(m["completions/clipped_ratio"], m["policy/learned_ratio"], m["gradient_steps"]) for m in lines} == {
        (1.0, 0.0, 0)
    }
    assert {m["skipped/policy"] + m["skipped/critic"] for m in lines} == {0}
    assert all(math.isfinite(m["value/loss"]) and math.isfinite(m["value/mean"]) for m in lines)
    assert all("advantages/mean" not in m for m in lines)
    assert unmoved(policy, run.policy)
    assert not unmoved(critic, run.critic)


@pytest.mark.parametrize("preset", ["vapo2", "easyppo"])
def test_where_every_verdict_is_invalid_nothing_is_learned_and_nothing_breaks(preset: str, base: Path, tmp_path: Path):
    task = toys.EchoTask({f"train-{i}": Verdict("invalid", "no gold answer") for i in range(8)})
    allowed = {"trainer": {"max_invalid_ratio": 1.0, "pretraining_steps": 0}}
    run = toys.toy_run(base, tmp_path / "run", allowed, preset=preset, task=task)
    policy, critic = finite(run.policy), finite(run.critic)
    runs.finish(run, report=False)
    lines = metrics(tmp_path / "run")
    assert len(lines) == 3
    assert {(m["verdict/invalid_ratio"], m["gradient_steps"]) for m in lines} == {(1.0, 0)}
    assert {m["skipped/policy"] + m["skipped/critic"] for m in lines} == {0}
    assert {m["accuracy"] for m in lines} == {None}  # not defined
    assert unmoved(policy, run.policy)
    assert unmoved(critic, run.critic)


def test_a_few_invalid_verdicts_are_left_out_and_counted(base: Path, tmp_path: Path):
    broken = toys.EchoTask({"train-3": Verdict("invalid", "no gold answer")})
    runs.finish(toys.toy_run(base, tmp_path / "run", task=broken))
    assert {m["verdict/invalid_ratio"] for m in metrics(tmp_path / "run")} == {4 / 32}


def test_a_verifier_that_raises_gives_an_invalid_verdict_and_no_crash(base: Path, tmp_path: Path):
    task = toys.EchoTask()
    honest = task.verify
    task.verify = lambda prompt, response: 1 / 0 if prompt.id == "train-3" else honest(prompt, response)
    runs.finish(toys.toy_run(base, tmp_path / "run", task=task))
    assert {m["verdict/invalid_ratio"] for m in metrics(tmp_path / "run")} == {4 / 32}


def test_gradients_that_are_not_finite_are_skipped_and_three_steps_in_a_row_stop_the_run(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 9}}, preset="grpo")
    weights = {k: v.clone() for k, v in run.policy.model.state_dict().items()}
    honest = run.policy.objective.loss

    def spoiled(micro, weights):
        part = honest(micro, weights)
        return replace(part, loss=part.loss * float("nan"))

    object.__setattr__(run.policy.objective, "loss", spoiled)
    with pytest.raises(DivergedError, match="actor_lr"):
        runs.finish(run)
    assert DivergedError.exit_code == 3
    last_event = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert last_event["event"] == "diverged"
    assert run.state.step == 2  # the third bad step does not count
    assert [m["skipped/policy"] for m in metrics(tmp_path / "run")] == [4, 4]
    assert all(torch.equal(v, weights[k]) for k, v in run.policy.model.state_dict().items())


def test_dynamic_sampling_keeps_mixed_groups_only_and_gives_up_in_time(base: Path, tmp_path: Path):
    # prompts 0..3 can never be right: their groups carry no signal
    hopeless = toys.EchoTask({f"train-{i}": Verdict("wrong") for i in range(4)})
    run = toys.toy_run(base, tmp_path / "run", preset="dapo", task=hopeless)
    run.hand_over()
    before = run.state.copy()
    rollout = run.source.next(run.state)
    assert run.state == before  # drawn, not consumed: nothing to undo if it is dropped
    kept, drawn = rollout.episodes, rollout.drawn
    assert len(kept) == 32
    consume(run.state, rollout)
    assert run.state.num_samples == len(drawn) > 32
    for start in range(0, 32, 4):
        assert len({e.prompt.id for e in kept[start : start + 4]}) == 1
        assert {e.verdict.right for e in kept[start : start + 4]} == {True, False}
    # a prompt that came again in a later epoch goes on counting: no response is drawn twice
    assert len({(e.prompt.id, e.sample) for e in kept}) == 32
    none = toys.EchoTask({f"train-{i}": Verdict("wrong") for i in range(8)})
    run2 = toys.toy_run(base, tmp_path / "run2", preset="dapo", task=none)
    runs.finish(run2)
    assert run2.state.num_samples == 3 * 10 * 32  # 3 steps of 1 + 9 rounds
    assert run2.state.gradient_steps == 0
    run.folder.close()


class InvalidUnlessShort(toys.EchoTask):
    """Right in up to two words, otherwise invalid: the valid responses of every group agree."""

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict("right") if len(response.split()) <= 2 else Verdict("invalid", "too long to judge")


def test_dynamic_sampling_judges_a_group_by_the_responses_that_are_learned_from(base: Path, tmp_path: Path):
    settings = {"trainer": {"max_invalid_ratio": 1.0}, "algorithm": {"sampling": {"refill_rounds": 1}}}
    run = toys.toy_run(base, tmp_path / "run", settings, preset="dapo", task=InvalidUnlessShort())
    run.hand_over()
    rollout = run.source.next(run.state)
    groups = [{e.verdict.status for e in rollout.drawn[i : i + 4]} for i in range(0, len(rollout.drawn), 4)]
    assert {"right", "invalid"} in groups  # with the invalid responses counted as wrong it would be kept
    assert rollout.kept == ()
    run.folder.close()


def test_one_broken_prompt_does_not_stop_a_step_of_dynamic_sampling(base: Path, tmp_path: Path):
    # 12.5 % of the prompts are invalid, the limit is 20 % of the step, however small the last refill is
    for seed in range(4):
        task = toys.EchoTask({"train-3": Verdict("invalid", "no gold answer")})
        run = toys.toy_run(base, tmp_path / f"run{seed}", {"seed": seed}, preset="dapo", task=task)
        run.hand_over()
        rollout = run.source.next(run.state)
        kept, drawn = rollout.episodes, rollout.drawn
        assert all(e.verdict.valid for e in kept) or any(not e.verdict.valid for e in drawn)
        run.folder.close()


def test_fewer_responses_make_fewer_gradient_steps_not_smaller_minibatches(base: Path, tmp_path: Path):
    # only prompt 5 can be right: whatever is left after the refills is one or few groups of 4
    task = toys.EchoTask({f"train-{i}": Verdict("wrong") for i in range(8) if i != 5})
    at_once = {"trainer": {"steps": 1}, "guards": {"patience": 1}}
    runs.finish(toys.toy_run(base, tmp_path / "run", at_once, preset="dapo", task=task))
    line = metrics(tmp_path / "run")[0]
    kept = round(line["sampling/kept_ratio"] * line["num_samples"])
    assert kept < 32
    assert line["gradient_steps"] == -(-kept // 8)
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert f"Only {kept} of 32 responses carry a signal" in events


def test_a_run_on_an_own_task_names_it_and_cannot_be_resumed_on_another(base: Path, tmp_path: Path):
    runs.finish(toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 1}}, preset="grpo"))
    assert "name: echo" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"vapo\.resume"):
        runs.resume(tmp_path / "run", SilentView())
    other = toys.EchoTask()
    other.name = "other"
    with pytest.raises(ConfigError, match="'echo', not on 'other'"):
        runs.resume(tmp_path / "run", SilentView(), task=other)


def test_a_run_goes_on_without_the_model_it_started_from(tmp_path: Path):
    start = toys.toy_base(tmp_path / "base")
    run = toys.toy_run(start, tmp_path / "run")
    run.stop_requested = True
    with pytest.raises(StoppedError):
        runs.finish(run)
    shutil.rmtree(start)
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()))
    assert len(metrics(tmp_path / "run")) == 5


def test_weights_that_cannot_be_read_are_explained_and_leave_no_run_behind(base: Path, tmp_path: Path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="Cannot load the policy"):
        toys.toy_run(tmp_path / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_prompt_stream_shows_every_prompt_once_an_epoch():
    prompts = toys.EchoTask().train
    for epoch in range(3):
        ids = [p.id for p in stream(prompts, seed=1, name="train", position=8 * epoch, count=8)]
        assert sorted(ids) == sorted(p.id for p in prompts)
    whole = [p.id for p in stream(prompts, seed=1, name="train", position=0, count=24)]
    parts = [p.id for at in range(0, 24, 6) for p in stream(prompts, seed=1, name="train", position=at, count=6)]
    assert whole == parts


def test_a_rollout_of_several_weight_versions_is_refused():
    episodes = [Episode(Prompt("p", "x"), i, (), "", "stop", version) for i, version in enumerate((4, 3, 4))]
    assert Rollout((episodes[0], episodes[2]), (0, 1), 0).weight_version == 4
    with pytest.raises(VapoError, match=r"several weight versions, \[3, 4\]"):
        _ = Rollout(tuple(episodes), (0, 1, 2), 0).weight_version


class Notes(SilentView):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(("wanted", "noted"), [(8, False), (9, True)])
def test_a_run_notes_that_it_evaluates_on_fewer_prompts_than_wanted(
    base: Path, tmp_path: Path, wanted: int, noted: bool
):
    view, config = Notes(), toys.toy_config(base, {"evaluation": {"prompts": wanted}})
    runs.begin(runs.with_task(config, toys.EchoTask()), tmp_path / "run", view, toys.EchoTask()).folder.close()
    assert ("evaluation.prompts is 9, and echo holds out 8: all are used" in view.notes) == noted


def test_a_run_and_its_resume_note_the_prompts_that_are_too_long(base: Path, tmp_path: Path):
    # at most 1 % may be left out
    task = toys.EchoTask()
    task.train = (*(Prompt(f"train-{i}", "1 x", 1) for i in range(200)), *(Prompt(f"l{i}", "1 " * 60, 1) for i in "ab"))
    task.heldout = (*(Prompt(f"heldout-{i}", "1 x", 1) for i in range(100)), Prompt("lc", "3 " * 57, 3))
    for begin in (
        lambda view: runs.begin(runs.with_task(toys.toy_config(base), task), tmp_path / "run", view, task),
        lambda view: runs.resume(tmp_path / "run", view, task),
    ):
        view = Notes()
        run = begin(view)
        run.folder.close()
        assert (len(run.train_prompts), len(run.heldout_prompts)) == (200, 100)
        assert "left out as too long: 2 training prompts" in view.notes
        assert "left out as too long: 1 held-out prompt" in view.notes


@pytest.mark.parametrize(("version", "max_age", "refused"), [(3, 0, False), (2, 0, True), (2, 1, False), (4, 1, True)])
def test_a_rollout_of_weights_that_are_too_old_or_newer_than_the_trainers_is_refused(version, max_age, refused):
    rollout, state = SimpleNamespace(weight_version=version), State(step=3)
    with pytest.raises(VapoError, match=f"weights of step {version}") if refused else nullcontext():
        check_age(rollout, state, max_age)  # type: ignore[arg-type]
