"""Picking among samples by the critic's values, compared with brute force and hand-computed values."""

from __future__ import annotations

import doctest
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification, LlamaForTokenClassification

import toys
from vapo.errors import ModelError
from vapo.evals import token_blocks as blocks
from vapo.evals.evaluate import score_episodes
from vapo.evals.ranking import best_of_n, last_values, share_in_order, weighted_vote
from vapo.evals.token_blocks import token_blocks
from vapo.models.critic_notes import set_value_at, value_at
from vapo.models.loading import load_critic
from vapo.models.networks import Critic, Sequences
from vapo.models.saving import save_model
from vapo.session import lifecycle as runs
from vapo.types import Completion, Episode, Prompt, Verdict

NAN = float("nan")


def by_brute_force(correct: list[float], values: list[float], n: int) -> float:
    """The mean over all subsets of n samples of the correctness of the one with the highest value."""
    scores = []
    for chosen in combinations(range(len(correct)), n):
        top = max(values[i] for i in chosen)
        scores.append(np.mean([correct[i] for i in chosen if values[i] == top]))
    return float(np.mean(scores))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    correct, values = [1, 0, 1, 0, 0, 1], [0.2, 0.9, 0.7, 0.1, 0.5, 0.3]
    assert best_of_n([correct], [values], n)[0] == pytest.approx(by_brute_force(correct, values, n))


def test_best_of_n_of_samples_with_equal_values_is_their_share_of_right_ones():
    assert best_of_n([[1, 0, 0, 1]], [[0.5] * 4], 4)[0] == pytest.approx(0.5)
    # two share the top, one of them right
    assert best_of_n([[1, 0, 1]], [[0.9, 0.9, 0.1]], 3)[0] == pytest.approx(0.5)


def test_best_of_one_is_the_average_and_a_perfect_critic_picks_a_right_sample():
    rng = np.random.default_rng(0)
    correct = (rng.random((20, 8)) < 0.3).astype(float)
    np.testing.assert_allclose(best_of_n(correct, rng.random((20, 8)), 1), correct.mean(1))
    np.testing.assert_allclose(best_of_n(correct, correct, 8), correct.max(1))
    np.testing.assert_allclose(best_of_n(correct, -correct, 8), correct.min(1))


def test_invalid_samples_are_never_picked():
    assert best_of_n([[0, NAN, 1]], [[0.1, 0.9, 0.5]], 2)[0] == 1.0
    assert np.isnan(best_of_n([[0, NAN, NAN]], [[0.1, 0.9, 0.5]], 2)[0])


def test_weighted_votes_match_hand_computed_values():
    # "5" has .2 + .3, "7" has .6: the majority says 5, the critic 7
    answers, correct = [["5", "5", "7"]], [[0, 0, 1]]
    assert weighted_vote(answers, [[0.2, 0.3, 0.6]], correct)[0] == 1.0
    assert weighted_vote(answers, [[0.2, 0.3, 0.4]], correct)[0] == 0.0
    # negative values are shifted by 2, "5" has 1 + 0, "7" has 1.5
    assert weighted_vote(answers, [[-1.0, -2.0, -0.5]], correct)[0] == 1.0
    assert weighted_vote(answers, [[0.0, 0.0, 0.0]], correct)[0] == 0.0  # equal values: the majority
    assert weighted_vote([["5", "7"]], [[0.3, 0.3]], [[0, 1]])[0] == 0.5  # a tie
    assert weighted_vote([[None, None]], [[0.3, 0.3]], [[1, 1]])[0] == 0.0  # no answers
    assert np.isnan(weighted_vote([["5"]], [[0.3]], [[NAN]])[0])


