"""`vapo doctor` on runs that were broken on purpose: the finding, its evidence and its advice."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import toys
from vapo.errors import DivergedError, StoppedError, VapoError
from vapo.evals.statistics import bootstrap_interval
from vapo.reports.diagnosis import diagnose
from vapo.reports.runfiles import read_run
from vapo.session import lifecycle
from vapo.types import Prompt, Verdict

STEPS = {"trainer": {"steps": 6}, "checkpoint": {"every": 2, "keep": 2}, "guards": {"same_outcome_steps": 0}}


class Always(toys.EchoTask):
    """One verdict for all."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        self.verdict = verdict

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return self.verdict


class SometimesInvalid(toys.EchoTask):
    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict("invalid", "no gold") if prompt.id.endswith("3") else super().verify(prompt, response)


class Graded(toys.EchoTask):
    """No response is right, and scores differ."""

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict("wrong", "graded", score=len(response) / 100)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def findings(base: Path, folder: Path, *layers: dict, task=None, preset: str = "vapo") -> dict[str, str]:
    run = toys.toy_run(base, folder, STEPS, *layers, task=task, preset=preset)
    with suppress(VapoError):
        lifecycle.finish(run, report=False)
    return names(folder)


def names(folder: Path) -> dict[str, str]:
    """What is found, by name: evidence and advice."""
    return {finding.name: f"{finding.evidence}. {finding.advice}" for finding in diagnose(read_run(folder))}


def trainer(**settings) -> dict:
    return {"trainer": settings}


