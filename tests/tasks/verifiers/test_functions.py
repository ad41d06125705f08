"""The signatures a verifier may have and what its results mean."""

from __future__ import annotations

import pytest

from vapo.errors import ConfigError
from vapo.tasks.verifiers.functions import adapted, to_verdict, verify_exact
from vapo.tasks.verifiers.graded import FirstScores, graded_score
from vapo.types import Prompt, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "2+2?"},), "4", columns={"solution": "four", "level": 3})


def test_a_function_gets_what_it_names():
    assert adapted(lambda response, answer: response == answer)(PROMPT, "4").right
    assert adapted(lambda level, response: level == 3 and response == "x")(PROMPT, "x").right
    assert adapted(lambda prompt, response: prompt.answer == response)(PROMPT, "4").right
    assert adapted(lambda response, **rest: sorted(rest) == ["answer", "level", "prompt", "solution"])(PROMPT, "").right


def test_two_unnamed_things_are_prompt_and_response():
    assert adapted(lambda p, r: Verdict("right") if p.answer == r else Verdict("wrong"))(PROMPT, "4").right


def test_a_name_nobody_knows_is_invalid_and_told():
    verdict = adapted(lambda response, gold: True)(PROMPT, "4")
    assert verdict == Verdict(
        "invalid", "the verifier asks for 'gold'; there are: answer, level, prompt, response, solution"
    )


def test_names_nobody_knows_are_not_filled_by_position():
    verdict = adapted(lambda output, gold: output == gold)(PROMPT, "4")
    assert verdict.reason.startswith("the verifier asks for 'gold'")


def test_trls_functions_get_the_columns_of_the_data_set_as_they_are():
    columns = {"prompt": "How many?", "answer": "3+4\n#### 7"}
    row = Prompt("p", ({"role": "user", "content": "How many?"},), "7", columns=columns)

    def gsm8k_reward(prompts, completions, answer, **kwargs):
        assert prompts == ["How many?"]  # text in the data set, text for the function
        return [float(c.strip() == a.split("####")[1].strip()) for c, a in zip(completions, answer, strict=True)]

    assert adapted(gsm8k_reward)(row, "7").right
    assert adapted(gsm8k_reward)(row, "8").status == "wrong"


def test_a_reward_function_of_trl_works_unchanged():
    def accuracy_reward(completions, solution, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if content == gold else 0.0 for content, gold in zip(contents, solution, strict=True)]

    async def slow_reward(prompts, completions, **kwargs):
        return [1.0 if p[-1]["content"] == "2+2?" else None for p in prompts]

    assert adapted(accuracy_reward)(PROMPT, "four").right
    assert adapted(accuracy_reward)(PROMPT, "five") == Verdict("wrong", "score 0")
    assert adapted(slow_reward)(PROMPT, "").right
    plain = Prompt("p", "2+2?", "4")
    assert adapted(lambda prompts, completions, answer: [float(completions == answer)])(plain, "4").right


@pytest.mark.parametrize(
    ("result", "status"),
    [(True, "right"), (False, "wrong"), (1.0, "right"), (0.98, "wrong"), ([1], "right"), (None, "invalid"),
     (float("nan"), "invalid"), (float("inf"), "invalid"), (-float("inf"), "invalid"), (0.3, "wrong"),
     (-1, "wrong"), ("right", "invalid"), ([1, 0], "invalid"), (Verdict("invalid", "x"), "invalid")],
)  # fmt: skip
def test_what_a_result_means(result, status):
    assert to_verdict(result).status == status


def test_a_graded_score_is_told_from_0_and_one_without_end_has_its_reason():
    assert [graded_score(to_verdict(score)) for score in (0.3, -1, 0, False, 1, 0.995)] == ["0.3", "-1", *[None] * 4]
    assert graded_score(to_verdict(0.995, right_at=1.0)) == "0.995"
    assert to_verdict(float("inf")) == Verdict("invalid", "the verifier gave inf, not a finite score")
    assert to_verdict(float("nan")) == Verdict("invalid", "the verifier gave nan, not a finite score")


def test_the_first_scores_must_hold_a_0_or_one_that_is_right():
    scores = FirstScores("mine.py:judge", right_at=0.99)
    scores.check([to_verdict(0.3)] * 5)
    scores.check([to_verdict(None)] * 9)  # no score at all
    with pytest.raises(ConfigError, match=r"mine\.py:judge gave none of the first 8 .*the first was 0\.3.*right_at"):
        scores.check([to_verdict(-0.5)] * 3)
    for plain in (0, False, True, 1.0, Verdict("wrong", "another value")):
        scores = FirstScores("mine.py:judge", right_at=0.99)
        scores.check([to_verdict(0.3), to_verdict(plain)])
        scores.check([to_verdict(0.3)] * 20)


def test_exact_compares_letter_by_letter():
    assert verify_exact("so <answer>F+1 K-1</answer>", "F+1 K-1")
    assert not verify_exact("so <answer>F+1 K-2</answer>", "F+1 K-1")
    assert not verify_exact("F+1 K-1", "F+1 K-1")
