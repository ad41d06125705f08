"""Dialogues in rows, columns beside them, and advice for rows of an unknown layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vapo.errors import DataError
from vapo.tasks.problem_options import ProblemOptions
from vapo.tasks.problems import Problems
from vapo.tasks.prompt_reader import Reader

TURNS = [("human", "Hello"), ("gpt", "Hi"), ("human", "1 + 1?"), ("gpt", "2")]
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "1 + 1?"}]  # fmt: skip


def sharegpt(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in turns]


def texts(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[list[tuple[str, str]]]:
    """The messages of each prompt, as (role, content)."""
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = Reader(
        ProblemOptions(data=str(data), **{"verifier": "exact", "template": "<{problem}>", **options}), "math"
    )
    prompts = reader.prompts(str(data), None, "train")
    reader.check()
    return [[(m["role"], m["content"]) for m in prompt.text] for prompt in prompts if not isinstance(prompt.text, str)]


def notes(tmp_path: Path, row: dict[str, Any], **options: Any) -> list[str]:
    """The notes on 20 rows like this one, without the counts."""
    data = tmp_path / "d.jsonl"
    words = json.dumps(row)
    data.write_text("".join(words.replace("1 + 1?", f"{i} + 1?") + "\n" for i in range(20)))
    task = Problems("math", ProblemOptions(data=str(data), heldout=1, verifier_workers=1, **options))
    task.close()
    return task.notes[1:]


def test_the_template_goes_around_the_last_user_turn_of_every_sharegpt_dialogue(tmp_path):
    rows = [{"conversations": sharegpt(turns), "answer": "2"} for turns in (TURNS, TURNS[2:3], TURNS[2:])]
    many, one = [("user", "Hello"), ("assistant", "Hi"), ("user", "<1 + 1?>")], [("user", "<1 + 1?>")]
    assert texts(tmp_path, rows) == [many, one]  # the third is the second again
    system = [("system", "Be brief.")]
    assert texts(tmp_path, rows, system="Be brief.") == [system + many, system + one]
    messages = [{"messages": CHAT, "answer": "2"}, {"messages": CHAT[2:], "answer": "2"}]
    plain = [("user", "Hello"), ("assistant", "Hi"), ("user", "1 + 1?")]
    assert texts(tmp_path, messages, system="Be brief.") == [plain, plain[2:]]  # as they are
    same = [{"messages": sharegpt(TURNS), "answer": "2"}]
    assert texts(tmp_path, same) == [many]


@pytest.mark.parametrize("name", ["system", "system_prompt", "System"])
def test_a_column_system_becomes_the_system_message_of_a_dialogue_without_one(tmp_path, name):
    own = [{"from": "system", "value": "Think."}, *sharegpt(TURNS)]
    rows = [{name: "Be brief.", "conversations": turns, "answer": "2"} for turns in (sharegpt(TURNS), own)]
    first, second = texts(tmp_path, rows, system="Be careful.")
    assert first == [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "<1 + 1?>")]
    assert second == [("system", "Think."), *first[1:]]
    named = {"prompt": [name, "conversations"], "answer": "answer"}
    assert texts(tmp_path, rows, columns=named) == [first, second]
    note = f"the column {name.lower()} becomes the system message of dialogues that have none"
    assert notes(tmp_path, rows[0]) == [note]
    assert notes(tmp_path, rows[1]) == [f"{note}; the first has one of its own"]


def test_other_columns_cannot_be_joined_to_messages_and_the_error_gives_a_way_out(tmp_path):
    row = {"system": "Be brief.", "hint": "Add.", "messages": CHAT, "answer": "2"}
    named = {"prompt": ["system", "hint", "messages"], "answer": "answer"}
    with pytest.raises(DataError, match="messages holds messages, and hint cannot be joined to them") as raised:
        texts(tmp_path, [row], columns=named)
    assert "Write the text of hint into the user's turn" in raised.value.fix
    assert "--set 'task.columns={prompt: [system, messages], answer: answer}'" in raised.value.fix
    found = notes(tmp_path, row, verifier="exact")
    assert "the column hint is not put into the prompt; messages are complete; to have it there, write" in found[1]
    row = {"q": "How many?", "facts": {"text": "Ann has 3."}, "answer": "3"}
    with pytest.raises(DataError, match=r"facts holds a dict, which cannot be joined .* as in facts.text, or a list"):
        texts(tmp_path, [row], columns={"prompt": ["facts", "q"], "answer": "answer"})


@pytest.mark.parametrize(
    ("row", "answer", "prompt"),
    [
        ({"conversations": sharegpt(TURNS[2:])}, "conversations.1.value", [("user", "<1 + 1?>")]),
        ({"conversations": sharegpt(TURNS)}, "conversations.3.value",
         [("user", "Hello"), ("assistant", "Hi"), ("user", "<1 + 1?>")]),
        ({"conversations": sharegpt([*TURNS, ("human", "Thanks"), ("gpt", "Welcome")])}, "conversations.3.value",
         [("user", "Hello"), ("assistant", "Hi"), ("user", "<1 + 1?>")]),
        ({"messages": [*CHAT, {"role": "assistant", "content": "2"}]}, "messages.-1.content",
         [("user", "Hello"), ("assistant", "Hi"), ("user", "1 + 1?")]),
    ],
)  # fmt: skip
def test_a_dialogue_is_cut_before_the_turn_that_is_the_answer(tmp_path, row, answer, prompt):
    columns = {"prompt": next(iter(row)), "answer": answer}
    assert texts(tmp_path, [row], columns=columns) == [prompt]


def test_text_parts_of_a_message_are_read_and_others_are_refused_by_their_type(tmp_path):
    def row(*parts: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}], "answer": "2"}

    text = {"type": "text", "text": "What is"}
    assert texts(tmp_path, [row(text, {"type": "text", "text": "1 + 1?"})]) == [[("user", "What is\n1 + 1?")]]
    with pytest.raises(DataError, match="line 1: a message with a part that is not text: image_url"):
        texts(tmp_path, [row(text, {"type": "image_url", "image_url": {"url": "x"}})])
    with pytest.raises(DataError, match=r"a message without role and content: it holds who \(str\), text \(str\)"):
        texts(tmp_path, [{"messages": [{"who": "me", "text": "Hi"}], "answer": "2"}])
    with pytest.raises(DataError, match=r"line 1: messages that do not end with a user's"):
        texts(tmp_path, [{"messages": [CHAT[0], CHAT[1], CHAT[1]], "answer": "2"}])


def test_a_dialogue_may_end_with_what_a_tool_said(tmp_path):
    said = [CHAT[-1], {"role": "assistant", "content": "<sum>1 1</sum>"}, {"role": "tool", "content": "2"}]
    row = {"messages": said, "answer": "2"}
    assert texts(tmp_path, [row]) == [[(turn["role"], turn["content"]) for turn in said]]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"conversations": sharegpt(TURNS)}, "{prompt: conversations, answer: conversations.-1.value}"),
        ({"id": 1, "messages": [*CHAT, {"role": "assistant", "content": "2"}]},
         "{prompt: messages, answer: messages.-1.content}"),
        ({"prompt": CHAT, "completion": [{"role": "assistant", "content": "2"}]},
         "{prompt: prompt, answer: completion.0.content}"),
        ({"Question": "How many?", "answers": ["3", "three"]}, "{prompt: Question, answer: answers.0}"),
        ({"id": "a", "context": "Ann has 3.", "question": "How many?", "answers": {"text": ["3"], "answer_start": [8]}},
         "{prompt: [context, question], answer: answers.text.0}"),
        ({"question": "How many?", "choices": ["3", "4"], "label": "A"},
         "{prompt: [question, choices], answer: label}"),
        ({"system": "Be brief.", "messages": CHAT, "target": 2}, "{prompt: [system, messages], answer: target}"),
        ({"question_text": "How many?", "n": 3}, "{prompt: question_text, answer: ...}"),
        ({"a": 1, "b": 2}, "{prompt: ..., answer: ...}"),
    ],
)  # fmt: skip
def test_the_error_for_an_unknown_layout_fills_in_task_columns(tmp_path, row, columns):
    with pytest.raises(DataError, match="none of the known layouts") as raised:
        texts(tmp_path, [row])
    assert raised.value.fix == f"Name the prompt and the answer: --set 'task.columns={columns}'."


def test_an_answer_that_is_no_text_is_told_the_name_of_the_text_inside(tmp_path):
    squad = {"question": "How many?", "answer": {"text": ["3"], "answer_start": [8]}}
    with pytest.raises(DataError, match=r"an answer of type dict, .*{prompt: question, answer: answer.text.0}"):
        texts(tmp_path, [squad])
    named = {"prompt": "prompt", "answer": "completion"}
    chat = {"prompt": CHAT, "completion": [{"role": "assistant", "content": "2"}]}
    with pytest.raises(DataError, match=r"{prompt: prompt, answer: completion.0.content}"):
        texts(tmp_path, [chat], columns=named)
    with pytest.raises(DataError, match=r"a list of 2 answers: .*{prompt: problem, answer: Answer.0}"):
        texts(tmp_path, [{"problem": "How many?", "Answer": ["3", "4"]}])


def test_a_note_names_prompts_that_ask_for_no_marked_answer(tmp_path):
    one, many = {"messages": CHAT[2:], "answer": "2"}, {"messages": CHAT, "answer": "2"}
    [note] = notes(tmp_path, one)
    assert "the verifier math reads a marked answer (\\boxed{}, Answer: ...), and none of the first 20 prompts" in note
    assert "--set 'task.columns={prompt: messages.0.content, answer: answer}' takes their text as the problem" in note
    [note] = notes(tmp_path, many)
    assert "Write the words into the messages, or into a column system beside them." in note
    assert notes(tmp_path, one, columns={"prompt": "messages.0.content", "answer": "answer"}) == []
    assert notes(tmp_path, one, verifier="exact") == []
    assert notes(tmp_path, {"conversations": sharegpt(TURNS), "answer": "2"}) == []
    for words in ("Put it in \\boxed{}.", "End with Answer: $Answer"):
        asking = [{"role": "system", "content": words}, *CHAT]
        assert notes(tmp_path, {"messages": asking, "answer": "2"}) == []


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"option_a": "one", "option_b": "two"},
         "column question, and the choices option_a, option_b as lines A. ... behind a blank line"),
        ({"context": "Ann.", "option_a": "one", "option_b": "two"},
         "columns context, question, with blank lines between, and the choices option_a, option_b as lines A. ... "
         "behind a blank line"),
        ({"context": "Ann."}, "columns context, question, with blank lines between"),
    ],
)  # fmt: skip
def test_the_note_on_joined_columns_tells_texts_from_choices(tmp_path, row, note):
    row = {"question": "1 + 1?", **row, "answer": "A"}
    assert notes(tmp_path, row, verifier="exact") == [f"each problem is made of the {note}"]