def test_last_values_are_those_before_the_last_token_for_any_batch_size():
    torch.manual_seed(0)
    config = toys.tiny_llama().config
    config.num_labels = 1
    critic = Critic(LlamaForTokenClassification(config).eval(), "padded")
    lengths = [3, 1, 7, 5]
    episodes = [
        Episode.of_completion(
            Prompt(f"p{i}", "x", token_ids=(2, 3, 4)), 0, Completion(tuple(range(2, 2 + n)), (0.0,) * n, "stop", 0), ""
        )
        for i, n in enumerate(lengths)
    ]
    one_by_one = []
    for episode, n in zip(episodes, lengths, strict=True):
        tokens = torch.tensor([*episode.prompt.token_ids, *episode.token_ids])
        with torch.no_grad():
            one_by_one.append(float(critic.values(Sequences((tokens,), (n,)), n)[0, -1]))
    for budget in (1, 12, 1000):
        np.testing.assert_allclose(last_values(critic, episodes, tokens_at_once=budget), one_by_one, atol=1e-6)
    assert len(set(np.round(one_by_one, 5))) == 4
    # episodes whose environment failed as it began come first, and fill a block
    failed = [Episode(Prompt("q", "x", token_ids=(2, 3, 4)), 0, (), "", "stop", 0)] * 3
    found = last_values(critic, [*failed, *episodes], tokens_at_once=9)
    np.testing.assert_allclose(found[3:], one_by_one, atol=1e-6)
    with torch.no_grad():
        critic.model.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        last_values(critic, episodes, tokens_at_once=12)


def test_ranking_has_the_differences_to_majority_vote_and_single_sample():
    verdicts, answers = [1, 1, 0, 0, 0, 1], ["5", "5", "6", "6", "6", "5"]
    episodes = [
        Episode.of_completion(Prompt(f"p{i // 3}", "x"), i % 3, Completion((2,), (0.0,), "stop", 0), answers[i],
                Verdict("right" if v else "wrong"))
        for i, v in enumerate(verdicts)
    ]  # fmt: skip
    values = [0.9, 0.8, 0.1, 0.2, 0.1, 0.9]
    result = score_episodes(episodes, k=3, answer_of=lambda text: text, values=values)
    assert (result.avg, result.maj) == (0.5, 0.5)
    best, vote = result.ranking["best-of-n"], result.ranking["weighted-vote"]
    assert (best["score"], best["over_maj"][0], best["over_avg"][0]) == (1.0, 0.5, 0.5)
    assert best["best_of"] == pytest.approx({1: 0.5, 2: (1 + 2 / 3) / 2, 3: 1.0})
    assert vote["score"] == 1.0
    assert result.intervals["maj"] == (0.0, 1.0)
    assert result.in_order == pytest.approx((1.0, 0.025**0.5, 1.0))  # both of two problems, which is little
    assert score_episodes(episodes, k=3, values=values, ranks=["best-of-n"]).ranking.keys() == {"best-of-n"}


