"""Tasks written by users: each fault gives an error of one sentence that names the part."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vapo
from vapo.errors import ConfigError, DataError, VerifierBrokenError
from vapo.rollout.collect import judge_episodes
from vapo.session.evaluation import _answer_of
from vapo.session.inputs import RenderedPrompts, close_task
from vapo.tasks.catalog import check_task, find_task
from vapo.tasks.full_task import OPTIONAL, REQUIRED, FullTask
from vapo.types import Completion, Episode, Prompt, Verdict


def prompt(name: str = "p", text: Any = "What?") -> Prompt:
    return Prompt(name, text, "4")


def task(without: str = "", **parts: Any) -> Any:
    """A valid task with these parts replaced, and without one part."""
    valid: dict[str, Any] = {
        "name": "mine",
        "train": [prompt()],
        "heldout": (prompt("q", ({"role": "user", "content": "What?"},)),),
        "max_response_tokens": 8,
        "verify": lambda prompt, response: Verdict("right"),
    }
    return SimpleNamespace(**{key: value for key, value in {**valid, **parts}.items() if key != without})


class Lazy:
    """Prompts of which only the first can be read."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Prompt:
        if index:
            raise OSError("no such page")
        return prompt()


class RaisingName:
    """A task whose `name` raises."""

    @property
    def name(self) -> str:
        raise RuntimeError("not yet")


def test_a_valid_task_passes_with_and_without_its_optional_parts():
    check_task(task())
    check_task(task(notes=["made by hand"], close=lambda: None, final_answer=lambda response: None))
    check_task(task(verify_all=lambda items, on_progress: [], verify_groups=lambda groups, on_progress=None: []))
    check_task(task(train=None), ("heldout",))
    check_task(task(train=[]))  # an empty set of prompts is refused later, with advice


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "The task is a NoneType without 'name'. It needs name, train, heldout, max_response_tokens, verify"),
        (task(without="verify"), "The task is a SimpleNamespace without 'verify'"),
        (RaisingName(), "name of the task, a RaisingName, raised RuntimeError: not yet"),
        (task(name=None), "name of the task, a SimpleNamespace, must be a text, got None"),
        (task(max_response_tokens="8"), "max_response_tokens of the task mine, .* whole number from 1 on, got '8'"),
        (task(max_response_tokens=0), "whole number from 1 on, got 0"),
        (
            task(verify="exact"),
            r"verify of the task mine, .* called with \(prompt, response\): it is a str, not a function",
        ),
        (task(verify=lambda response: True), r"verify .* \(prompt, response\): too many positional arguments"),
        (task(verify_all=lambda items: []), r"verify_all .* \(items, on_progress\): too many positional arguments"),
        (task(final_answer=lambda: ""), r"final_answer .* \(response\): too many positional arguments"),
        (task(close=None), r"close of the task mine, .* called with \(\): it is a NoneType, not a function"),
        (task(notes="made by hand"), "notes of the task mine, .* list of sentences, got a str"),
        (task(train=5), "train of the task mine, .* with a length and an index.* a int raised TypeError"),
        (task(train={"p": prompt()}), "train of the task mine, .* a dict raised KeyError: 0"),
        (task(train=["What?"]), r"train\[0\] of the task mine, .* must be a vapo.types.Prompt .* got a str"),
        (task(heldout=[Prompt(5, "What?")]), r"heldout\[0\] of .* with a text for an id, got one with the id 5"),
        (task(train=[prompt(text=None)]), r"train\[0\] of .* its text must be a text, or messages .* got None"),
        (task(train=[prompt(text=({"role": "user"},))]), r"messages with role and content, got \({'role': 'user'},\)"),
    ],
)
def test_a_missing_or_wrong_part_is_named(broken, message):
    with pytest.raises((ConfigError, DataError), match=message):
        check_task(broken)


def test_a_full_task_has_defaults_for_missing_parts():
    bare, rich = (
        task(),
        task(notes=["made by hand"], final_answer=lambda response: "4", drops=[], description="One sum."),
    )
    full = FullTask.of(bare)
    assert (full.original, full.train, full.verify) == (bare, bare.train, bare.verify)
    assert (full.final_answer, full.verify_all, full.verify_groups, full.options, full.drops) == (None,) * 5
    assert (full.notes, full.description, full.close()) == ((), "", None)
    assert FullTask.of(full) is full
    full = FullTask.of(rich)
    assert (full.notes, full.final_answer("x"), full.drops, full.description) == (["made by hand"], "4", [], "One sum.")
    assert full.given == {"notes", "final_answer", "drops", "description"}


def test_the_parts_of_a_task_are_read_once():
    reads = []

    class Counted(SimpleNamespace):
        @property
        def notes(self) -> list[str]:
            reads.append("notes")
            return []

    full = check_task(Counted(**vars(task())))
    assert (full.notes, full.notes, reads) == ([], [], ["notes"])


