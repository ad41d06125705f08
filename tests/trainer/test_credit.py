"""From verdicts to advantages: truncation, invalid verdicts, group baselines, decoupling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vapo.algo.method import Algorithm, BetweenTurns, Fixed, GroupBaseline, LengthAdaptive, TurnStarts
from vapo.algo.presets import DAPO, GRPO, VAPO
from vapo.trainer.batch import Batch
from vapo.trainer.batch import collate as pack
from vapo.trainer.credit import assign_credit
from vapo.trainer.measure import rollout_figures, scoring_figures
from vapo.trainer.pricing import price
from vapo.types import Completion, Episode, Prompt, Turn, Verdict

RIGHT, WRONG, INVALID = Verdict("right"), Verdict("wrong"), Verdict("invalid", "timed out")
LONG = replace(VAPO, credit=replace(VAPO.credit, policy_lambda=Fixed(0.95)))
VALUES = [0.5, 0.6, 0.4, 0.8]


def episode(verdict: Verdict, length: int = 4, prompt: str = "p", finish: str = "stop") -> Episode:
    completion = Completion(tuple(range(2, 2 + length)), (-1.0,) * length, finish, 0)
    return Episode.of_completion(Prompt(prompt, "x", None, (9, 9)), 0, completion, "", verdict)


def collate(episodes: list[Episode], algorithm: Algorithm, *, max_response_tokens: int) -> Batch:
    return pack(episodes, price(episodes, algorithm, max_response_tokens=max_response_tokens))


def credited(episodes: list[Episode], algorithm=LONG, final: float = 0.7) -> Batch:
    batch = collate(episodes, algorithm, max_response_tokens=20)
    values = torch.tensor(VALUES).repeat(len(batch), 5)[:, : batch.width]
    return assign_credit(replace(batch, old_values=values, final_values=torch.full((len(batch),), final)), algorithm)


def test_a_rollout_without_any_token_is_a_batch_without_any_to_learn():
    # every environment failed as it began
    batch = collate([episode(INVALID, length=0), episode(INVALID, length=0)], GRPO, max_response_tokens=20)
    assert batch.mask.tolist() == batch.turn_starts.tolist() == [[False], [False]]
    assert assign_credit(batch, GRPO).advantages.eq(0).all()


def test_the_critic_learns_the_outcome_and_the_policy_its_own_lambda():
    # decoupled: critic target [1,1,1,1], policy advantages with lambda 0.95
    batch = credited([episode(RIGHT)])
    torch.testing.assert_close(batch.returns, torch.ones(1, 4))
    torch.testing.assert_close(batch.advantages, torch.tensor([[0.442475, 0.3605, 0.59, 0.2]]))
    assert batch.lam.tolist() == pytest.approx([0.95])


@pytest.mark.parametrize(
    ("rule", "advantages", "target"),
    [  # a truncated response without reward
        ("zero", [-0.4149, -0.542, -0.36, -0.8], 0.0),
        ("bootstrap", [0.1852625, 0.08975, 0.305, -0.1], 0.7),
        ("drop", [0.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_a_cut_off_response_is_treated_as_the_rule_says(rule: str, advantages: list[float], target: float):
    # pitfalls 19 and 20: bootstrap from the state after the last token, and only where the sampler cut
    batch = credited([episode(WRONG, finish="length")], replace(LONG, truncated=rule))
    torch.testing.assert_close(batch.advantages, torch.tensor([advantages]))
    torch.testing.assert_close(batch.returns, torch.full((1, 4), target))
    assert bool(batch.mask.any()) is (rule != "drop")


def test_bootstrapping_replaces_the_failure_and_never_adds_to_a_verdict():
    # the target of a cut-off response becomes V_next = 0.7, also where wrong is worth -1
    algorithm = replace(LONG, truncated="bootstrap", reward=replace(LONG.reward, wrong=-1.0))
    batch = credited([episode(WRONG, finish="length"), episode(RIGHT, finish="length"), episode(WRONG)], algorithm)
    torch.testing.assert_close(batch.returns[:, 0], torch.tensor([0.7, 1.0, -1.0]))


def test_a_finished_response_never_bootstraps_and_length_alone_does_not_make_it_truncated():
    # pitfall 7: truncation inferred from the padded width; pitfall 20: terminal wins over the limit
    batch = credited(
        [episode(WRONG, length=4), episode(WRONG, length=2, finish="length")], replace(LONG, truncated="bootstrap")
    )
    assert batch.truncated.tolist() == [False, True]
    torch.testing.assert_close(batch.returns[0], torch.zeros(4))
    torch.testing.assert_close(batch.returns[1, :2], torch.full((2,), 0.7))


def test_invalid_verdicts_take_no_part_in_losses_baselines_or_figures():
    # pitfalls 8 and 9: [1, 0, invalid, 0] must give the advantages of [1, 0, 0]
    episodes = [episode(RIGHT), episode(WRONG), episode(INVALID), episode(WRONG)]
    batch = assign_credit(collate(episodes, GRPO, max_response_tokens=20), GRPO)
    root2 = 2**0.5
    assert batch.advantages[:, 0].tolist() == pytest.approx([root2, -1 / root2, 0.0, -1 / root2])
    assert not batch.mask[2].any()
    figures = rollout_figures(batch)
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["reward"] == pytest.approx(1 / 3)
    assert figures["verdict/invalid_ratio"] == 0.25
    cut = collate([episode(RIGHT), episode(INVALID, length=9, finish="length")], GRPO, max_response_tokens=20)
    assert rollout_figures(cut)["completions/clipped_ratio"] == 0.0
    assert rollout_figures(cut)["completions/mean_length"] == 4.0


def test_an_invalid_response_gives_the_critic_no_target_either():
    batch = credited([episode(RIGHT), episode(INVALID)])
    assert not batch.mask[1].any()
    assert (batch.returns[1] == 0).all()
    assert (batch.advantages[1] == 0).all()


def test_dropped_responses_stay_out_of_the_group_baseline():
    algorithm = replace(GRPO, truncated="drop")
    episodes = [episode(RIGHT), episode(WRONG), episode(WRONG, finish="length")]
    batch = assign_credit(collate(episodes, algorithm, max_response_tokens=20), algorithm)
    assert batch.advantages[:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_groups_are_prompts():
    episodes = [episode(RIGHT, prompt="a"), episode(WRONG, prompt="a"), episode(WRONG, prompt="b")]
    algorithm = replace(GRPO, credit=GroupBaseline(std=None))
    batch = assign_credit(collate(episodes, algorithm, max_response_tokens=20), algorithm)
    assert batch.advantages[:, 0].tolist() == pytest.approx([0.5, -0.5, 0.0])


def test_soft_overlong_punishment_lowers_the_outcome_but_not_the_verdict():
    # L_max 20, L_cache 4 (0.2 of it): 18 tokens -> -0.5
    batch = collate([episode(RIGHT, length=18), episode(RIGHT, length=16)], DAPO, max_response_tokens=20)
    assert batch.outcomes.tolist() == [0.5, 1.0]
    assert batch.right.tolist() == [True, True]


def two_turns(verdict: Verdict) -> Episode:
    """Two tokens of the policy, two of the environment, two of the policy."""
    turns = (Turn("policy", (2, 3), (-1.0, -2.0)), Turn("environment", (4, 5)), Turn("policy", (6, 7), (-3.0, -4.0)))
    return Episode(Prompt("p", "x", None, (9, 9)), 0, turns, "", "stop", 0, verdict)


def test_only_the_policys_turns_are_learned_from():
    batch = collate([two_turns(RIGHT), episode(WRONG, length=3)], GRPO, max_response_tokens=20)
    assert batch.tokens[0].tolist() == [9, 9, 2, 3, 4, 5, 6, 7]
    assert batch.response_lengths.tolist() == [6, 3]
    assert batch.mask.int().tolist() == [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert batch.sampled_logp[0].tolist() == [-1.0, -2.0, 0.0, 0.0, -3.0, -4.0]
    with pytest.raises(ValueError, match="environment needs 0 logprobs"):
        Turn("environment", (4, 5), (-1.0, -1.0))


def test_credit_skips_the_environments_turn():
    # with a hole: V = .5 .6 | 9 9 | .4 .8, R = 1, lambda .95: the four tokens have the advantages of one turn
    batch = collate([two_turns(RIGHT)], LONG, max_response_tokens=20)
    values = torch.tensor([[*VALUES[:2], 9.0, 9.0, *VALUES[2:]]])
    batch = assign_credit(replace(batch, old_values=values), LONG)
    torch.testing.assert_close(batch.advantages, torch.tensor([[0.442475, 0.3605, 0.0, 0.0, 0.59, 0.2]]))
    torch.testing.assert_close(batch.returns, torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("rule", [Fixed(0.95), BetweenTurns(0.9)])
def test_values_that_were_never_trained_are_not_read(rule: Fixed | BetweenTurns):
    at_turns = replace(LONG, credit=replace(LONG.credit, value_tokens=TurnStarts(), policy_lambda=rule))
    batch = collate([two_turns(RIGHT)], at_turns, max_response_tokens=20)
    found = []
    for untrained in (0.0, 7.0):
        values = torch.tensor([[0.5, untrained, 9.0, 9.0, 0.4, untrained]])
        found.append(assign_credit(replace(batch, old_values=values), at_turns))
    assert torch.equal(found[0].advantages, found[1].advantages)
    assert torch.equal(found[0].returns, found[1].returns)
    assert found[0].values.tolist() == [[0.5, 0.5, 0.0, 0.0, pytest.approx(0.4), pytest.approx(0.4)]]


def test_what_an_environment_says_first_counts_for_the_limit_wherever_it_stands():
    # L_max 10, L_cache 5: 2 opening tokens in the chat's prompt and 6 after it, as if all 8 came after it
    short = replace(DAPO, reward=replace(DAPO.reward, overlong_cache=0.5))
    opened = replace(two_turns(RIGHT), opened=2)
    assert price([opened], short, max_response_tokens=10).outcomes.tolist() == pytest.approx([0.4])


def test_text_of_the_environment_fills_the_length_limit_but_not_the_adaptive_lambda():
    # L_max 10, L_cache 5: 2 + 2 + 2 tokens -> -(6 - 5) / 5
    short = replace(DAPO, reward=replace(DAPO.reward, overlong_cache=0.5))
    assert price([two_turns(RIGHT)], short, max_response_tokens=10).outcomes.tolist() == pytest.approx([0.8])
    adaptive = replace(VAPO, credit=replace(VAPO.credit, policy_lambda=LengthAdaptive(alpha=0.5)))
    assert credited([two_turns(RIGHT)], adaptive).lam.tolist() == pytest.approx([1 - 1 / (0.5 * 4)])


def test_whitening_changes_the_advantages_and_leaves_the_critics_targets():
    plain, white = (
        credited([episode(RIGHT)]),
        credited([episode(RIGHT)], replace(LONG, credit=replace(LONG.credit, whiten=True))),
    )
    assert torch.equal(plain.returns, white.returns)
    assert float(white.advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white.advantages.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_value_figures_compare_with_what_happened_by_position():
    batch = credited([episode(RIGHT, length=10), episode(WRONG, length=10)])
    values = torch.stack([torch.linspace(0.5, 1.0, 10), torch.linspace(0.5, 0.0, 10)])
    figures = scoring_figures(replace(batch, old_values=values, values=values), LONG)
    assert figures["value/bias"] == pytest.approx(0.0, abs=1e-6)
    assert figures["value/explained_variance_by_position/0"] == pytest.approx(0.0, abs=1e-6)
    assert figures["value/explained_variance_by_position/9"] == pytest.approx(1.0, abs=1e-6)
    # y = (1, 0) at each of 10 places, errors (1-k/9)/2 both ways: EV = 1 - mean((1-k/9)^2) = 1 - 19/54
    assert figures["value/explained_variance"] == pytest.approx(1 - 19 / 54, abs=1e-5)
