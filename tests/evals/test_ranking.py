"""A critic that picks among samples: counted by brute force, and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import LlamaForTokenClassification

import toys
from vapo.errors import ModelError
from vapo.evals.evaluate import score_episodes
from vapo.evals.ranking import best_of_n, last_values, weighted_vote
from vapo.models.networks import Critic, Sequences
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


def test_best_of_all_with_equal_values_is_the_share_of_right_ones():
    assert best_of_n([[1, 0, 0, 1]], [[0.5] * 4], 4)[0] == pytest.approx(0.5)
    # two share the top, one of them right
    assert best_of_n([[1, 0, 1]], [[0.9, 0.9, 0.1]], 3)[0] == pytest.approx(0.5)


def test_best_of_one_is_the_average_and_a_perfect_critic_finds_what_there_is():
    rng = np.random.default_rng(0)
    correct = (rng.random((20, 8)) < 0.3).astype(float)
    np.testing.assert_allclose(best_of_n(correct, rng.random((20, 8)), 1), correct.mean(1))
    np.testing.assert_allclose(best_of_n(correct, correct, 8), correct.max(1))
    np.testing.assert_allclose(best_of_n(correct, -correct, 8), correct.min(1))


def test_invalid_samples_are_not_there_to_be_picked():
    assert best_of_n([[0, NAN, 1]], [[0.1, 0.9, 0.5]], 2)[0] == 1.0
    assert np.isnan(best_of_n([[0, NAN, NAN]], [[0.1, 0.9, 0.5]], 2)[0])


def test_a_weighted_vote_counted_by_hand():
    # "5" has .2 + .3, "7" has .6: the majority says 5, the critic 7
    answers, correct = [["5", "5", "7"]], [[0, 0, 1]]
    assert weighted_vote(answers, [[0.2, 0.3, 0.6]], correct)[0] == 1.0
    assert weighted_vote(answers, [[0.2, 0.3, 0.4]], correct)[0] == 0.0
    # a critic of rewards -1 and 1: moved up by 2, "5" has 1 + 0, "7" has 1.5
    assert weighted_vote(answers, [[-1.0, -2.0, -0.5]], correct)[0] == 1.0
    assert weighted_vote(answers, [[0.0, 0.0, 0.0]], correct)[0] == 0.0  # nothing to tell them by: the majority
    assert weighted_vote([["5", "7"]], [[0.3, 0.3]], [[0, 1]])[0] == 0.5  # a tie
    assert weighted_vote([[None, None]], [[0.3, 0.3]], [[1, 1]])[0] == 0.0  # nothing to vote on
    assert np.isnan(weighted_vote([["5"]], [[0.3]], [[NAN]])[0])


def test_the_value_read_is_the_one_before_the_last_token_whatever_the_batches():
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
    with torch.no_grad():
        critic.model.score.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        last_values(critic, episodes, tokens_at_once=12)


def test_an_evaluation_tells_what_the_critic_adds():
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
    assert score_episodes(episodes, k=3, values=values, ranks=["best-of-n"]).ranking.keys() == {"best-of-n"}
