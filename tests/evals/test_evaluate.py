"""An evaluation: who is sampled with which seed, and how verdicts become scores."""

from __future__ import annotations

from collections import Counter

import pytest

import toys
from vapo.evals.evaluate import sample_and_judge, score_episodes
from vapo.models.loading import render
from vapo.rollout.collect import judge_episodes, sample_episodes
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.full_task import FullTask
from vapo.types import Completion, Decoding, Episode, Prompt, Verdict, sample_seed, stable_hash

HOW = Decoding(max_tokens=8, stop_token_ids=(1,))


def episode(prompt: str, sample_number: int, status: str, length: int = 4, finish: str = "stop") -> Episode:
    completion = Completion((2,) * length, (-1.0,) * length, finish, 0)
    return Episode.of_completion(Prompt(prompt, "x"), sample_number, completion, status, Verdict(status))


def test_scores_of_two_prompts_with_four_samples_each_counted_by_hand():
    # a: 2 of 4 right; b: 1 of 3 valid. avg = (1/2 + 1/3)/2; pass@2: a 1 - C(2,2)/C(4,2) = 5/6, b 1 - 1/3 = 2/3
    verdicts = {"a": ["right", "wrong", "right", "wrong"], "b": ["wrong", "invalid", "right", "wrong"]}
    episodes = [episode(p, j, status) for p, row in verdicts.items() for j, status in enumerate(row)]
    result = score_episodes(episodes, k=4)
    assert result.avg == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result.pass_at[2] == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert result.pass_at[4] == pytest.approx(1.0)  # b has 3 valid samples: it cannot tell, a is certain
    assert result.invalid_ratio == 1 / 8
    assert [(row["right"], row["valid"]) for row in result.per_prompt] == [(2, 4), (1, 3)]
    assert result.maj is None
    assert result.low <= result.avg <= result.high


def test_majority_votes_where_the_task_has_a_final_answer():
    episodes = [episode("a", j, s) for j, s in enumerate(["right", "wrong", "right"])]
    assert score_episodes(episodes, k=3, answer_of=lambda text: text).maj == 1.0


def test_lengths_and_cuts_are_the_samplers_own():
    result = score_episodes([episode("a", 0, "right", 3), episode("a", 1, "wrong", 5, "length")], k=2)
    assert (result.mean_length, result.clipped_ratio) == (4.0, 0.5)


def test_equal_policies_meet_the_same_luck_and_a_sample_does_not_depend_on_its_company():
    task, words, engine = FullTask.of(toys.EchoTask()), toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompts = [render(words, p) for p in task.heldout]
    decode = lambda ids: words.decode(list(ids))  # noqa: E731
    whole = score_episodes(sample_and_judge(engine, prompts, task, k=4, how=HOW, decode=decode, seed=3), k=4)
    again = score_episodes(sample_and_judge(engine, prompts[::-1], task, k=4, how=HOW, decode=decode, seed=3), k=4)
    assert whole.per_prompt == again.per_prompt[::-1]
    other = score_episodes(sample_and_judge(engine, prompts, task, k=4, how=HOW, decode=decode, seed=4), k=4)
    assert other.per_prompt != whole.per_prompt


def test_samples_of_a_prompt_that_comes_twice_go_on_counting():
    words, engine = toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompt = render(words, Prompt("p", "3 x"))
    drawn: Counter[str] = Counter()
    ask = {"per_prompt": 2, "how": HOW, "decode": str, "seed": 0, "step": 5}
    first = sample_episodes(engine, [prompt], drawn=drawn, **ask)
    second = sample_episodes(engine, [prompt], drawn=drawn, **ask)
    together = sample_episodes(engine, [prompt, prompt], **ask)
    assert [e.sample for e in first + second] == [0, 1, 2, 3]
    assert [(e.turns, e.finish_reason) for e in first + second] == [(e.turns, e.finish_reason) for e in together]


def test_the_stop_token_is_part_of_the_completion_and_not_of_the_text():
    words, engine = toys.tokenizer(), TorchEngine(toys.tiny_llama(), slots=16)
    prompt = render(words, Prompt("p", "3 x"))
    decode = lambda ids: words.decode(list(ids), skip_special_tokens=False)  # noqa: E731
    episodes = sample_episodes(engine, [prompt], per_prompt=64, how=HOW, decode=decode, seed=0, step=0)
    stopped = [e for e in episodes if not e.truncated]
    assert stopped
    for e in stopped:
        assert e.token_ids[-1] == 1
        assert "<eos>" not in e.response


def test_a_verifier_that_raises_could_not_tell():
    judged = judge_episodes([episode("a", 0, "wrong")], FullTask("raises", [], [], 8, lambda prompt, text: {}[text]))
    assert judged[0].verdict.status == "invalid"
    assert "KeyError" in judged[0].verdict.reason


def test_seeds_are_the_same_in_every_process_and_release():
    # written down once: a change here changes every run's samples
    assert stable_hash("a", 1) == 4742018630964328543
    assert sample_seed(0, 3, "p", 2) == stable_hash("sample", 0, 3, "p", 2)
    assert len({sample_seed(0, s, p, j) for s in range(4) for p in "ab" for j in range(4)}) == 32


def test_where_no_response_holds_an_answer_there_is_no_vote():
    # a verifier of one's own may accept responses that mark nothing: maj@k would say 0 of them
    episodes = [
        Episode.of_completion(Prompt("p", "?", "1"), i, Completion((1,), (0.0,), "stop", 0), "7", Verdict("right"))
        for i in range(2)
    ]
    result = score_episodes(episodes, k=2, answer_of=lambda response: None)
    assert result.avg == 1.0
    assert result.maj is None
    assert "maj" not in result.intervals
