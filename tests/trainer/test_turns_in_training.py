"""Episodes of several turns in the loop: what is learned from, what is written, that it repeats and resumes exactly."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from turn_toys import RepeatTask
from vapo.algo import positive_weights, token_weights
from vapo.algo.method import BetweenTurns, LengthAdaptive, TurnStarts
from vapo.algo.presets import VAPO
from vapo.durability import checkpoint
from vapo.errors import ConfigError, VerifierBrokenError
from vapo.evals.continuations import Sampler, continue_prompts
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer.batch import Batch, collate, concatenate
from vapo.trainer.credit import assign_credit
from vapo.trainer.measure import scoring_figures
from vapo.trainer.objectives import CriticObjective
from vapo.trainer.outcomes import turn_figures
from vapo.trainer.pricing import price
from vapo.trainer.record import read_episodes
from vapo.trainer.sources import check_verdicts
from vapo.types import Episode, Prompt, Turn, Verdict

METHOD = replace(VAPO, credit=replace(VAPO.credit, policy_lambda=LengthAdaptive(1.0)))
NAN, RIGHT = float("nan"), Verdict("right")


def two_turns(verdict: Verdict = RIGHT) -> Episode:
    """Three tokens of the policy, two of the environment, two of the policy."""
    turns = (
        Turn("policy", (5, 6, 1), (-0.1, -0.2, -0.3)),
        Turn("environment", (7, 8)),
        Turn("policy", (9, 1), (-0.4, -0.5)),
    )
    return Episode(Prompt("p", "x", None, (4, 4)), 0, turns, "", "stop", 0, verdict)


def credited(episodes: list[Episode], algorithm=METHOD) -> Batch:
    batch = collate(episodes, price(episodes, algorithm, max_response_tokens=20))
    # what a network says of the environment's tokens must not matter
    values = torch.tensor([[0.2, 0.3, 0.4, NAN, NAN, 0.6, 0.8]]).repeat(len(episodes), 1)
    return assign_credit(replace(batch, old_values=values, old_logp=torch.full_like(values, NAN)), algorithm)


def test_two_turns_worked_by_hand():
    # l = 5 trained tokens, λ = 1 - 1/5 = .8; δ = (.1, .1, .6 - .4, .2, 1 - .8), the reward on the last token
    # A = (.1 + .8·.4904, .1 + .8·.488, .2 + .8·.36, -, -, .2 + .8·.2, .2)
    batch = credited([two_turns()])
    assert batch.mask.tolist() == [[True, True, True, False, False, True, True]]
    assert batch.lam.tolist() == pytest.approx([0.8])
    torch.testing.assert_close(batch.advantages, torch.tensor([[0.49232, 0.4904, 0.488, 0.0, 0.0, 0.36, 0.2]]))
    torch.testing.assert_close(batch.returns, torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]]))
    fifth = torch.tensor([[0.2, 0.2, 0.2, 0.0, 0.0, 0.2, 0.2]])
    torch.testing.assert_close(token_weights(batch.mask), fifth)
    torch.testing.assert_close(positive_weights(batch.mask, batch.right), fifth)
    figures = scoring_figures(batch, METHOD)
    assert figures["value/bias"] == pytest.approx((2.3 - 5) / 5)  # of the policy's tokens
    assert figures["gae/lambda_mean"] == pytest.approx(0.8)


def test_lambda_between_turns_worked_by_hand():
    # within a turn λ is 1: A = (.2 + .1 + A_3, .1 + A_3, .2 + .5·.4, -, -, .4, .2)
    algorithm = replace(METHOD, credit=replace(METHOD.credit, policy_lambda=BetweenTurns(0.5)))
    batch = credited([two_turns()], algorithm)
    torch.testing.assert_close(batch.advantages, torch.tensor([[0.6, 0.5, 0.4, 0.0, 0.0, 0.4, 0.2]]))
    assert batch.lam.tolist() == [0.5]


def test_a_value_between_turns_is_refused_since_no_critic_learns_it(tmp_path: Path):
    bootstrap = {"algorithm": {"truncated": "bootstrap"}}
    with pytest.raises(ConfigError, match=r"repeat have several turns .*Set algorithm\.truncated to zero"):
        toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", bootstrap, task=RepeatTask())
    assert not (tmp_path / "run").exists()


def test_an_empty_reply_of_the_environment_keeps_two_turns_apart():
    # the same tokens of the policy; V = (.2, .3, .4, .6, .8), λ = .5 after the third token and the last
    turns = (two_turns().turns[0], Turn("environment", ()), two_turns().turns[2])
    batch = collate([episode := replace(two_turns(), turns=turns)], price([episode], METHOD, max_response_tokens=20))
    batch = replace(batch, old_values=torch.tensor([[0.2, 0.3, 0.4, 0.6, 0.8]]), old_logp=torch.zeros(1, 5))
    algorithm = replace(METHOD, credit=replace(METHOD.credit, policy_lambda=BetweenTurns(0.5)))
    credited = assign_credit(batch, algorithm)
    torch.testing.assert_close(credited.advantages, torch.tensor([[0.6, 0.5, 0.4, 0.4, 0.2]]))
    joined = concatenate([batch.select(torch.tensor([0])), Batch.from_tensors(batch.tensors())])
    assert joined.turn_starts.tolist() == [[True, False, False, True, False]] * 2
    starts = CriticObjective(None, replace(METHOD.credit, value_tokens=TurnStarts())).weights(batch)["value"]
    assert starts.tolist() == [[0.5, 0.0, 0.0, 0.5, 0.0]]


def test_an_invalid_episode_teaches_nothing_and_figures_count_turns():
    assert not bool(credited([two_turns(Verdict("invalid"))]).mask.any())
    figures = turn_figures([two_turns()])
    assert figures == {"turns/mean": 2.0, "turns/environment_ratio": pytest.approx(2 / 7)}


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        (
            [True, True],
            r"^The environment failed in 2 of 3 responses \(first: prompt p: boom\); .* Fix the environment\.",
        ),
        ([False, False], r"^The verifier could not judge 2 of 3 responses .* Fix the verifier or the gold answers\.$"),
        (
            [False, True],
            r"^The environment failed in 1 of 3 .*, and the verifier could not judge 1 of 3 .*Fix the env",
        ),
    ],
    ids=["environment", "verifier", "both"],
)
def test_too_many_invalid_verdicts_name_who_gave_them(judged: list[bool], said: str):
    boom = two_turns(Verdict("invalid", "boom"))
    episodes = [two_turns(), *(replace(boom, judged=one) for one in judged)]
    with pytest.raises(VerifierBrokenError, match=said):
        check_verdicts(episodes, 0.5)
    check_verdicts(episodes, 0.7)


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time/", "throughput/", "mfu/", "memory/", "step_time")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in found]


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_of_several_turns_resumes_exactly(staleness: int, tmp_path: Path):
    base, ahead = toys.toy_base(tmp_path / "base"), {"trainer": {"max_staleness": staleness}}
    runs.finish(toys.toy_run(base, tmp_path / "whole", ahead, task=RepeatTask()), report=False)
    whole = lines(tmp_path / "whole")
    assert all(line["turns/mean"] > 1 and line["turns/environment_ratio"] > 0 for line in whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("step_000002", "step_000003"):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / name)
    runs.finish(runs.resume(tmp_path / "part", SilentView(), task=RepeatTask()), report=False)
    assert lines(tmp_path / "part") == whole
    weights = [checkpoint.sha256(tmp_path / run / "policy" / "model.safetensors") for run in ("whole", "part")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_tiny_policy_learns_to_repeat_what_the_environment_said(tmp_path: Path):
    longer = {
        "trainer": {"steps": 30, "samples_per_step": 96, "group_size": 8, "minibatch_size": 32, "actor_lr": 5e-3},
        "checkpoint": {"every": 0},
        "evaluation": {"samples_per_prompt": 16},
    }
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", longer, task=RepeatTask())
    runs.finish(run, report=False)
    before, after = (json.loads(x) for x in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines())
    assert after["avg"] > before["avg"] + 0.15, (before["avg"], after["avg"])
    episodes = read_episodes(tmp_path / "run" / "rollouts" / "step_000030.jsonl.gz")
    assert {turn.author for episode in episodes for turn in episode.turns} == {"policy", "environment"}
    with gzip.open(tmp_path / "run" / "rollouts" / "step_000030.jsonl.gz", "rt") as file:
        for line in map(json.loads, file):
            authors = [author for author, length in line["turns"] for _ in range(length)]
            for key in ("logp", "value", "advantage", "return"):
                assert [x is None for x in line[key]] == [author == "environment" for author in authors]


def test_a_critics_prefixes_end_before_tokens_of_the_policy_and_go_on_with_their_environment(tmp_path: Path):
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", task=RepeatTask())
    run.hand_over()
    sampler = Sampler(run.engine, run.task, run.decoding, run.decode, 0, 64, run.turns)
    prompts = [run.heldout_prompts[i] for i in range(4)]
    done = continue_prompts(sampler, prompts, responses=2, fractions=(0.0, 0.5, 0.9), continuations=4)
    for found in done:
        assert len(found.prefixes) == 6  # each response has an environment of its own
        for prefix in found.prefixes:
            assert 0 <= prefix.right <= prefix.valid == 4
    run.engine.close()
    run.folder.close()
