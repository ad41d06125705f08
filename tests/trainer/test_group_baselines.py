"""Critics beside the group's mean: residual, fitted, gated; who learns from what; what their metrics say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_credit import INVALID, RIGHT, WRONG, collate, episode

import toys
from vapo.algo.head_ranges import target_range
from vapo.algo.method import (
    Algorithm,
    Anchors,
    Band,
    Fixed,
    GroupBaseline,
    HistogramHead,
    Reward,
    Sampling,
    Share,
    TruncatedWeight,
)
from vapo.algo.presets import PPO, RLOO, VAPO, VAPO2, without
from vapo.errors import ConfigError
from vapo.trainer import credit as trainer_credit
from vapo.trainer.batch import Batch, critic_passes
from vapo.trainer.credit import assign_credit, critic_share, new_mixture, start_head
from vapo.trainer.loop import train_step
from vapo.trainer.measure import scoring_figures
from vapo.trainer.pretrain import with_returns

GROUP = [episode(RIGHT), episode(WRONG), episode(WRONG), episode(RIGHT)]


def credit(algorithm: Algorithm, **changes) -> Algorithm:
    return replace(algorithm, credit=replace(algorithm.credit, **changes))


RESIDUAL = credit(VAPO, baseline="group", policy_lambda=Fixed(0.9))


def scored(algorithm: Algorithm, episodes=GROUP, answers: list[float] | None = None) -> Batch:
    batch = collate(episodes, algorithm, max_response_tokens=20)
    values = torch.zeros(batch.mask.shape) if answers is None else torch.tensor(answers).expand(batch.mask.shape)
    logp = torch.full(batch.mask.shape, -1.0)
    return replace(batch, old_values=values.clone(), old_logp=logp, final_values=torch.full((len(batch),), 0.25))


def test_a_residual_critic_learns_what_the_mean_of_the_others_leaves():
    batch = assign_credit(scored(RESIDUAL), RESIDUAL)
    assert batch.returns[:, 0].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert with_returns(scored(RESIDUAL), RESIDUAL).returns[:, 0].tolist() == pytest.approx(
        [2 / 3, -2 / 3, -2 / 3, 2 / 3]
    )


def test_a_residual_critic_of_zero_at_lambda_1_is_rloo():
    one = credit(RESIDUAL, policy_lambda=Fixed(1.0))
    rloo = replace(RLOO, credit=GroupBaseline(std=None, leave_one_out=True))
    torch.testing.assert_close(assign_credit(scored(one), one).advantages, assign_credit(scored(rloo), rloo).advantages)


def test_a_residual_critic_gives_the_advantages_of_an_absolute_one_with_the_mean_added():
    answers = [0.1, -0.2, 0.3, 0.2]
    residual = assign_credit(scored(RESIDUAL, answers=answers), RESIDUAL)
    absolute = credit(RESIDUAL, baseline="none")
    batch = scored(absolute)
    batch = replace(batch, old_values=torch.tensor(answers) + residual.critic_shift[:, None])
    torch.testing.assert_close(residual.advantages, assign_credit(batch, absolute).advantages)


def test_responses_that_take_no_part_are_not_in_the_mean():
    episodes = [*GROUP, episode(WRONG, finish="length")]
    dropped = replace(RESIDUAL, truncated="drop")
    batch = assign_credit(scored(dropped, episodes), dropped)
    assert batch.critic_shift[:4].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])
    assert not batch.mask[4].any()


def test_a_cut_off_response_bootstraps_with_the_mean_of_its_group():
    episodes = [episode(RIGHT), episode(WRONG, finish="length")]
    method = replace(credit(RESIDUAL, policy_lambda=Fixed(1.0)), truncated="bootstrap")
    batch = assign_credit(scored(method, episodes), method)
    # the critic's answer after the cut is .25, the mean of the others 1: the state is worth 1.25, V is 1
    assert batch.advantages[1].tolist() == pytest.approx([0.25] * 4)
    assert batch.returns[1].tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("baseline", ["fitted", "gated"])
def test_a_critic_without_a_share_does_not_bootstrap_either(baseline: str):
    episodes = [*GROUP[:3], episode(WRONG, finish="length")]
    method = replace(credit(VAPO, baseline=baseline, policy_lambda=Fixed(1.0)), truncated="bootstrap")
    # it says the opposite of what happens, and 5 after the cut
    against = torch.tensor([[0.0], [1.0], [1.0], [1.0]]).expand(4, 4).clone()
    batch = replace(scored(method, episodes), old_values=against, final_values=torch.full((4,), 5.0))
    batch = assign_credit(batch, method)
    assert critic_share(batch) == 0.0
    assert batch.advantages[3].tolist() == pytest.approx([0.0] * 4)  # going on is worth the mean of the others, V too


def test_a_cut_off_response_of_a_residual_critic_that_knows_nothing_has_no_advantage():
    # the policy's outcomes have an overlong punishment that the critic's have not: their means differ
    method = replace(credit(RESIDUAL, policy_lambda=Fixed(1.0), overlong_in_target=False), truncated="bootstrap",
                     reward=replace(VAPO.reward, overlong_cache=0.5))  # fmt: skip
    episodes = [episode(RIGHT), *(episode(WRONG, length=20, finish="length") for _ in range(3))]
    batch = replace(scored(method, episodes), final_values=torch.zeros(4))
    batch = assign_credit(batch, method)
    assert batch.advantages[1:].abs().max() < 1e-6


def test_the_policy_skips_cut_off_responses_and_the_critic_learns_that_they_fail():
    method = replace(VAPO, truncated="drop-from-policy")
    batch = assign_credit(scored(method, [episode(RIGHT), episode(WRONG, finish="length")]), method)
    assert batch.mask.all()
    assert batch.returns[1].tolist() == [0.0] * 4
    assert batch.for_policy().mask.any(-1).tolist() == [True, False]
    assert torch.equal(batch.for_policy().old_values, batch.old_values)


def test_the_overlong_punishment_can_be_kept_from_the_critic():
    reward = Reward(overlong_cache=0.5)
    for in_target, target in [(True, 0.4), (False, 1.0)]:
        method = credit(replace(VAPO, reward=reward), overlong_in_target=in_target)
        batch = assign_credit(scored(method, [episode(RIGHT, length=16)]), method)
        assert batch.outcomes.tolist() == pytest.approx([0.4])
        assert batch.returns[0, 0].item() == pytest.approx(target)
        assert target_range(method) == ((-1.0, 1.0) if in_target else (0.0, 1.0))


def test_a_fitted_mixture_takes_its_share_from_earlier_steps():
    fitted = credit(VAPO, baseline="fitted", policy_lambda=Fixed(1.0))
    batch = scored(fitted)
    batch = replace(batch, old_values=torch.tensor([[0.9], [0.1], [0.1], [0.9]]).expand(4, 4).clone())
    first = assign_credit(batch, fitted)
    others = torch.tensor([1 / 3, 2 / 3, 2 / 3, 1 / 3])
    torch.testing.assert_close(first.values[:, 0], others)  # nothing is known of the critic yet
    mixture = new_mixture(first, (0.0, 0.0))
    second = assign_credit(batch, fitted, mixture)
    assert critic_share(second) == 1.0
    torch.testing.assert_close(second.values, batch.old_values)
    broken = replace(first, old_values=torch.full((4, 4), torch.nan))
    assert new_mixture(broken, mixture) == mixture  # one value without sense does not last for ever
    half = assign_credit(batch, fitted, (0.5, 1.0))
    torch.testing.assert_close(half.values[:, 0], (others + batch.old_values[:, 0]) / 2)
    # the critic itself learns the whole outcome
    torch.testing.assert_close(half.returns[:, 0], torch.tensor([1.0, 0.0, 0.0, 1.0]))


def test_a_gate_lets_the_critic_through_while_it_explains_something():
    gated = credit(VAPO, baseline="gated", policy_lambda=Fixed(1.0))
    good = torch.tensor([[0.9], [0.1], [0.1], [0.9]]).expand(4, 4).clone()
    batch = replace(scored(gated), old_values=good)
    through = assign_credit(batch, gated)
    assert torch.equal(through.values, good)
    assert critic_share(through) == 1.0
    closed = assign_credit(replace(batch, old_values=1 - good), gated)
    assert closed.values[:, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])
    assert critic_share(closed) == 0.0


@pytest.mark.parametrize(
    ("baseline", "means", "gates"), [("none", 2, 0), ("group", 2, 0), ("fitted", 2, 0), ("gated", 3, 1)]
)
def test_a_step_makes_the_means_of_a_group_and_the_gate_once(
    baseline: str, means: int, gates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    method = {"algorithm": {"credit": {"baseline": baseline}}, "trainer": {"pretraining_steps": 0}}
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", method)
    counted = {"leave_one_out": 0, "explained_variance": 0}

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(trainer_credit, name)

        def call(*values: Any, **how: Any) -> Any:
            counted[name] += 1
            return real(*values, **how)

        return call

    for name in counted:
        monkeypatch.setattr(trainer_credit, name, counting(name))
    train_step(run)
    run.folder.close()
    # of the group and, for a response without others, of the step; a closed gate takes that of the step once more
    assert counted == {"leave_one_out": means, "explained_variance": gates}


def test_the_metrics_tell_what_the_critic_adds_to_the_group():
    batch = assign_credit(scored(RESIDUAL), RESIDUAL)
    figures = scoring_figures(batch, RESIDUAL)
    assert figures["advantages/variance_ratio"] == pytest.approx(1.0)
    assert figures["value/within_group_auc"] == 0.5
    assert figures["value/std"] == 0.0
    assert figures["outcomes/between_share"] == pytest.approx(0.0)
    assert figures["value/residual_explained_variance"] == pytest.approx(0.0)
    knowing = replace(scored(RESIDUAL), old_values=torch.tensor([[0.5], [-0.5], [-0.5], [0.5]]).expand(4, 4).clone())
    figures = scoring_figures(assign_credit(knowing, RESIDUAL), RESIDUAL)
    assert figures["advantages/variance_ratio"] == pytest.approx((1 / 6) ** 2 / (2 / 3) ** 2)
    assert figures["value/within_group_auc"] == 1.0
    assert figures["value/residual_explained_variance"] == pytest.approx(1 - (1 / 6) ** 2 / (2 / 3) ** 2)


def test_the_sampler_correction_weighs_tokens_and_counts_those_it_removes():
    method = replace(VAPO, sampler=TruncatedWeight(cap=2.0))
    batch = scored(method)
    batch = replace(batch, old_logp=batch.sampled_logp + torch.tensor([0.0, math.log(3), 0.0, 0.0]))
    done = assign_credit(batch, method)
    torch.testing.assert_close(done.sampler_weights, torch.tensor([[1.0, 2.0, 1.0, 1.0]]).expand(4, 4))
    assert scoring_figures(done, method)["sampler/removed_ratio"] == 0.25
    band = replace(VAPO, sampler=Band(low=0.5, high=2.0))
    torch.testing.assert_close(
        assign_credit(batch, band).sampler_weights, torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    )


def test_prompt_weights_are_made_on_the_whole_rollout():
    method = credit(VAPO, prompt_weights=True)
    method = replace(
        method, sampling=Sampling(prompts=2, per_prompt=4), optimization=replace(VAPO.optimization, minibatch=8)
    )
    episodes = [*GROUP, *(episode(WRONG, prompt="q") for _ in range(4))]
    weights = assign_credit(scored(method, episodes), method).critic_weights
    # std .5 and 0, floor 1/(2·√4) = .25: 1/.5 and 1/.25, mean 3
    assert weights.tolist() == pytest.approx([2 / 3] * 4 + [4 / 3] * 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: replace(credit(PPO, baseline="group")), "at least 2 responses per prompt, got 1"),
        (lambda: credit(VAPO, baseline="group", gamma=0.99), "needs algorithm.credit.gamma=1, got 0.99"),
        (lambda: credit(VAPO, value_tokens=Anchors((0.0, 0.5))), r"numbers in \(0, 1\], got \[0.0, 0.5\]"),
        (lambda: credit(VAPO, head=HistogramHead(), value_clip=0.2), "learns by cross-entropy"),
        (lambda: GroupBaseline(leave_one_out=True), "divides by no deviation, and algorithm.credit.std is population"),
        (lambda: credit(VAPO, policy_lambda=Share(k=0.0)), r"k must be in \(0, 1\], got 0"),
        (lambda: replace(RLOO, truncated="drop-from-policy"), "leaves the responses to the critic, and there is none"),
        (lambda: without(VAPO2, "group-sampling"), "Also remove group-baseline"),
    ],
)
def test_methods_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        change()


def test_each_remedy_of_vapo2_is_taken_away_to_vapo():
    assert without(VAPO2, "group-baseline").credit.baseline == "none"
    assert without(VAPO2, "share-lambda").credit.policy_lambda == VAPO.credit.policy_lambda
    assert without(VAPO2, "mean-head").credit.head == VAPO.credit.head
    plain = VAPO2
    for remedy in ("group-baseline", "share-lambda", "mean-head"):
        plain = without(plain, remedy)
    assert plain == VAPO


def test_a_response_without_others_is_measured_from_the_step_and_teaches_rloo_nothing():
    episodes = [episode(RIGHT), episode(INVALID), *(episode(WRONG, prompt="q") for _ in range(2))]
    batch = assign_credit(scored(RLOO, episodes), RLOO)
    assert batch.advantages[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert scoring_figures(batch, RLOO)["groups/alone_ratio"] == pytest.approx(1 / 3)
    residual = assign_credit(scored(RESIDUAL, episodes), RESIDUAL)
    assert residual.critic_shift.tolist() == pytest.approx([0.0, residual.critic_shift[1].item(), 0.0, 0.0])
    assert residual.returns[0, 0].item() == pytest.approx(1.0)  # the mean of the step's other responses is 0


def test_whitening_counts_the_tokens_that_the_policy_learns_from():
    method = credit(replace(VAPO, truncated="drop-from-policy"), whiten=True, policy_lambda=Fixed(1.0))
    episodes = [episode(RIGHT), episode(WRONG), episode(WRONG, finish="length"), episode(WRONG, finish="length")]
    batch = assign_credit(scored(method, episodes, [0.1, 0.2, 0.3, 0.4]), method)
    learned = batch.advantages[batch.for_policy().mask]
    assert float(learned.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(learned.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    figures = scoring_figures(batch, method)
    assert figures["advantages/std"] == pytest.approx(1.0, abs=1e-5)
    assert figures["policy/learned_ratio"] == 0.5


def test_advantages_are_compared_as_mixed_and_the_critic_is_calibrated_alone():
    fitted = credit(VAPO, baseline="fitted", policy_lambda=Fixed(1.0))
    harmful = replace(scored(fitted), old_values=torch.tensor([[-1.0], [2.0], [2.0], [-1.0]]).expand(4, 4).clone())
    figures = scoring_figures(assign_credit(harmful, fitted), fitted)  # a share of 0: the group's mean alone
    assert figures["advantages/variance_ratio"] == pytest.approx(1.0)
    assert figures["value/explained_variance"] == pytest.approx(1 - 4 / 0.25)  # y - V is 2 and -2, y is 1 and 0
    assert figures["value/bias"] == pytest.approx(0.0)


@pytest.mark.parametrize(("wanted", "steps"), [(None, 2), (3, 3), (1000, 8)])
def test_the_critic_has_its_own_number_of_minibatches(wanted: int | None, steps: int):
    method = credit(VAPO, critic_minibatches=wanted, critic_updates=2)
    method = replace(method, optimization=replace(VAPO.optimization, minibatch=4))
    assert critic_passes(scored(method, [*GROUP, *GROUP]), method) == (2, steps)


def test_a_mean_start_waits_for_a_rollout_that_has_targets(tmp_path):
    run = toys.toy_run(
        toys.toy_base(tmp_path / "base"), tmp_path / "run", {"algorithm": {"credit": {"head": {"start": "mean"}}}}
    )
    invalid = scored(run.algorithm, [episode(INVALID)] * 4)
    start_head(run, invalid)
    assert not run.state.head_started
    batch = scored(run.algorithm)
    start_head(run, batch)
    assert run.state.head_started
    values = run.critic.score(batch, ("values",), micro_batch_tokens=999)["values"]
    torch.testing.assert_close(values, torch.full_like(values, 0.5))
    start_head(run, scored(run.algorithm, [episode(WRONG)] * 4))  # only once
    assert torch.equal(run.critic.score(batch, ("values",), micro_batch_tokens=999)["values"], values)
    run.folder.close()


def test_the_variance_of_the_group_counts_a_response_without_others_as_training_does():
    episodes = [episode(RIGHT), episode(INVALID), *(episode(WRONG, prompt="q") for _ in range(2))]
    figures = scoring_figures(assign_credit(scored(RESIDUAL, episodes), RESIDUAL), RESIDUAL)
    assert figures["advantages/variance_ratio"] == pytest.approx(1.0)  # a critic of 0 is the group's mean
