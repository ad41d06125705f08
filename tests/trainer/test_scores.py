"""Scores as outcomes (algorithm.reward.by=score): partial credit reaches the losses; right stays a threshold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from vapo.algo.method import Reward
from vapo.algo.presets import GRPO, VAPO
from vapo.errors import ConfigError
from vapo.session import lifecycle
from vapo.tasks.verifiers.functions import to_verdict
from vapo.trainer.pricing import price
from vapo.types import Completion, Episode, Prompt, Verdict

BY_SCORE = {"algorithm": {"reward": {"by": "score"}}}


def episodes(*verdicts: Verdict) -> list[Episode]:
    completion = Completion((2, 1), (-1.0, -1.0), "stop", 0)
    return [Episode.of_completion(Prompt("p", "p"), i, completion, "", v) for i, v in enumerate(verdicts)]


GIVEN = (
    to_verdict(0.25),
    to_verdict(1.0),
    to_verdict(-2.0),
    to_verdict(3.5),
    Verdict("right"),
    Verdict("wrong", "no answer"),
    Verdict("invalid", "nan"),
)


def outcomes(reward: Reward) -> list[float]:
    method = replace(GRPO, reward=reward)
    return price(episodes(*GIVEN), method, max_response_tokens=8).outcomes.tolist()


def test_a_score_is_worth_its_share_and_a_verdict_without_one_all_or_nothing():
    assert outcomes(Reward(by="score")) == [0.25, 1.0, -2.0, 3.5, 1.0, 0.0, 0.0]
    assert outcomes(Reward(by="score", right=1.0, wrong=-1.0)) == [-0.5, 1.0, -5.0, 6.0, 1.0, -1.0, -1.0]
    assert outcomes(Reward()) == [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_what_is_right_does_not_change_with_scores():
    by_score = price(episodes(*GIVEN), replace(GRPO, reward=Reward(by="score")), max_response_tokens=8)
    by_verdict = price(episodes(*GIVEN), GRPO, max_response_tokens=8)
    assert torch.equal(by_score.learned, by_verdict.learned)
    assert [v.right for v in GIVEN] == [False, True, False, True, True, False, False]


@pytest.mark.parametrize("kind", ["bounded", "sigmoid", "hl_gauss"])
def test_a_head_with_a_range_needs_the_range_of_the_scores(kind: str, tmp_path: Path):
    head = {"algorithm": {"credit": {"head": {"kind": kind}}}}
    with pytest.raises(ConfigError, match=rf"head {kind} needs a range: set algorithm.credit.head.low and high"):
        toys.toy_config(tmp_path, BY_SCORE, head)
    residual = {"algorithm": {"credit": {"head": {"kind": kind}, "baseline": "group"}}}
    with pytest.raises(ConfigError, match="minus and plus the distance between least and greatest outcome"):
        toys.toy_config(tmp_path, BY_SCORE, residual)
    ranged = {"algorithm": {"credit": {"head": {"kind": kind, "low": -4.0, "high": 4.0}}}}
    assert toys.toy_config(tmp_path, BY_SCORE, ranged).algorithm.reward.by == "score"


class ShareTask(toys.EchoTask):
    """The score is the share of words that are the prompt's digit."""

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        words = response.split()
        return to_verdict(sum(word == str(prompt.answer) for word in words) / max(1, len(words)))


@pytest.mark.parametrize("preset", ["vapo", "vapo2", "grpo"])
def test_a_run_learns_from_scores_where_no_response_is_right(preset: str, tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    run = toys.toy_run(base, tmp_path / preset, BY_SCORE, preset=preset, task=ShareTask())
    before = {name: weight.clone() for name, weight in run.policy.weights()}
    lifecycle.finish(run)
    lines = [json.loads(line) for line in (tmp_path / preset / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["phase"] == "train"]
    assert all(0 < line["reward"] < 1 and line["reward_std"] > 0 for line in steps)
    assert any(line["reward"] != line["accuracy"] for line in steps)
    assert any(not torch.equal(weight, before[name]) for name, weight in run.policy.weights())


def test_the_target_of_the_critic_is_the_score():
    assert VAPO.reward.by == "verdict"  # the paper's
    method = replace(VAPO, reward=Reward(by="score"))
    prices = price(episodes(to_verdict(0.25)), method, max_response_tokens=8)
    assert prices.critic_outcomes.tolist() == [0.25]
