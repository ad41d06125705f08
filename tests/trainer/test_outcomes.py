"""Runs whose responses are all wrong or all right raise an alarm at once, with the reason and the fix."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from vapo.algo.method import Reward
from vapo.algo.presets import GRPO, VAPO
from vapo.errors import DivergedError
from vapo.rollout.collect import tally
from vapo.session import lifecycle as runs
from vapo.trainer import outcomes
from vapo.trainer.guards import new_alarms
from vapo.trainer.settings import GuardSettings
from vapo.trainer.state import State
from vapo.types import KINDS, Completion, Episode, Prompt, Verdict


class Decided(toys.EchoTask):
    """Whatever is written gets the same verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        self.verdict = verdict

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return self.verdict


WRONG = Verdict("wrong", "nothing boxed", "no_answer")
RIGHT = Verdict("right")


def episode(status: Any, kind: Any = "unspecified", finish: Any = "stop") -> Episode:
    return Episode.of_completion(
        Prompt("p", "x"), 0, Completion((2,), (-1.0,), finish, 0), "text", Verdict(status, "", kind)
    )


def counts(responses: int, right: int = 0, **why: int) -> dict[str, int]:
    return {"responses": responses, "right": right, **dict.fromkeys(outcomes.WHY, 0), **why}


def step(**count: int) -> dict[str, Any]:
    """The figures of a step with these counts."""
    counted = counts(**count)
    return {"accuracy": counted["right"] / max(1, counted["responses"]), **outcomes.figures_of(counted)}


# --------------------------------------------------------------------------- counting


def test_wrong_responses_are_counted_by_kind_and_cut_off_ones_besides():
    episodes = [
        episode("right"),
        episode("right", finish="length"),  # it is right all the same
        episode("wrong", "no_answer", "length"),
        episode("wrong", "no_answer"),
        episode("wrong", "wrong_answer"),
        episode("wrong", "colour"),  # no kind of ours
        episode("invalid", "no_answer", "length"),
    ]
    assert tally(episodes) == counts(6, 2, no_answer=2, wrong_answer=1, unspecified=1, cut_off=1)


@given(st.lists(st.sampled_from(["right", "invalid", *KINDS]), max_size=500), st.booleans())
def test_the_counts_can_be_read_back_from_a_steps_figures(words, cut):
    finish = "length" if cut else "stop"
    counted = tally([episode(*((w,) if w not in KINDS else ("wrong", w)), finish=finish) for w in words])
    figures = {"accuracy": counted["right"] / counted["responses"] if counted["responses"] else float("nan")}
    assert outcomes.tally_of({**figures, **outcomes.figures_of(counted)}) == counted


@pytest.mark.parametrize(
    ("response", "kind"),
    [("it is 5", "no_answer"), ("\\boxed{}", "no_answer"), ("\\boxed{5}", "wrong_answer"),
     ("\\boxed{9^{9^{9^9}}}", "unreadable"), ("\\boxed{maybe}", "unreadable")],
)  # fmt: skip
def test_the_maths_verifier_gives_the_kind_of_a_wrong_answer(response, kind):
    from vapo.tasks.verifiers.maths import verify_maths

    verdict = verify_maths(Prompt("p", "x", "7"), response)
    assert (verdict.status, verdict.kind) == ("wrong", kind)


def test_kinds_come_back_from_a_verifiers_process_and_no_others(tmp_path: Path):
    from vapo.tasks.verifiers.pool import VerifierPool

    code = "from vapo.types import Verdict\ndef judge(response, answer):\n    return Verdict('wrong', 'so', response)\n"
    (tmp_path / "mine.py").write_text(code)
    with VerifierPool(f"{tmp_path / 'mine.py'}:judge", workers=1) as pool:
        verdicts = pool.judge([(Prompt("p", "x"), kind) for kind in ("no_answer", "colour")])
    assert [verdict.kind for verdict in verdicts] == ["no_answer", "unspecified"]


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (
            counts(64, no_answer=61, wrong_answer=3, cut_off=54),
            "0 of 64 responses in 5 steps are right: nothing to learn (61 without a marked answer, 3 with another "
            "answer, 54 cut off at the length limit). Raise rollout.max_response_tokens; show the model the form of an "
            "answer (in the prompt: task.template, or by fine-tuning on examples); take easier problems, or another "
            "model.",
        ),
        (
            counts(64, wrong_answer=60, no_answer=4),
            "0 of 64 responses in 5 steps are right: nothing to learn (4 without a marked answer, 60 with another "
            "answer). Take easier problems, or another model.",
        ),
        (
            counts(8, unspecified=8),
            "0 of 8 responses in 5 steps are right: nothing to learn. Check in the rollouts whether the verifier "
            "accepts any answer; take easier problems, or another model.",
        ),
        (
            counts(64, 64),
            "All 64 responses in 5 steps are right: nothing is left to learn. Take harder problems, or stop here.",
        ),
    ],
)
def test_the_advice_fits_the_reasons(tally, words):
    assert outcomes.lesson(tally, "in 5 steps") == words


