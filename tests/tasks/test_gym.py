"""Tasks on reasoning-gym: lazy and disjoint prompts, and verdicts from scorers that may be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from vapo.errors import DataError
from vapo.tasks.catalog import find_task
from vapo.tasks.gym import Gym, dataset_names, gym_answer, scored_verdict
from vapo.types import Prompt


def gym(name: str, **options: Any) -> Gym:
    task = find_task(f"reasoning-gym/{name}", {"verifier_workers": 1, "heldout": 8, "size": 40, **options})
    assert isinstance(task, Gym)
    return task


def question(prompt: Prompt) -> str:
    return prompt.text[-1]["content"]


def test_items_are_reproducible_and_no_training_question_is_held_out():
    easy = {"config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    one, other = gym("chain_sum", **easy), gym("chain_sum", **easy)
    one.close()
    other.close()
    assert list(one.train) == list(other.train)
    assert not {question(p) for p in one.train} & {question(p) for p in one.heldout}
    assert one.heldout[0].id == "reasoning-gym/chain_sum/40"


def test_too_few_different_questions_are_refused():
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = gym("chain_sum", size=3, heldout=3000, config=small)
    task.close()
    with pytest.raises(DataError, match="too few different questions"):
        list(task.train)


@pytest.mark.parametrize(
    "name", ["chain_sum", "countdown", "spell_backward", "prime_factorization", "game_of_life_halting"]
)
def test_gold_answers_are_right_and_other_text_is_wrong(name):
    task = gym(name)
    try:
        prompts = [task.heldout[i] for i in range(8)]
        gold = task.verify_all([(p, f"I think <answer>{p.answer['answer']}</answer>") for p in prompts])
        assert all(verdict.right for verdict in gold)
        for text in (
            "<answer>I do not know</answer>",
            "<answer></answer>",
            "",
            "<answer>the answer is 5, 6 or 7</answer>",
        ):
            assert not any(v.right for v in task.verify_all([(p, text) for p in prompts])), text
        assert all(
            v.status == "wrong" for v in task.verify_all([(p, "<answer>I do not know</answer>") for p in prompts])
        )
    finally:
        task.close()


def test_a_scorer_that_refuses_its_gold_answers_gives_a_note():
    task = gym("rush_hour")
    task.close()
    assert task.notes == ["reasoning-gym/rush_hour: its scorer refuses 8 of 8 of its own answers"]


class Scorer:
    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def score_answer(self, answer: str, item: dict[str, Any]) -> float:
        return self.scores[answer]


def test_a_partial_score_is_wrong_and_a_scorer_that_raises_is_tested_on_the_gold_answer():
    item = {"answer": "4"}
    assert scored_verdict(Scorer({"4": 1.0, "I do not know": 0.0}), item, "4").right
    assert scored_verdict(Scorer({"4": 1.0, "the 4": 0.5}), item, "the 4").status == "wrong"
    assert scored_verdict(Scorer({"4": 1.0}), item, "four").reason == "unreadable for the scorer: KeyError"
    assert scored_verdict(Scorer({}), item, "four").status == "invalid"
    assert scored_verdict(Scorer({"4": 1.0, "44": 0.995}), item, "44").status == "wrong"
    assert scored_verdict(Scorer({"4": 1.0, "5": float("nan")}), item, "5").status == "wrong"
    assert scored_verdict(Scorer({"4": 1.0, "5": float("nan"), "I do not know": 1.0}), item, "5").score is None
    generous = Scorer({"4": 1.0, "5": 1.0, "I do not know": 1.0})
    assert scored_verdict(generous, item, "4").right
    assert scored_verdict(generous, item, "5").status == "wrong"


def test_the_last_answer_tags_are_read():
    assert gym_answer("<answer>1</answer> no <answer> 2 </answer>") == "2"
    assert gym_answer("\\boxed{3}") == "3"
    assert gym_answer("3") is None


def test_dataset_names_lists_all_data_sets_except_composite():
    assert len(dataset_names()) > 100
    assert "reasoning-gym/countdown" in dataset_names()
    assert "reasoning-gym/composite" not in dataset_names()
