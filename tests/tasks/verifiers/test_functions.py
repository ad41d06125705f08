"""Signatures of verifier functions, and the verdicts for their results."""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace
from typing import Any

import pytest

from vapo.errors import ConfigError
from vapo.tasks.verifiers.functions import OneLoop, adapted, import_function, to_verdict, verify_exact
from vapo.tasks.verifiers.graded import FirstScores, graded_score
from vapo.types import Prompt, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "2+2?"},), "4", columns={"solution": "four", "level": 3})


def test_a_function_gets_the_arguments_that_it_names():
    assert adapted(lambda response, answer: response == answer)(PROMPT, "4").right
    assert adapted(lambda level, response: level == 3 and response == "x")(PROMPT, "x").right
    assert adapted(lambda prompt, response: prompt.answer == response)(PROMPT, "4").right
    assert adapted(lambda response, **rest: sorted(rest) == ["answer", "level", "prompt", "solution"])(PROMPT, "").right


def test_two_positional_parameters_are_prompt_and_response():
    assert adapted(lambda p, r: Verdict("right") if p.answer == r else Verdict("wrong"))(PROMPT, "4").right


def test_an_unknown_parameter_name_makes_the_verdict_invalid():
    verdict = adapted(lambda response, gold: True)(PROMPT, "4")
    assert verdict == Verdict(
        "invalid", "the verifier asks for 'gold'; there are: answer, level, prompt, response, solution"
    )


def test_unknown_parameter_names_are_not_filled_by_position():
    verdict = adapted(lambda output, gold: output == gold)(PROMPT, "4")
    assert verdict.reason.startswith("the verifier asks for 'gold'")


def test_verls_functions_get_the_arguments_of_verl():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return {"score": 0.5 if (data_source, solution_str, ground_truth) == ("sums", "x", "4") else 0.0, "acc": True}

    prompt = replace(PROMPT, columns={"data_source": "sums"})
    assert adapted(compute_score)(prompt, "x").score == 0.5
    assert adapted(lambda solution_str, ground_truth, extra_info: extra_info is None)(PROMPT, "x").right
    reason = adapted(compute_score)(PROMPT, "x").reason
    assert reason.startswith("the verifier asks for 'data_source'")


def test_trl_functions_get_the_columns_unchanged():
    columns = {"prompt": "How many?", "answer": "3+4\n#### 7"}
    row = Prompt("p", ({"role": "user", "content": "How many?"},), "7", columns=columns)

    def gsm8k_reward(prompts, completions, answer, **kwargs):
        assert prompts == ["How many?"]  # the column holds text, so the function gets text
        return [float(c.strip() == a.split("####")[1].strip()) for c, a in zip(completions, answer, strict=True)]

    assert adapted(gsm8k_reward)(row, "7").right
    assert adapted(gsm8k_reward)(row, "8").status == "wrong"


def test_sync_and_async_trl_functions_run_unchanged():
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


