"""Tasks that users wrote: whatever is wrong with one is a sentence that names the part, never a traceback."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
    """A sound task with these parts in place of its own."""
    sound: dict[str, Any] = {
        "name": "mine",
        "train": [prompt()],
        "heldout": (prompt("q", ({"role": "user", "content": "What?"},)),),
        "max_response_tokens": 8,
        "verify": lambda prompt, response: Verdict("right"),
    }
    return SimpleNamespace(**{key: value for key, value in {**sound, **parts}.items() if key != without})


class Lazy:
    """Prompts whose making fails from the second on."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Prompt:
        if index:
            raise OSError("no such page")
        return prompt()


class Absent:
    """A task with a part that raises when it is asked for."""

    @property
    def name(self) -> str:
        raise RuntimeError("not yet")


def test_a_sound_task_passes_with_and_without_the_parts_that_may_be_missing():
    check_task(task())
    check_task(task(notes=["made by hand"], close=lambda: None, final_answer=lambda response: None))
    check_task(task(verify_all=lambda items, on_progress: [], verify_groups=lambda groups, on_progress=None: []))
    check_task(task(train=None), ("heldout",))
    check_task(task(train=[]))  # what has no prompts is told later, with advice


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (None, "The task is a NoneType without 'name'. It needs name, train, heldout, max_response_tokens, verify"),
        (task(without="verify"), "The task is a SimpleNamespace without 'verify'"),
        (Absent(), "name of the task, a Absent, raised RuntimeError: not yet"),
        (task(name=None), "name of the task, a SimpleNamespace, must be a text, got None"),
        (task(max_response_tokens="8"), "max_response_tokens of the task mine, .* whole number from 1 on, got '8'"),
        (task(max_response_tokens=0), "whole number from 1 on, got 0"),
        (
            task(verify="exact"),
            r"verify of the task mine, .* called with \(prompt, response\): it is a str, no function",
        ),
        (task(verify=lambda response: True), r"verify .* \(prompt, response\): too many positional arguments"),
        (task(verify_all=lambda items: []), r"verify_all .* \(items, on_progress\): too many positional arguments"),
        (task(final_answer=lambda: ""), r"final_answer .* \(response\): too many positional arguments"),
        (task(close=None), r"close of the task mine, .* called with \(\): it is a NoneType, no function"),
        (task(notes="made by hand"), "notes of the task mine, .* list of sentences, got a str"),
        (task(train=5), "train of the task mine, .* with a length and an index.* a int raised TypeError"),
        (task(train={"p": prompt()}), "train of the task mine, .* a dict raised KeyError: 0"),
        (task(train=["What?"]), r"train\[0\] of the task mine, .* must be a vapo.types.Prompt .* got a str"),
        (task(heldout=[Prompt(5, "What?")]), r"heldout\[0\] of .* with a text for an id, got one with the id 5"),
        (task(train=[prompt(text=None)]), r"train\[0\] of .* its text must be a text, or messages .* got None"),
        (task(train=[prompt(text=({"role": "user"},))]), r"messages with role and content, got \({'role': 'user'},\)"),
    ],
)
def test_what_a_task_lacks_is_named(broken, said):
    with pytest.raises((ConfigError, DataError), match=said):
        check_task(broken)


def test_a_full_task_has_the_parts_of_the_task_and_defaults_for_the_others():
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


def test_parts_of_a_task_are_read_once_when_it_is_taken_in():
    reads = []

    class Counted(SimpleNamespace):
        @property
        def notes(self) -> list[str]:
            reads.append("notes")
            return []

    full = check_task(Counted(**vars(task())))
    assert (full.notes, full.notes, reads) == ([], [], ["notes"])


def test_parts_of_a_task_are_looked_up_by_name_in_one_place():
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
    ("options", "said"),
    [
        ({"sise": 5}, r"does not take these options: got an unexpected keyword argument 'sise'. It takes \(size=3\)"),
        ({"size": 0}, "raised ZeroDivisionError: .* Mend it, or the task's options"),
        ({"size": "no"}, "^size is a number$"),
    ],
)
def test_a_function_that_makes_no_task_of_its_options_says_why(tmp_path, options, said):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vapo.errors import ConfigError\n\n"
        "def make(size=3):\n    if size == 'no':\n        raise ConfigError('size is a number')\n    return 1 / size\n"
    )
    with pytest.raises(ConfigError, match=said):
        find_task(f"{path}:make", options)


def test_a_prompt_that_cannot_be_had_later_on_is_named():
    rendered = RenderedPrompts(Lazy(), lambda prompt: prompt)
    assert rendered[0] == prompt()
    with pytest.raises(DataError, match=r"The task's prompt 1 raised OSError: no such page. Mend the task"):
        rendered[1]
    with pytest.raises(DataError, match=r"The task's prompt 0 must be a vapo.types.Prompt"):
        RenderedPrompts(("What?",), lambda prompt: prompt, max_tokens=8)


def episodes(count: int) -> list[Episode]:
    return [Episode.of_completion(prompt(), j, Completion((5, 2), (0.0, 0.0), "stop", 3), str(j)) for j in range(count)]


@pytest.mark.parametrize(
    ("parts", "said"),
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
def test_verdicts_that_belong_to_no_response_stop_the_run(parts, said):
    with pytest.raises(VerifierBrokenError, match=said):
        judge_episodes(episodes(2), FullTask.of(task(**parts)), per_prompt=2)


def test_what_is_no_verdict_is_invalid_with_the_reason():
    for parts in ({"verify": lambda p, r: True}, {"verify_all": lambda items, on_progress: [True, True]}):
        judged = judge_episodes(episodes(2), FullTask.of(task(**parts)))
        assert [e.verdict.status for e in judged] == ["invalid"] * 2
        assert judged[0].verdict.reason == f"{next(iter(parts))} gave a bool, not a vapo.types.Verdict"


def test_a_task_that_compares_is_given_the_responses_to_each_prompt_together():
    def best(groups, on_progress):
        assert [[e.response for e in group] for group in groups] == [["0", "1", "2"], ["3", "4", "5"]]
        return [Verdict("right" if e is group[-1] else "wrong") for group in groups for e in group]

    judged = judge_episodes(episodes(6), FullTask.of(task(verify_groups=best)), per_prompt=3)
    assert [e.verdict.right for e in judged] == [False, False, True] * 2


def test_a_vote_that_cannot_be_counted_stops_in_words():
    assert _answer_of(FullTask.of(task())) is None
    for final_answer, said in ((lambda r: 5, "gave a int, not a text"), (lambda r: r[9], "raised IndexError")):
        answer_of = _answer_of(FullTask.of(task(final_answer=final_answer)))
        assert answer_of is not None
        with pytest.raises(VerifierBrokenError, match=f"final_answer of the task mine {said}"):
            answer_of("x")


def test_a_close_that_raises_does_not_hide_how_the_run_ended():
    def fail() -> None:
        raise RuntimeError("already closed")

    with pytest.warns(UserWarning, match="close of the task raised RuntimeError: already closed"):
        close_task(task(close=fail))
