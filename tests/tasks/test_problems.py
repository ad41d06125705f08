"""Data tasks: layouts of data sets, rows that are refused, and the verifiers."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from row_toys import jsonl, problems, sums

from vapo.errors import ConfigError, DataError
from vapo.tasks.catalog import find_task, is_known
from vapo.tasks.problem_options import ProblemOptions
from vapo.tasks.problems import Problems
from vapo.tasks.prompt_reader import Reader
from vapo.tasks.row_files import read_rows
from vapo.types import Prompt


@pytest.mark.parametrize(
    ("row", "problem", "answer"),
    [
        ({"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}, "How many?", "7"),  # GSM8K
        ({"question": "Q", "answer": "#### Step 2\nmultiply\n\nThe final answer is 3."}, "Q", "3"),  # a heading
        ({"problem": "P", "solution": "so \\boxed{\\frac12}", "level": "Level 5"}, "P", "\\frac12"),  # MATH
        ({"problem": "P", "solution": "S", "answer": "1/2", "unique_id": "x"}, "P", "1/2"),  # MATH-500, AIME
        ({"ID": "2024-I-1", "Problem": "P", "Solution": "S", "Answer": 204}, "P", "204"),  # AIME, capitals, a number
        ({"data_source": "math_dapo", "prompt": [{"role": "user", "content": "Solve: P"}], "ability": "MATH",
          "reward_model": {"ground_truth": "34", "style": "rule"}, "extra_info": {"index": "i"}}, "Solve: P", "34"),
        ([{"from": "human", "value": "P"}, {"from": "assistant", "ground_truth": {"value": "5"}}], "P", "5"),
        ({"prompt": "P", "answer": "5"}, "P", "5"),
        ({"prompt": [{"role": "user", "content": "P"}], "solution": "$\\boxed{5}$"}, "P", "5"),  # TRL
        ({"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "5"}], "answer": "5"},
         "P", "5"),
        ({"conversations": [{"from": "human", "value": "P"}], "answer": "5"}, "P", "5"),
        ({"instruction": "P", "input": "", "output": "5"}, "P", "5"),
    ],
)  # fmt: skip
def test_common_layouts_are_recognised(tmp_path, row, problem, answer):
    task = problems(eval_data=jsonl(tmp_path / "data.jsonl", [row]), template="{problem}")
    [prompt] = task.heldout
    assert (prompt.text[-1], prompt.answer) == ({"role": "user", "content": problem}, answer)


def test_named_columns_may_be_nested_and_unknown_names_are_errors(tmp_path):
    rows = [{"q": {"text": f"P{i}"}, "gold": f"The sum: \\boxed{{{i}}}", "difficulty": i} for i in range(40)]
    columns = {"prompt": "q.text", "answer": "gold"}
    task = problems(data=jsonl(tmp_path / "d.jsonl", rows), columns=columns)
    assert {p.answer for p in (*task.train, *task.heldout)} == {str(i) for i in range(40)}
    assert task.train[0].columns["difficulty"] == int(task.train[0].answer)  # verifiers may ask for it
    with pytest.raises(DataError, match=r"line 1 has no column 'q.words'. There are: q, gold, difficulty"):
        problems(data=jsonl(tmp_path / "d.jsonl", rows), columns={**columns, "prompt": "q.words"})
    with pytest.raises(DataError, match=r"has the columns a, b: none of the known layouts.*task.columns="):
        problems(data=jsonl(tmp_path / "e.jsonl", [{"a": 1, "b": 2}]))


@pytest.mark.parametrize(
    ("row", "columns", "answer"),
    [
        ({"q": "P", "final.answer": "3"}, {"prompt": "q", "answer": "final.answer"}, "3"),
        ({"a.q": "P", "a": {"q": "no", "gold": "3"}}, {"prompt": "a.q", "answer": "a.gold"}, "3"),
        ({"a.q": "P", "final.answer": ["3"]}, {"prompt": ["a.q"], "answer": "final.answer"}, "3"),
    ],
)
def test_the_name_of_a_column_may_hold_a_dot(tmp_path, row, columns, answer):
    [prompt] = read(tmp_path, [row], columns=columns)
    assert (prompt.text[-1]["content"], prompt.answer) == ("P", answer)


def test_a_named_column_with_a_dot_is_not_called_left_out(tmp_path):
    rows = [{"q.text": f"What is {i}?", "a": str(i)} for i in range(40)]
    data = jsonl(tmp_path / "d.jsonl", rows)
    [layout] = problems(data=data, columns={"prompt": "q.text", "answer": "a"}).layouts
    assert layout.left_out == ()


@pytest.mark.parametrize("empty", [None, "", float("nan"), []])
def test_the_layout_is_that_of_the_first_row_with_a_problem(tmp_path, empty):
    first = {"question": empty, "answer": "1", "context": "Ann has 3."}
    rows = [{"question": f"How many are {i}?", "answer": str(i), "context": "Two cats."} for i in range(200)]
    task = problems(data=jsonl(tmp_path / "d.jsonl", [first, *rows]), template="{problem}")
    contents = {prompt.text[-1]["content"] for prompt in (*task.train, *task.heldout)}
    assert contents >= {f"Two cats.\n\nHow many are {i}?" for i in range(200)}
    assert task.notes[-1].startswith("each problem is made of the columns context, question")
    assert len(task.drops) == 1


def test_an_empty_dialogue_in_the_first_row_leaves_the_others_as_they_are(tmp_path):
    chat = [{"messages": [{"role": "user", "content": f"{i}?"}], "answer": "1"} for i in range(200)]
    task = problems(data=jsonl(tmp_path / "d.jsonl", [{"messages": None, "answer": "1"}, *chat]))
    assert (len(task.train) + len(task.heldout), len(task.drops), len(task.layouts)) == (200, 1, 1)


def read(tmp_path: Path, rows: list[Any], verifier: str = "exact", **options: Any) -> list[Prompt]:
    """The prompts of these rows, without judging their gold answers."""
    data = jsonl(tmp_path / "d.jsonl", rows)
    chosen = ProblemOptions(data=data, verifier=verifier, template="{problem}", **options)
    reader = Reader(chosen, "math")
    prompts = reader.prompts(data, None, "train")
    reader.check()
    return prompts


def problem_text(tmp_path: Path, row: dict[str, Any], **options: Any) -> str:
    """The problem in the prompt of this row."""
    [prompt] = read(tmp_path, [{**row, "answer": "0", "question": "How many?"}], **options)
    return prompt.text[-1]["content"]


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"input": "3 + 4"}, "How many?\n\n3 + 4"),
        ({"input": ""}, "How many?"),
        ({"input": None, "level": "hard"}, "How many?"),
        ({"Passage": "Ann has 3.", "input": "Count."}, "Ann has 3.\n\nHow many?\n\nCount."),
        ({"options": "a) 3, b) 4"}, "How many?\n\na) 3, b) 4"),
        ({"context": "How many?"}, "How many?"),  # the problem contains it
        ({"context": "many"}, "many\n\nHow many?"),  # a short text may be in the problem by chance
    ],
)
def test_columns_that_belong_to_a_problem_are_joined_before_or_after_it(tmp_path, row, whole):
    assert problem_text(tmp_path, row) == whole


def test_alpaca_rows_with_one_instruction_are_different_problems_and_notes_name_the_columns(tmp_path):
    rows = [
        {"instruction": "Add.", "input": f"{i} + 1", "output": str(i + 1), "system": "Be brief.", "hint": "", "id": i}
        for i in range(40)
    ]
    task = problems(data=jsonl(tmp_path / "d.jsonl", rows), verifier="exact", template="{problem}")
    assert (len(task.train), len(task.heldout), task.drops) == (39, 1, [])
    assert {p.text[-1]["content"] for p in task.train} < {f"Add.\n\n{i} + 1" for i in range(40)}
    assert task.notes[1:] == [
        "each problem is made of the columns instruction, input, with blank lines between",
        "the column system is not put into the prompt; to have it there, name it in task.columns",
    ]


@pytest.mark.parametrize(
    ("row", "choices"),
    [
        ({"option_b": "four", "option_a": "three"}, "A. three\nB. four"),
        ({"opa": "three", "opb": 4, "opc": None}, "A. three\nB. 4"),
        ({"choice1": "three", "choice2": "four"}, "1. three\n2. four"),
        ({"A": "three", "B": "four", "gold": "(B)"}, "A. three\nB. four"),
        ({"a": "3", "b": "4", "gold": "7"}, ""),  # numbers of the problem
        ({"option_a": "three"}, ""),
    ],
)
def test_choices_in_columns_of_their_own_become_lettered_lines(tmp_path, row, choices):
    row = {"question": "How many?", "answer": "0", **row}
    row["answer"] = row.pop("gold", row["answer"])
    [prompt] = read(tmp_path, [row])
    assert prompt.text[-1]["content"] == f"How many?\n\n{choices}".strip()


def test_a_column_with_words_that_is_not_in_the_prompt_is_named(tmp_path):
    rows = [{**row, "facts": "Ann has 3.", "level": "hard", "solution": "I add."} for row in sums(40)]
    notes = problems(data=jsonl(tmp_path / "d.jsonl", rows)).notes
    assert notes[1:] == ["the column facts is not put into the prompt; to have it there, name it in task.columns"]
    chat = [
        {"messages": [{"role": "user", "content": f"{i}"}], "answer": "1", "system": "x", "context": "y"}
        for i in range(40)
    ]
    notes = problems(data=jsonl(tmp_path / "d.jsonl", chat)).notes
    assert notes[1:3] == [
        "the column system becomes the system message of dialogues that have none",
        "the column context is not put into the prompt; messages are complete; to have it there, write it into the "
        "user's turn of each row",
    ]


def test_equal_problems_with_other_answers_may_lack_a_column(tmp_path):
    rows = [{"question": "How many?", "facts": f"Ann has {i}.", "answer": str(i)} for i in range(40)]
    with pytest.raises(DataError, match=r"39 two answers to one[\s\S]*\nfacts is not in the prompt.*\[facts, qu"):
        problems(data=jsonl(tmp_path / "d.jsonl", rows))
    rows = [{"question": "How many?", "n": i, "answer": str(i)} for i in range(40)]
    with pytest.raises(DataError, match=r"39 two answers to one problem[\s\S]*part of the problem in another column"):
        problems(data=jsonl(tmp_path / "d.jsonl", rows))


def test_a_column_that_task_columns_left_out_is_named_where_equal_problems_have_two_answers(tmp_path):
    rows = [
        {"question": "How many?", "Context": f"Ann has {i}.", "input": "Count.", "id": "row one", "answer": str(i)}
        for i in range(40)
    ]
    named = {"prompt": "question", "answer": "answer"}
    with pytest.raises(DataError, match=r"{prompt: \[Context, question, input\], answer: answer}'\.$") as raised:
        problems(data=jsonl(tmp_path / "d.jsonl", rows), columns=named)
    assert raised.value.fix.startswith("Context, input are not in the prompt. If the problems need it")
    assert raised.value.found.endswith("line 1")


def test_all_turns_of_a_dialogue_are_in_the_prompt(tmp_path):
    turns = [("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi"), ("human", "1 + 1?"), ("gpt", "2")]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in turns], "answer": "2"}]
    [prompt] = read(tmp_path, rows)
    assert [(m["role"], m["content"]) for m in prompt.text] == [
        ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "1 + 1?")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "later", "whole"),
    [
        ({"A": "three", "B": "four", "E": None}, {"A": "1", "B": "2", "E": "3"}, "How many?\n\nA. 1\nB. 2\nE. 3"),
        ({"A": "three", "B": "four"}, {"A": "1", "B": "2", "C": "3"}, "How many?\n\nA. 1\nB. 2\nC. 3"),
        ({}, {"option_a": "1", "option_b": "2"}, "How many?\n\nA. 1\nB. 2"),
        ({}, {"context": "Two cats."}, "Two cats.\n\nHow many?"),
        ({"input": ""}, {"input": "3 + 4"}, "How many?\n\n3 + 4"),
    ],
)
def test_a_part_of_the_problem_that_the_first_row_lacks_is_joined(tmp_path, first, later, whole):
    rows = [{"question": "Which?", "answer": "A", **first}, {"question": "How many?", "answer": "B", **later}]
    assert [prompt.text[-1]["content"] for prompt in read(tmp_path, rows)][1] == whole


def test_a_list_of_choices_is_refused_until_task_columns_names_its_place(tmp_path):
    row = {"choices": ["three", "four"]}
    with pytest.raises(DataError, match=r"line 1 has a column 'choices' .* list: .*prompt: \[question, choices\]"):
        problem_text(tmp_path, row)
    whole = problem_text(tmp_path, row, columns={"prompt": ["question", "choices"], "answer": "answer"})
    assert whole == "How many?\n\nA. three\nB. four"
    labelled = {"choices": {"label": ["1", "2"], "text": ["three", "four"]}}
    whole = problem_text(tmp_path, labelled, columns={"prompt": ["question", "choices"], "answer": "answer"})
    assert whole == "How many?\n\n1. three\n2. four"
    assert problem_text(tmp_path, row, columns={"prompt": "question", "answer": "answer"}) == "How many?"
    with pytest.raises(DataError, match="the answer 1 counts choices"):
        problem_text(tmp_path, {**row, "gold": 1}, columns={"prompt": ["question", "choices"], "answer": "gold"})
    with pytest.raises(DataError, match=r"task.columns.answer names one column"):
        problem_text(tmp_path, row, columns={"prompt": "question", "answer": ["answer"]})


def test_a_users_verifier_gets_the_answer_unchanged(tmp_path):
    whole = ["3 + 4 = 7\n#### 7", "so \\boxed{7} or not"]
    golds: list[Any] = [["3", "4"], {"3": [4]}, 5, 0.5, True, ["6"], "x" * 500, *whole, " 7 "]
    rows = [{"problem": f"P{i}", "answer": gold} for i, gold in enumerate(golds)]
    assert [p.answer for p in read(tmp_path, rows, "mine.py:judge")] == [*golds[:-1], "7"]
    solved = [{"question": "Q", "answer": "3 + 4 = 7\n#### 7"}, {"question": "R", "answer": "#### setup\nrun()"}]
    assert [p.answer for p in read(tmp_path, solved, "mine.py:judge")] == ["7", "#### setup\nrun()"]  # GSM8K's layout
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used .1 no answer."):
        read(tmp_path, [*sums(1), {"problem": "P", "answer": None}], "mine.py:judge")


def test_whole_floats_are_written_as_integers(tmp_path):
    golds = [42.0, -3.0, 0.5, 1e300, 7, "8.0"]  # a table of pandas has floats where one integer is missing
    prompts = read(tmp_path, [{"problem": f"P{i}", "answer": gold} for i, gold in enumerate(golds)])
    assert [prompt.answer for prompt in prompts] == ["42", "-3", "0.5", "1e+300", "7", "8.0"]


def test_a_users_verifier_may_compare_with_a_list_of_answers(tmp_path):
    (tmp_path / "mine.py").write_text("def judge(response, answer):\n    return response in answer\n")
    rows = [{"problem": f"P{i}", "answer": [str(i), "?"]} for i in range(17)]
    options = {"data": jsonl(tmp_path / "d.jsonl", rows), "verifier": f"{tmp_path / 'mine.py'}:judge", "heldout": 1}
    task = find_task("math", {**options, "verifier_workers": 1})
    try:
        prompt, gold = task.train[0], task.train[0].answer[0]
        statuses = [v.status for v in task.verify_all([(prompt, gold), (prompt, "?"), (prompt, "no")])]
        assert statuses == ["right", "right", "wrong"]
    finally:
        task.close()


def test_a_list_of_one_answer_is_used_and_a_longer_list_needs_an_index(tmp_path):
    rows = [{"problem": "P", "final_answer": ["7", "or so"], "answer": ["\\boxed{7}"]}]
    assert [p.answer for p in read(tmp_path, rows)] == ["7"]
    columns = {"prompt": "problem", "answer": "final_answer.0"}
    assert [p.answer for p in read(tmp_path, rows, columns=columns)] == ["7"]
    with pytest.raises(DataError, match=r"has no column 'final_answer.2'"):
        read(tmp_path, rows, columns={**columns, "answer": "final_answer.2"})


@pytest.mark.parametrize("right_at", [1.5, 0, -1, float("nan")])
def test_right_at_outside_its_range_is_refused(right_at):
    with pytest.raises(ConfigError, match=r"task.right_at must be "):
        Problems("math", ProblemOptions(data="d.jsonl", right_at=right_at))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_byte_order_mark_is_skipped(tmp_path, name):
    rows = sums(2)
    text = json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\r\n" for row in rows)
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
        file.write(b"\xef\xbb\xbf" + text.encode())
    assert [row for _, row in read_rows(str(tmp_path / name))] == rows


def test_files_with_byte_order_marks_that_were_joined_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n" for row in sums(2)))
    assert [row for _, row in read_rows(str(tmp_path / "a.jsonl"))] == sums(2)


def test_a_file_under_the_name_of_another_format_is_told_the_right_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(sums(2), indent=1))
    with pytest.raises(DataError, match=r"If it holds one list of rows, rename it to .json"):
        list(read_rows(str(path)))
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"a.jsonl is compressed. Rename it: a.jsonl.gz"):
        list(read_rows(str(path)))


def test_every_file_format_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = sums(3)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        assert [row for _, row in read_rows(str(tmp_path / name))] == rows, name


def test_a_folder_is_read_with_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", sums(3))
    assert [dict(row) for _, row in read_rows(str(folder))] == sums(3)
    with pytest.raises(DataError, match=r"Cannot load the data set .*split test"):
        list(read_rows(str(folder), split="test"))


def test_the_held_out_problems_do_not_depend_on_the_order_of_the_rows(tmp_path):
    one = problems(data=jsonl(tmp_path / "a.jsonl", sums(100)), heldout=20)
    other = problems(data=jsonl(tmp_path / "b.jsonl", sums(100)[::-1]), heldout=20)
    assert len(one.heldout) == 20
    assert {p.id for p in one.heldout} == {p.id for p in other.heldout}


def test_too_few_problems_to_hold_out_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"has 40 problems: too few to hold out task.heldout=200"):
        problems(data=jsonl(tmp_path / "d.jsonl", sums(40)), heldout=200)


def test_only_the_evaluation_set_is_read_without_training(tmp_path):
    test = jsonl(tmp_path / "t.jsonl", sums(3))
    options = {"data": "no/such/set", "eval_data": test, "verifier_workers": 1}
    task = find_task("gsm8k", options, to_train=False)
    task.close()
    assert (len(task.train), len(task.heldout)) == (0, 3)


def test_the_prompt_is_the_system_message_and_the_filled_template(tmp_path):
    data = jsonl(tmp_path / "d.jsonl", sums(40))
    prompt = problems(data=data, template="Q: {problem} {x}", system="Be brief.").train[0]
    assert prompt.text[0] == {"role": "system", "content": "Be brief."}
    assert prompt.text[1]["content"].startswith("Q: What is ")
    with pytest.raises(ConfigError, match=r"task.template must hold \{problem\}"):
        problems(data=data, template="Q:")


def test_problems_that_differ_in_case_are_two_and_ids_of_other_problems_stay(tmp_path):
    rows = [{"problem": text, "answer": "1"} for text in ("What  is X?", "What is x?", "what is x?", "Say it.")]
    first, second, third = (prompt.id for prompt in read(tmp_path, rows))  # the third row says what the second says
    # never others, because runs are split and resumed by them
    assert (first, third) == ("math/4a9b65e0e9d4f9e9", "math/4309502f2611ad53")
    assert second not in (first, third)


def test_final_answers_are_in_normal_form(tmp_path):
    task = problems(data=jsonl(tmp_path / "d.jsonl", sums(40)))
    assert task.final_answer("\\boxed{1,000}") == task.final_answer("Answer: 1000.") == "1000"
    assert task.final_answer("\\boxed{0.333}") == "0.333"  # as it was written, for people who read it
    assert task.final_answer("no idea") is task.vote("no idea") is None


@pytest.mark.parametrize(
    "spellings",
    [
        ["\\frac{1}{2}", "0.5", "1/2", "x=\\frac12", "50\\%", "\\mathbf{\\frac{1}{2}}"],
        ["5", "5.0", "x = 5", "5."],
        ["5\\text{ cm}", "5.0 cm", "5\\,\\mathrm{cm}"],
        ["-3", "-\\frac{6}{2}", "x=-3"],
        ["\\sqrt{2}", "\\sqrt2"],
        ["1, 2", "1,2"],
    ],
)
def test_spellings_of_one_answer_are_one_vote(tmp_path, spellings):
    data = jsonl(tmp_path / "d.jsonl", sums(40))
    task = problems(data=data)
    others = ["1/3", "50", "3", "5\\text{ or }6", "5, 6", "x^2=5", "x<5", "-5", "2", "5\\text{ m}"]
    votes = {task.vote(f"\\boxed{{{text}}}") for text in spellings}
    assert len(votes) == 1
    assert not votes & {task.vote(f"\\boxed{{{text}}}") for text in others}
    exact = problems(data=data, verifier="exact")
    assert exact.vote("\\boxed{0.5}") != exact.vote("\\boxed{1/2}")


@pytest.mark.parametrize("unit", ["\\text{", "\\text{a}", " ", "5 ", "a/", "^{", "\\frac{1}{", "1,", "{", "\\text{ }"])
def test_a_vote_on_any_text_is_read_at_once(tmp_path, unit):
    task = problems(data=jsonl(tmp_path / "d.jsonl", sums(40)))
    began = time.process_time()
    task.vote(f"<answer>{(unit * 400)[:399]}x</answer>")
    assert time.process_time() - began < 0.2


def test_a_users_verifier_judges_and_must_give_valid_verdicts_on_gold_answers(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def even(response, answer):\n    return len(response) % 2 == 0\n"
        "def broken(response, answer):\n    raise KeyError(answer)\n"
    )
    data = jsonl(tmp_path / "d.jsonl", sums(40))
    task = find_task("math", {"data": data, "verifier": f"{path}:even", "verifier_workers": 1, "heldout": 1})
    try:
        assert [v.status for v in task.verify_all([(task.train[0], "ab"), (task.train[0], "abc")])] == [
            "right",
            "wrong",
        ]
    finally:
        task.close()
    with pytest.raises(
        ConfigError, match=r"broken could judge none of the first 8 gold answers.*raised KeyError.*Fix the verifier"
    ):
        problems(data=data, verifier=f"{path}:broken")


def test_graded_scores_give_a_note_and_graded_scores_only_give_an_error(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def penalty(response, answer):\n    return 1 if response else -1\n"
        "def partial(response, answer):\n    return 0.3\n"
        "def verl(solution_str, ground_truth):\n    return 1 if ground_truth in solution_str else -1\n"
        "def plain(response, answer):\n    return bool(response)\n"
    )
    data = jsonl(tmp_path / "d.jsonl", sums(40))

    def task(name: str) -> Problems:
        made = find_task("math", {"data": data, "verifier": f"{path}:{name}", "verifier_workers": 1, "heldout": 1})
        assert isinstance(made, Problems)
        return made

    with closing(task("plain")) as plain:
        assert len(plain.notes) == 1
    with closing(task("penalty")) as penalty:
        assert f"{path}:penalty gave the score -1, which counts as wrong" in penalty.notes[1]
        penalty.verify_all([(penalty.train[0], text) for text in ["x"] + [""] * 20])
    with closing(task("verl")) as verl:  # it judged gold answers right: the policy is what is wrong
        assert verl.scores_are_checked
        assert {v.score for v in verl.verify_all([(verl.train[0], "x")] * 20)} == {-1.0}
    with closing(task("partial")) as partial:
        assert not partial.scores_are_checked
        assert "partial gave the score 0.3" in partial.notes[1]
        with pytest.raises(ConfigError, match=r"partial gave none of the first 20 responses a score of 0 or 1"):
            partial.verify_all([(partial.train[0], "x")] * 20)

    options = {"data": data, "verifier": f"{path}:partial", "verifier_workers": 1, "heldout": 1}
    counting = find_task("math", options, graded=True)  # scores count: nothing to note, nothing to refuse
    assert isinstance(counting, Problems)
    with closing(counting):
        assert counting.scores_are_checked
        assert len(counting.notes) == 1
        assert {v.score for v in counting.verify_all([(counting.train[0], "x")] * 20)} == {0.3}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("math", {}, "This task has no problems of its own"),
        ("math", {"dat": "x"}, "The task 'math' has no option 'dat'"),
        ("gsmk8", {}, "There is no task 'gsmk8'; did you mean 'gsm8k'"),
        ("maze", {"data": "x"}, "The task 'maze' has no option 'data'"),
        ("reasoning-gym/chainsum", {}, "no data set 'chainsum'; did you mean 'chain_sum'"),
        ("reasoning-gym/chain_sum", {"min_terms": 2}, "go into task.config"),
        ("reasoning-gym/chain_sum", {"config": {"terms": 2}}, "chain_sum has no setting 'terms'"),
        ("reasoning-gym/chain_sum", {"config": {"min_terms": -1}}, "chain_sum refuses these settings"),
        ("reasoning-gym/chain_sum", {"config": {"size": 5}}, r"task.config sets 'size', .* of its own: task.size\."),
        ("reasoning-gym/chain_sum", {"config": {"seed": 5}}, r"task.config sets 'seed', .* of its own: task.seed\."),
        ("no.such:task", {}, "no module 'no'"),
    ],
)
def test_a_task_that_cannot_be_made_gives_an_error_with_the_cause(name, options, message):
    with pytest.raises(ConfigError, match=message):
        find_task(name, options)


def test_a_users_task_is_found_by_its_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from types import SimpleNamespace\n"
        "def make(size=3):\n    return SimpleNamespace(name='mine', train=range(size), heldout=range(1))\n"
    )
    assert len(find_task(f"{path}:make", {"size": 5}).train) == 5
    assert is_known(f"{path}:make")
    assert not is_known("mine")