def test_a_built_in_task_is_told_of_its_base_since_it_has_no_template():
    said = outcomes.lesson(counts(8, no_answer=5, unreadable=3), "in 5 steps", "maze")
    assert said.endswith(
        "Take a base model that was trained for longer (vapo make-base maze --recipe steps=N); take easier problems, "
        "or another model."
    )
    assert "task.template" not in said
    assert "task.template" in outcomes.lesson(counts(8, no_answer=5), "in 5 steps", "math")


# --------------------------------------------------------------------------- the guard


def test_steps_without_a_right_response_raise_one_alarm_with_their_counts():
    state, settings = State(), GuardSettings(same_outcome_steps=3)
    nothing, some = step(responses=8, no_answer=6, cut_off=4), step(responses=8, right=1, no_answer=7)
    raised = [new_alarms(s, state, settings) for s in (nothing, nothing, some, nothing, nothing, nothing, nothing)]
    assert [list(t) for t in raised] == [[]] * 5 + [["nothing right"]] + [[]]
    assert "0 of 24 responses in 3 steps" in raised[5]["nothing right"]
    assert "18 without a marked answer, 12 cut off" in raised[5]["nothing right"]


def test_all_right_is_another_streak_than_all_wrong_and_no_verdict_is_neither():
    state, settings = State(), GuardSettings(same_outcome_steps=2)
    wrong, right, none = step(responses=4, no_answer=4), step(responses=4, right=4), step(responses=0)
    raised = [new_alarms(s, state, settings) for s in (wrong, right, none, right, wrong, right, right)]
    assert [list(t) for t in raised] == [[]] * 6 + [["nothing wrong"]]
    assert raised[6]["nothing wrong"].startswith("All 8 responses in 2 steps are right")


@pytest.mark.parametrize(("reward_std", "raised"), [(0.0, False), (3e-8, False), (None, False), (0.25, True)])
def test_equal_values_are_a_fault_of_the_critic_only_where_outcomes_differ(reward_std, raised):
    figures = {"value/std": 0.0, "lr/critic": 1e-3, "reward_std": reward_std}  # 3e-8: rounding of equal scores
    state, settings = State(), GuardSettings(patience=2)
    assert ["flat values" in new_alarms(figures, state, settings) for _ in range(3)] == [False, raised, False]


BY_SCORE = replace(VAPO, reward=Reward(by="score"))
WITHOUT_RIGHT = replace(GRPO, reward=Reward(by="score"))


@pytest.mark.parametrize(
    ("algorithm", "reward_std", "right", "name"),
    [
        (BY_SCORE, 0.2, 0, "nothing right"),  # the LM loss asks for right responses
        (BY_SCORE, 0.2, 4, "nothing wrong"),
        (BY_SCORE, 0.2, 2, None),
        (BY_SCORE, 0.0, 0, "equal scores"),
        (WITHOUT_RIGHT, 0.2, 0, None),
        (WITHOUT_RIGHT, 3e-8, 2, "equal scores"),
    ],
)
def test_where_scores_are_outcomes_their_equality_counts_and_right_only_where_the_method_asks(
    algorithm, reward_std, right, name
):
    figures = {**step(responses=4, right=right), "reward_std": reward_std, "reward": 0.25}
    raised = new_alarms(figures, State(), GuardSettings(same_outcome_steps=1), algorithm=algorithm)
    assert list(raised) == ([] if name is None else [name])
    if name == "equal scores":
        assert "The 4 responses in 1 step have equal outcomes (mean 0.25)" in raised[name]
    elif name is not None:
        assert f"{'Lower' if right == 0 else 'Raise'} task.right_at" in raised[name]