def test_only_full_task_looks_up_parts_by_name():
    parts, others = {*REQUIRED, *OPTIONAL}, []
    for path in sorted(Path(vapo.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                owner, name = node.args[0], node.args[1]
                of_task = ast.unparse(owner).rpartition(".")[2] in ("task", "original")
                if of_task or (isinstance(name, ast.Constant) and name.value in parts):
                    others.append(f"{path.name}: {ast.unparse(node)}")
    assert others == ["full_task.py: getattr(task, name, default)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 5}, r"does not take these options: got an unexpected keyword argument 'sise'. It takes \(size=3\)"),
        ({"size": 0}, "raised ZeroDivisionError: .* Fix it or the task's options"),
        ({"size": "no"}, "^size is a number$"),
    ],
)
def test_a_task_function_that_fails_gives_an_error_with_the_cause(tmp_path, options, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vapo.errors import ConfigError\n\n"
        "def make(size=3):\n    if size == 'no':\n        raise ConfigError('size is a number')\n    return 1 / size\n"
    )
    with pytest.raises(ConfigError, match=message):
        find_task(f"{path}:make", options)


def test_a_prompt_that_cannot_be_read_later_is_named():
    rendered = RenderedPrompts(Lazy(), lambda prompt: prompt)
    assert rendered[0] == prompt()
    with pytest.raises(DataError, match=r"The task's prompt 1 raised OSError: no such page. Mend the task"):
        rendered[1]
    with pytest.raises(DataError, match=r"The task's prompt 0 must be a vapo.types.Prompt"):
        RenderedPrompts(("What?",), lambda prompt: prompt, max_tokens=8)


def episodes(count: int) -> list[Episode]:
    return [Episode.of_completion(prompt(), j, Completion((5, 2), (0.0, 0.0), "stop", 3), str(j)) for j in range(count)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"verify_all": lambda items, on_progress: [Verdict("right")]},
            "verify_all .* mine gave 1 verdict for 2 resp",
        ),
        (
            {"verify_all": lambda items, on_progress: None},
            "verify_all of the task mine gave a NoneType for 2 responses",
        ),
        ({"verify_groups": lambda groups, on_progress: groups * 3}, "verify_groups of .* gave 3 verdicts for 2 resp"),
    ],
)
def test_a_wrong_number_of_verdicts_stops_the_run(parts, message):
    with pytest.raises(VerifierBrokenError, match=message):
        judge_episodes(episodes(2), FullTask.of(task(**parts)), per_prompt=2)


def test_a_result_that_is_not_a_verdict_is_invalid():
    for parts in ({"verify": lambda p, r: True}, {"verify_all": lambda items, on_progress: [True, True]}):
        judged = judge_episodes(episodes(2), FullTask.of(task(**parts)))
        assert [e.verdict.status for e in judged] == ["invalid"] * 2
        assert judged[0].verdict.reason == f"{next(iter(parts))} gave a bool, not a vapo.types.Verdict"


@pytest.mark.parametrize("score", [math.nan, math.inf, "0.5", 10**400, torch.zeros(2)])
def test_a_score_that_is_no_finite_number_makes_the_verdict_invalid(score):
    judged = judge_episodes(episodes(2), FullTask.of(task(verify=lambda p, r: Verdict("right", score=score))))
    assert [e.verdict.status for e in judged] == ["invalid"] * 2
    assert judged[0].verdict.reason == f"verify gave the score {score!r:.80}, which is no finite number"


def test_a_score_may_be_a_tensor_of_one_number():
    judged = judge_episodes(
        episodes(1), FullTask.of(task(verify=lambda p, r: Verdict("right", score=torch.tensor(0.5))))
    )
    assert judged[0].verdict.score == 0.5


def test_verify_groups_gets_the_responses_to_each_prompt_together():
    def best(groups, on_progress):
        assert [[e.response for e in group] for group in groups] == [["0", "1", "2"], ["3", "4", "5"]]
        return [Verdict("right" if e is group[-1] else "wrong") for group in groups for e in group]

    judged = judge_episodes(episodes(6), FullTask.of(task(verify_groups=best)), per_prompt=3)
    assert [e.verdict.right for e in judged] == [False, False, True] * 2


def test_an_invalid_final_answer_stops_the_evaluation():
    assert _answer_of(FullTask.of(task())) is None
    for final_answer, message in ((lambda r: 5, "gave a int, not a text"), (lambda r: r[9], "raised IndexError")):
        answer_of = _answer_of(FullTask.of(task(final_answer=final_answer)))
        assert answer_of is not None
        with pytest.raises(VerifierBrokenError, match=f"final_answer of the task mine {message}"):
            answer_of("x")


def test_a_majority_counts_votes_where_a_task_has_them():
    answer_of = _answer_of(FullTask.of(task(final_answer=lambda text: text, vote=lambda text: text.lower())))
    assert answer_of is not None
    assert answer_of("A") == "a"
    broken = _answer_of(FullTask.of(task(vote=lambda text: 5)))
    assert broken is not None
    with pytest.raises(VerifierBrokenError, match="vote of the task mine gave a int, not a text or None"):
        broken("A")


def test_a_close_that_raises_gives_a_warning():
    def fail() -> None:
        raise RuntimeError("already closed")

    with pytest.warns(UserWarning, match="close of the task raised RuntimeError: already closed"):
        close_task(task(close=fail))