def test_a_critic_ranks_by_the_value_before_the_last_token_and_a_reward_model_by_that_after_it(tmp_path: Path):
    # the value of a state is +1 after token 5, -1 after token 6: of (5, 6) and (6, 5) the first is better before its
    # last token, the second after it
    config = toys.tiny_llama(num_hidden_layers=1).config
    config.num_labels = 1
    network = LlamaForTokenClassification(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.model.norm.weight.fill_(1.0)
        network.model.embed_tokens.weight[5, 0] = 1.0
        network.model.embed_tokens.weight[6, 0] = -1.0
        network.score.weight[0, 0] = 1.0
    network.config.id2label = {0: "value"}
    prompt = Prompt("p", "x", token_ids=(2, 3))
    episodes = [
        Episode.of_completion(prompt, i, Completion(tokens, (0.0, 0.0), "stop", 0), "")
        for i, tokens in enumerate([(5, 6), (6, 5)])
    ]

    def best(folder: Path) -> int:
        loaded, _ = load_critic(folder)
        critic = Critic(loaded, "padded", value_at=value_at(loaded))
        return int(np.argmax(last_values(critic, episodes, tokens_at_once=100)))

    save_model(network, None, tmp_path / "old")  # without a record: a critic of tokens
    set_value_at(network, "end")
    save_model(network, None, tmp_path / "pretrained-at-the-end")
    set_value_at(network, "tokens")
    save_model(network, None, tmp_path / "critic")
    reward_model = LlamaForSequenceClassification(config).eval()
    reward_model.load_state_dict(network.state_dict(), strict=False)
    reward_model.config.id2label = {0: "LABEL_0"}
    save_model(reward_model, None, tmp_path / "reward-model")
    chosen = {folder.name: best(folder) for folder in tmp_path.iterdir()}
    assert chosen == {"old": 0, "critic": 0, "pretrained-at-the-end": 1, "reward-model": 1}


def test_the_share_of_pairs_in_order_counts_pairs_within_a_problem():
    # problem 1: right .9 and .2, wrong .5 -> 1 of 2; problem 2: a tie -> 1/2 of 1; problem 3 has no wrong one
    correct = [[1, 1, 0], [1, 0, np.nan], [1, 1, 1]]
    values = [[0.9, 0.2, 0.5], [0.3, 0.3, 9.0], [0.1, 0.2, 0.3]]
    share, low, high = share_in_order(correct, values)
    assert share == pytest.approx(1.5 / 3)
    # two problems with equal shares: 1 - .025^(1/2) = .842 of all may have another
    assert (low, high) == pytest.approx((0.5 - 0.84189 / 2, 0.5 + 0.84189 / 2), abs=1e-5)
    assert np.isnan(share_in_order([[1, 1]], [[0.1, 0.2]])).all()


def test_the_share_of_pairs_in_order_of_one_problem_has_no_interval():
    share, low, high = share_in_order([[1, 0, 0], [0, 0, 0]], [[0.5, 0.2, 0.7], [0.1, 0.2, 0.3]])
    assert share == pytest.approx(0.5)
    assert np.isnan([low, high]).all()


def test_the_interval_of_a_ranking_by_chance_holds_one_half_and_that_of_a_good_one_does_not():
    draw = np.random.default_rng(0)
    correct = draw.integers(2, size=(40, 8)).astype(float)
    share, low, high = share_in_order(correct, draw.random((40, 8)))
    assert low < 0.5 < high
    assert low < share < high
    assert share_in_order(correct, correct + draw.normal(size=(40, 8)))[1] > 0.6


@pytest.mark.parametrize("at", ["end", "tokens"])
def test_a_published_critic_records_whether_it_was_trained_on_tokens_or_at_the_end(tmp_path: Path, at: str):
    base = toys.toy_base(tmp_path / "base")
    first = {"trainer": {"steps": 0, "pretraining_at": at, "pretraining_steps": 1}}
    runs.finish(toys.toy_run(base, tmp_path / "first", first), report=False)
    network, origin = load_critic(tmp_path / "first" / "critic")
    assert (value_at(network), origin.split(" in ")[0]) == (at, "saved critic LlamaForTokenClassification")
    assert value_at(load_critic(next((tmp_path / "first" / "checkpoints").iterdir()) / "critic")[0]) == at
    # a run that starts from a reward model trains values of tokens
    second = {"model": {"critic": str(tmp_path / "first" / "critic")}, "trainer": {"steps": 1, "pretraining_steps": 0}}
    run = toys.toy_run(base, tmp_path / "second", second)
    assert run.critic is not None
    run.critic.publish(tmp_path / "critic")
    run.folder.close()
    assert value_at(load_critic(tmp_path / "critic")[0]) == "tokens"


def test_rows_are_read_shortest_first_in_blocks_that_hold_every_row_once():
    assert doctest.testmod(blocks).attempted > 0
    assert doctest.testmod(blocks).failed == 0
    lengths = [7, 3, 3, 12, 1, 5, 5]
    found = list(token_blocks(lengths, 10))
    assert sorted(row for block in found for row in block) == list(range(7))
    assert all(len(block) == 1 or len(block) * max(lengths[row] for row in block) <= 10 for block in found)
    assert list(token_blocks([], 10)) == []