BROKEN = {
    "nothing right": ((), Always(Verdict("wrong", "no", "no_answer")), "none of the last"),
    "nothing wrong": ((), Always(Verdict("right")), "take harder problems"),
    "invalid verdicts": (
        (trainer(max_invalid_ratio=1.0),), SometimesInvalid(), "the verifier could not judge"
    ),
    "verifier broken": ((), Always(Verdict("invalid", "boom")), "mend what the message names"),
    "cut off": (({"rollout": {"max_response_tokens": 2}},), None, "reach the length limit"),
    "a step too far": ((trainer(actor_lr=0.5, warmup_steps=1),), None, "lower trainer.actor_lr"),
    "the policy hardly moves": ((trainer(actor_lr=1e-12),), None, "raise trainer.actor_lr"),
    "dead value head": ((trainer(critic_lr=0.0),), None, "the value head does not move"),
    "critic was not ready": ((trainer(pretraining_ready=0.99),), None, "wanted 0.99"),
    "critic worse than none": ((trainer(critic_lr=2.0, pretraining_lr=2.0),), None, "less than a constant would"),
    "entropy collapse": (({"guards": {"entropy_below": 3.0}},), None, "every prompt gets one response"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_run_broken_on_purpose_is_found_out(name: str, base: Path, tmp_path: Path):
    layers, task, words = BROKEN[name]
    found = findings(base, tmp_path / "run", *layers, task=task)
    assert name in found, list(found)
    assert words in found[name]


def test_a_run_that_was_stopped_and_one_that_diverged(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "stopped", STEPS)
    run.stop_requested = True
    with pytest.raises(StoppedError):
        lifecycle.finish(run)
    assert "go on with: vapo resume" in names(tmp_path / "stopped")["unfinished"]
    bad = toys.toy_run(
        base, tmp_path / "diverged", STEPS, trainer(actor_lr=0.5, warmup_steps=1), {"guards": {"action": "stop"}}
    )
    with pytest.raises(DivergedError):
        lifecycle.finish(bad)
    assert "guards.action=rollback" in names(tmp_path / "diverged")["diverged"]


@pytest.mark.parametrize(
    ("alarm", "action", "offered"),
    [
        ({"name": "entropy collapse"}, "stop", True),
        ({"name": "entropy collapse"}, "rollback", False),
        ({}, "stop", False),
    ],
    ids=["an alarm", "an alarm after rollbacks", "numbers that are not finite"],
)
def test_a_rollback_is_advised_where_it_would_have_answered_the_alarm(make_run, alarm, action, offered):
    run = make_run("vapo")
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "alarm", "message": "bad", **alarm}) + "\n")
        file.write(json.dumps({"event": "diverged", "message": "bad"}) + "\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("action: warn", f"action: {action}"))
    assert ("guards.action=rollback" in names(run)["diverged"]) == offered


def test_a_critic_beside_the_groups_mean_may_begin_knowing_nothing(make_run):
    run = make_run("vapo")
    line = {"event": "pretraining finished", "steps": 2, "explained_variance": -3.0}
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert "critic was not ready" in names(run)
    method = (run / "method.yaml").read_text()
    (run / "method.yaml").write_text(method.replace("baseline: none", "baseline: group"))
    assert "critic was not ready" not in names(run)


def test_a_run_that_was_made_longer_and_killed_is_unfinished(make_run):
    run = make_run("vapo")
    (run / "policy").mkdir(exist_ok=True)
    assert "unfinished" not in names(run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("\n  steps: 3", "\n  steps: 6"))
    assert "3 of 6 joint steps done, its policy/ is of an earlier end" in names(run)["unfinished"]


def test_damaged_checkpoints_and_scores_that_fell(base: Path, tmp_path: Path):
    lifecycle.finish(toys.toy_run(base, tmp_path / "run", STEPS), report=False)
    (tmp_path / "run" / "checkpoints" / "step_000004").rename(tmp_path / "run" / "checkpoints" / "step_000004.corrupt")
    path = tmp_path / "run" / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"avg": 0.9, "low": 0.8, "high": 0.95, "right": [9] * len(lines[0]["right"])}
    lines[0]["valid"] = [10] * len(lines[0]["right"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = names(tmp_path / "run")
    assert "step_000004.corrupt" in found["damaged checkpoints"]
    assert "fell from 90.0%" in found["worse than before"]


def test_one_good_evaluation_among_many_is_no_past_best(make_run):
    run, prompts = make_run("vapo"), 64
    rng = np.random.default_rng(0)
    (line,) = [json.loads(text) for text in (run / "evaluations.jsonl").read_text().splitlines()][-1:]

    def evaluation(step: int, share: float) -> dict:
        right = rng.binomial(4, share, prompts)
        low, high = bootstrap_interval(right / 4)
        counts = {"k": 4, "right": right.tolist(), "valid": [4] * prompts, "avg": right.mean() / 4}
        return {**line, "step": step, "label": "during", **counts, "low": low, "high": high}

    def found(*late: float) -> bool:
        lines = [evaluation(step, share) for step, share in enumerate([0.2] + [0.5] * 30 + list(late))]
        (run / "evaluations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        return "past its best" in names(run)

    assert sum(found(0.5) for _ in range(10)) == 0
    assert found(0.3)


def test_scores_of_one_prompt_have_no_interval_and_say_nothing(base: Path, tmp_path: Path):
    lifecycle.finish(toys.toy_run(base, tmp_path / "run", STEPS), report=False)
    path = tmp_path / "run" / "evaluations.jsonl"
    lines = [json.loads(line) | {"low": None, "high": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"avg": 1 - i}) + "\n" for i, line in enumerate(lines)))
    assert not {"worse than before", "past its best", "nothing learned"} & names(tmp_path / "run").keys()


@pytest.mark.parametrize(("preset", "found"), [("ppo", False), ("grpo", True)])
def test_groups_agree_only_where_the_method_that_ran_has_groups(base: Path, tmp_path: Path, preset: str, found: bool):
    run = toys.toy_run(base, tmp_path / "run", STEPS, trainer(group_size=4), preset=preset)
    lifecycle.finish(run, report=False)
    assert "group_size: 4" in (tmp_path / "run" / "config.yaml").read_text()  # whatever the method
    path = tmp_path / "run" / "metrics.jsonl"
    agreeing = {"accuracy": 0.5, "groups/mixed_ratio": 0.0}
    path.write_text("".join(json.dumps(json.loads(line) | agreeing) + "\n" for line in path.read_text().splitlines()))
    assert ("groups agree" in names(tmp_path / "run")) == found


def test_where_scores_are_the_outcome_their_spread_counts_and_not_what_is_right(base: Path, tmp_path: Path):
    by_score = {"algorithm": {"reward": {"by": "score"}}}
    graded = findings(base, tmp_path / "graded", by_score, task=Graded())
    assert "nothing right" not in graded
    assert "equal scores" not in graded
    assert "lower task.right_at" in graded["none counts as right"]  # the LM loss has nothing to learn from
    alone = {"algorithm": {**by_score["algorithm"], "positive_lm": 0.0}}
    assert "none counts as right" not in findings(base, tmp_path / "alone", alone, task=Graded())
    one = Verdict("wrong", "half", score=0.5)
    assert "0.5 on average" in findings(base, tmp_path / "one", by_score, task=Always(one))["equal scores"]
    assert "nothing right" in findings(base, tmp_path / "verdicts", task=Graded())


def test_a_healthy_run_has_no_error(base: Path, tmp_path: Path):
    patient = {"guards": {"clipped_ratio_above": 0.95}}  # a random model hardly ends its responses
    lifecycle.finish(toys.toy_run(base, tmp_path / "run", STEPS, patient), report=False)
    weights = {finding.weight for finding in diagnose(read_run(tmp_path / "run"))}
    assert "error" not in weights
    shutil.rmtree(tmp_path / "run" / "policy")
    assert "unfinished" in names(tmp_path / "run")


def test_what_follows_from_equal_outcomes_is_named_with_its_cause(base: Path, tmp_path: Path):
    found = findings(base, tmp_path / "run", {"algorithm": {"positive_lm": 0.0}}, task=Always(Verdict("wrong", "no")))
    assert "From this follow: " in found["nothing right"]
    assert "the policy hardly moves" in found["nothing right"]
    assert not {"the policy hardly moves", "flat values", "dead value head", "critic was not ready"} & set(found)


def test_all_frequent_reasons_of_wrong_responses_have_their_advice(base: Path, tmp_path: Path):
    layers = ({"rollout": {"max_response_tokens": 2}},)
    found = findings(base, tmp_path / "run", *layers, task=Always(Verdict("wrong", "no", "no_answer")))
    assert "without a marked answer" in found["nothing right"]
    assert "task.template" in found["nothing right"]