def test_a_reward_function_gets_the_whole_group_and_trls_arguments():
    seen: dict[str, Any] = {}

    def reward(completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
        seen.update(kwargs, ids=completion_ids, step=trainer_state.global_step)
        log_extra("length", [len(c) for c in completions])
        log_metric("mean_length", 1.0)
        longest = max(len(completion[0]["content"]) for completion in completions)
        return [float(len(completion[0]["content"]) == longest) for completion in completions]

    row = replace(PROMPT, columns={**PROMPT.columns, "prompt": PROMPT.text, "completion": "x"})
    judged = adapted(reward).together(row, ["ab", "abc", "c"], [(5, 6), (5, 6, 2), (7,)], 4)
    assert [verdict.status for verdict in judged] == ["wrong", "right", "wrong"]
    assert seen == {
        "prompts": [[{"role": "user", "content": "2+2?"}]] * 3,
        "ids": [[5, 6], [5, 6, 2], [7]],
        "step": 4,
        "answer": ["4"] * 3,
        "solution": ["four"] * 3,
        "level": [3] * 3,
    }


def test_a_reward_of_none_invalidates_one_response_and_a_wrong_count_all():
    some = adapted(lambda completions, **rest: [1.0, None, float("nan"), 0.0])
    assert [v.status for v in some.together(PROMPT, list("abcd"))] == ["right", "invalid", "invalid", "wrong"]
    few = adapted(lambda completions, **rest: [1.0])
    assert (
        few.together(PROMPT, list("ab"))
        == [Verdict("invalid", "the reward function gave 1 reward for 2 completions")] * 2
    )
    assert (
        adapted(lambda prompts, **rest: "good")(PROMPT, "a").reason == "the reward function gave a str for 1 completion"
    )


def test_an_object_that_only_takes_token_ids_is_a_trl_reward_function():
    class Overlong:
        def __call__(self, completion_ids, **kwargs):
            return [1.0 if len(ids) < 3 else 0.0 for ids in completion_ids]

    verifier = adapted(Overlong())
    assert [v.right for v in verifier.together(PROMPT, ["a", "b"], [(1, 2), (1, 2, 3)])] == [True, False]
    assert verifier.needs_tokens
    assert verifier(PROMPT, "a").reason.startswith("the verifier asks for 'completion_ids'")


def test_an_async_function_can_reuse_a_lock_between_calls():
    kept: dict[str, asyncio.Lock] = {}

    async def reward(completions, **kwargs):
        lock = kept.setdefault("lock", asyncio.Lock())

        async def one(completion):
            async with lock:
                await asyncio.sleep(0)
                return 1.0

        return await asyncio.gather(*map(one, completions))

    verifier = adapted(reward)
    for _ in range(2):
        assert all(v.right for v in verifier.together(PROMPT, ["a", "b"]))


def test_an_async_verifier_keeps_its_event_loop_between_calls():
    loops: list[asyncio.AbstractEventLoop] = []

    async def judge(response, answer):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return response == answer

    async def by_position(p, r):
        return await judge(r, p.answer)

    for function in (judge, by_position):
        verifier = adapted(function)
        assert [verifier(PROMPT, text).status for text in ("4", "5")] == ["right", "wrong"]
        assert loops[-1] is loops[-2]
        assert not loops[-1].is_closed()
    del verifier
    gc.collect()
    assert all(loop.is_closed() for loop in loops)


def test_a_loop_that_is_closed_cancels_what_still_runs_in_it():
    ended: list[str] = []

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def start():
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        return task

    loop = OneLoop()
    assert loop.awaited("no coroutine") == "no coroutine"
    loop.close()  # it has none yet
    task = loop.awaited(start())
    loop.close()
    assert (ended, task.cancelled()) == (["cancelled"], True)


def test_a_file_can_import_its_neighbours_at_once_and_later(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "judge_beside.py").write_text(
        "from helper_beside import GOOD\n\n"
        "def judge(response, answer):\n    from later_beside import BAD\n    return GOOD and not BAD\n"
    )
    (tmp_path / "mine" / "helper_beside.py").write_text("GOOD = True\n")
    (tmp_path / "mine" / "later_beside.py").write_text("BAD = False\n")
    (tmp_path / "mine" / "wave.py").write_text("raise RuntimeError('this is not the library of that name')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = sys.path[0]
    monkeypatch.chdir(tmp_path)
    function = import_function("mine/judge_beside.py:judge", "task.verifier")
    monkeypatch.chdir("/")
    assert adapted(function)(PROMPT, "").right
    import wave

    assert "this is not" not in str(wave)  # a neighbour must not replace a module that the trainer imports
    assert (sys.path[0], sys.path[-1]) == (before, str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nowhere_to_be_found\n",
            "no module 'nowhere_to_be_found'. .* imports it: install it, or put it beside",
        ),
        ("def judge(\n", r"cannot be imported: SyntaxError: .*broken.py, line 1"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit('no')\n", "cannot be imported: SystemExit: no"),
    ],
)
def test_a_file_that_cannot_be_imported_gives_a_config_error_with_the_cause(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_function(f"{path}:judge", "task.verifier")


@pytest.mark.parametrize(
    ("result", "status"),
    [(True, "right"), (False, "wrong"), (1.0, "right"), (0.98, "wrong"), ([1], "right"), (None, "invalid"),
     (float("nan"), "invalid"), (float("inf"), "invalid"), (-float("inf"), "invalid"), (0.3, "wrong"),
     (-1, "wrong"), ("right", "invalid"), ([1, 0], "invalid"), (Verdict("invalid", "x"), "invalid")],
)  # fmt: skip
def test_each_result_gives_its_verdict(result, status):
    assert to_verdict(result).status == status


def test_a_wrong_score_other_than_0_is_graded_and_an_infinite_score_is_invalid():
    assert [graded_score(to_verdict(score)) for score in (0.3, -1, 0, False, 1, 0.995)] == [0.3, -1, *[None] * 4]
    assert graded_score(to_verdict(0.995, right_at=1.0)) == 0.995
    assert to_verdict(float("inf")) == Verdict("invalid", "the verifier gave inf, not a finite score")
    assert to_verdict(float("nan")) == Verdict("invalid", "the verifier gave nan, not a finite score")


def test_a_reason_that_mentions_a_graded_score_is_not_a_graded_score():
    assert graded_score(Verdict("wrong", "graded score 0.3")) is None
    assert graded_score(Verdict("wrong", "no marked answer", score=0.3)) == 0.3


def test_one_of_the_first_scores_must_be_0_or_right():
    scores = FirstScores("mine.py:judge", right_at=0.99)
    scores.check([to_verdict(0.3)] * 5)
    scores.check([to_verdict(None)] * 9)  # invalid verdicts have no score
    with pytest.raises(ConfigError, match=r"mine\.py:judge gave none of the first 8 .*the first was 0\.3.*right_at"):
        scores.check([to_verdict(-0.5)] * 3)
    for plain in (0, False, True, 1.0, Verdict("wrong", "another value")):
        scores = FirstScores("mine.py:judge", right_at=0.99)
        scores.check([to_verdict(0.3), to_verdict(plain)])
        scores.check([to_verdict(0.3)] * 20)


def test_verify_exact_compares_character_by_character():
    assert verify_exact("so <answer>F+1 K-1</answer>", "F+1 K-1")
    assert not verify_exact("so <answer>F+1 K-2</answer>", "F+1 K-1")
    assert not verify_exact("F+1 K-1", "F+1 K-1")


@pytest.mark.parametrize("gold", ["U.S.", "$x+1$", "**bold**", "\\(a\\)", "Yes.", ".", "and so on...", 42])
def test_verify_exact_accepts_gold_answers_with_markup_in_a_box(gold):
    assert verify_exact(f"\\boxed{{{gold}}}", gold) == (gold != ".")  # nothing is left of a full stop
    assert not verify_exact("\\boxed{}", gold)
    assert not verify_exact(f"\\boxed{{{gold} or 5}}", gold)
    assert not verify_exact(f"\\boxed{{x {gold}}}", gold)