def test_the_guard_can_be_switched_off():
    state = State()
    for _ in range(9):
        assert new_alarms(step(responses=4), state, GuardSettings(same_outcome_steps=0)) == {}


# --------------------------------------------------------------------------- runs


def alarms(folder: Path) -> list[dict[str, Any]]:
    """The alarms of the run's steps, without those from before its first one."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "alarm" and "lasting" not in event]


SHORT = {"trainer": {"steps": 3, "pretraining_ready": 0.1}, "guards": {"same_outcome_steps": 2, "patience": 2}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return toys.toy_base(tmp_path / "base")


@pytest.mark.parametrize("preset", ["grpo", "vapo"])
@pytest.mark.parametrize(("verdict", "name"), [(WRONG, "nothing right"), (RIGHT, "nothing wrong")])
def test_a_run_with_equal_outcomes_raises_alarms_before_and_during_training(base, tmp_path, preset, verdict, name):
    runs.finish(toys.toy_run(base, tmp_path / "run", SHORT, preset=preset, task=Decided(verdict)), report=False)
    raised = [alarm for alarm in alarms(tmp_path / "run") if alarm.get("name") == name]
    in_steps = ["64 responses in 2 steps"] * (2 if preset == "vapo" else 1)  # both phases
    for alarm, words in zip(raised, ["16 responses before training", *in_steps], strict=True):
        assert words in alarm["message"]
        assert ("task.template" in alarm["message"]) == (name == "nothing right")
    everything = " ".join(alarm["message"] for alarm in alarms(tmp_path / "run"))
    assert "retrain longer" not in everything
    assert "critic_lr" not in everything
    assert ("The critic is not ready. No outcome differs from another." in everything) == (preset == "vapo")


def test_a_critic_of_equal_scores_is_not_told_to_train_for_longer(base, tmp_path):
    half = Decided(Verdict("wrong", score=0.5))
    by_score = {**SHORT, "algorithm": {"reward": {"by": "score"}}}
    runs.finish(toys.toy_run(base, tmp_path / "run", by_score, task=half), report=False)
    [said] = [a["message"] for a in alarms(tmp_path / "run") if a["message"].startswith("The critic is not ready")]
    assert "No outcome differs from another. The" in said
    assert "to held-out prompts have equal outcomes (mean 0.5): nothing to learn." in said
    assert "Pretrain longer" not in said


def test_a_run_with_nothing_to_learn_can_be_stopped(base, tmp_path):
    stop = {**SHORT, "guards": {"same_outcome_steps": 2, "action": "stop"}}
    with pytest.raises(DivergedError, match="0 of 64 responses in 2 steps are right") as stopped:
        runs.finish(toys.toy_run(base, tmp_path / "run", stop, preset="grpo", task=Decided(WRONG)))
    assert stopped.value.exit_code == 3
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_value_pretraining_alone_raises_an_alarm_at_its_start_if_nothing_is_right(base, tmp_path):
    alone = {"trainer": {"steps": 0, "pretraining_steps": 1}}
    runs.finish(toys.toy_run(base, tmp_path / "run", alone, task=Decided(WRONG)), report=False)
    assert "0 of 16 responses to held-out prompts are right" in alarms(tmp_path / "run")[0]["message"]


def test_a_large_policy_update_raises_an_alarm_at_once_and_small_ones_do_not(base, tmp_path):
    runs.finish(toys.toy_run(base, tmp_path / "calm"), report=False)
    assert "step too far" not in [alarm.get("name") for alarm in alarms(tmp_path / "calm")]
    wild = {"trainer": {"actor_lr": 0.5, "warmup_steps": 0}}
    runs.finish(toys.toy_run(base, tmp_path / "wild", wild), report=False)
    raised = Counter(alarm.get("name") for alarm in alarms(tmp_path / "wild"))
    assert raised["step too far"] >= 1
    message = next(a["message"] for a in alarms(tmp_path / "wild") if a.get("name") == "step too far")
    assert "lower trainer.actor_lr" in message
