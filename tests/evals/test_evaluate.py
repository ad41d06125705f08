"""Evaluation: the seeds of samples, and the scores computed from verdicts."""

from __future__ import annotations

from collections import Counter

import pytest

import toys
from vapo.evals.evaluate import sample_and_judge, score_episodes
from vapo.models.tokens import render
from vapo.rollout.collect import judge_episodes, sample_episodes
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.full_task import FullTask
from vapo.types import Completion, Decoding, Episode, Prompt, Verdict, sample_seed, stable_hash

HOW = Decoding(max_tokens=8, stop_token_ids=(1,))


def episode(prompt: str, sample_number: int, status: str, length: int = 4, finish: str = "stop") -> Episode:
    completion = Completion((2,) * length, (-1.0,) * length, finish, 0)
    return Episode.of_completion(Prompt(prompt, "x"), sample_number, completion, status, Verdict(status))


def test_scores_of_two_prompts_with_four_samples_match_hand_computed_values():
    # a: 2 of 4 right; b: 1 of 3 valid. avg = (1/2 + 1/3)/2; pass@2: a 1 - C(2,2)/C(4,2) = 5/6, b 1 - 1/3 = 2/3
    verdicts = {"a": ["right", "wrong", "right", "wrong"], "b": ["wrong", "invalid", "right", "wrong"]}
    episodes = [episode(p, j, status) for p, row in verdicts.items() for j, status in enumerate(row)]
    result = score_episodes(episodes, k=4)
    assert result.avg == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result.pass_at[2] == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert result.pass_at[4] == pytest.approx(1.0)  # b has 3 valid samples, so its pass@4 is nan; a's is 1
    assert result.invalid_ratio == 1 / 8
    assert [(row["right"], row["valid"]) for row in result.per_prompt] == [(2, 4), (1, 3)]
    assert result.maj is None
    assert result.low <= result.avg <= result.high


def test_maj_is_computed_if_the_task_has_a_final_answer():
    episodes = [episode("a", j, s) for j, s in enumerate(["right", "wrong", "right"])]
    assert score_episodes(episodes, k=3, answer_of=lambda text: text).maj == 1.0


def test_mean_length_and_clipped_ratio_come_from_the_sampler():
    result = score_episodes([episode("a", 0, "right", 3), episode("a", 1, "wrong", 5, "length")], k=2)
    assert (result.mean_length, result.clipped_ratio) == (4.0, 0.5)


def test_equal_policies_draw_equal_samples_in_any_order_of_prompts():
    task, words, engine = FullTask.of(toys.EchoTask()), toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompts = [render(words, p) for p in task.heldout]
    decode = lambda ids: words.decode(list(ids))  # noqa: E731
    whole = score_episodes(sample_and_judge(engine, prompts, task, k=4, how=HOW, decode=decode, seed=3), k=4)
    again = score_episodes(sample_and_judge(engine, prompts[::-1], task, k=4, how=HOW, decode=decode, seed=3), k=4)
    assert whole.per_prompt == again.per_prompt[::-1]
    other = score_episodes(sample_and_judge(engine, prompts, task, k=4, how=HOW, decode=decode, seed=4), k=4)
    assert other.per_prompt != whole.per_prompt


def test_a_repeated_prompt_continues_the_sample_numbers():
    words, engine = toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompt = render(words, Prompt("p", "3 x"))
    drawn: Counter[str] = Counter()
    options = {"per_prompt": 2, "how": HOW, "decode": str, "seed": 0, "step": 5}
    first = sample_episodes(engine, [prompt], drawn=drawn, **options)
    second = sample_episodes(engine, [prompt], drawn=drawn, **options)
    together = sample_episodes(engine, [prompt, prompt], **options)
    assert [e.sample for e in first + second] == [0, 1, 2, 3]
    assert [(e.turns, e.finish_reason) for e in first + second] == [(e.turns, e.finish_reason) for e in together]


def test_the_stop_token_is_in_the_completion_and_not_in_the_text():
    words, engine = toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompt = render(words, Prompt("p", "3 x"))
    decode = lambda ids: words.decode(list(ids), skip_special_tokens=False)  # noqa: E731
    episodes = sample_episodes(engine, [prompt], per_prompt=64, how=HOW, decode=decode, seed=0, step=0)
    stopped = [e for e in episodes if not e.truncated]
    assert stopped
    for e in stopped:
        assert e.token_ids[-1] == 1
        assert "<eos>" not in e.response


def test_a_verifier_that_raises_gives_an_invalid_verdict():
    judged = judge_episodes([episode("a", 0, "wrong")], FullTask("raises", [], [], 8, lambda prompt, text: {}[text]))
    assert judged[0].verdict.status == "invalid"
    assert "KeyError" in judged[0].verdict.reason


def test_seeds_do_not_depend_on_process_or_release():
    # a fixed value: a change here changes the samples of every run
    assert stable_hash("a", 1) == 4742018630964328543
    assert sample_seed(0, 3, "p", 2) == stable_hash("sample", 0, 3, "p", 2)
    assert len({sample_seed(0, s, p, j) for s in range(4) for p in "ab" for j in range(4)}) == 32


def test_maj_is_none_if_no_response_has_an_answer():
    # a user's verifier may accept responses without a marked answer, for which maj@k would be 0
    episodes = [
        Episode.of_completion(Prompt("p", "?", "1"), i, Completion((1,), (0.0,), "stop", 0), "7", Verdict("right"))
        for i in range(2)
    ]
    result = score_episodes(episodes, k=2, answer_of=lambda response: None)
    assert result.avg == 1.0
    assert result.maj is None
    assert "maj" not in result.intervals


@pytest.mark.parametrize(
    ("rights", "marked", "maj"),
    [
        ([True, True, True, False], [0, 1], 1.0),  # two of three right ones have an answer
        ([True, True, False, False], [0], None),  # one of two
        ([True, True, True, False], [3], None),  # a mark in a wrong response only
        ([False, False, False, False], [2], 0.0),  # none is right
        ([False, False, False, False], [], None),
    ],
)
def test_maj_is_none_unless_most_right_responses_have_an_answer(rights, marked, maj):
    episodes = [
        Episode.of_completion(
            Prompt("p", "?", "1"),
            i,
            Completion((1,), (0.0,), "stop", 0),
            f"{i}",
            Verdict("right" if right else "wrong"),
        )
        for i, right in enumerate(rights)
    ]
    result = score_episodes(episodes, k=4, answer_of=lambda text: "7" if int(text) in marked else None)
    assert result.maj == maj
