"""Rows that cannot be used: dropped and counted, or an error that names them."""

from __future__ import annotations

import pytest
from row_toys import jsonl, problems, sums

from vapo.errors import DataError
from vapo.tasks.row_files import read_rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}\n{bad\n", r"d.jsonl line 2 is not JSON: Expecting property name .* at column 2"),
        ('{"a": 1}\n\n{"a": 1\n', "d.jsonl line 3 is not JSON: Expecting ',' delimiter at column 8"),
        ('\ufeff{"a": 1}\r\n\r\n  {"a":\r\n{"a": 2}\r\n', "d.jsonl line 3 is not JSON: Expecting value at column 8"),
        ('{"a": 1}\n\n  \n"', "d.jsonl line 4 is not JSON"),
        ("[1]\n", r"line 1 holds a list, not a row of columns"),
        ('["1 + 1?", "2"]\n', r"line 1 holds a list, not a row of columns"),  # no pair of turns
        ('{}\n{"a": ' + "1" * 5000 + "}\n", "d.jsonl line 2 has a number with too many digits to be read"),
        ('{}\n{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "d.jsonl line 2 is nested too deeply to be read"),
        ("\n", "is empty"),
        ('{"problem": "\udce9"}\n', "d.jsonl is not UTF-8"),
    ],
)
def test_an_unreadable_row_gives_an_error_with_file_and_line(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        [dict(row) for _, row in read_rows(str(path))] or problems(data=str(path))


def test_a_few_bad_rows_are_dropped_and_counted(tmp_path):
    rows = [*sums(300), {"problem": "Prove it.", "answer": "\\boxed{"}, {"problem": "", "answer": "1"}]
    task = problems(data=jsonl(tmp_path / "d.jsonl", rows))
    assert len(task.train) + len(task.heldout) == 300
    assert [d.where.rpartition(" ")[2] for d in task.drops] == ["301", "302"]
    assert "2 bad rows dropped (first: " in task.notes[0]


def test_a_row_with_half_a_surrogate_pair_is_dropped(tmp_path):
    rows = [*sums(300), {"problem": "What is \ud83d?", "answer": "1"}, {"problem": "What?", "answer": "1\ud83d"}]
    task = problems(data=jsonl(tmp_path / "d.jsonl", rows))
    assert [d.where.rpartition(" ")[2] for d in task.drops] == ["301", "302"]
    assert {d.kind for d in task.drops} == {"half a surrogate pair, which is no character"}


def test_rows_are_counted_by_kind_of_fault_without_its_details(tmp_path):
    bad = [{"problem": f"P{i}", "answer": "x" * (500 + i)} for i in range(3)]
    with pytest.raises(DataError, match=r"3 of 43 rows cannot be used \(3 a solution, not an answer\)"):
        problems(data=jsonl(tmp_path / "d.jsonl", [*sums(40), *bad]))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"problem": "P", "answer": None}, "no answer"),
        ({"problem": "P", "answer": float("nan")}, "no answer"),
        ({"problem": "P", "answer": ["1", "2"]}, "a list of 2 answers: name one, as in task.columns="),
        ({"problem": "P", "answer": "  "}, "an empty answer"),
        ({"problem": " ", "answer": "1"}, "an empty problem"),
        ({"problem": 5, "answer": "1"}, "a problem of type int"),
        ({"problem": [{"role": "user"}], "answer": "1"}, "a message without role and content"),
        ({"answer": "1"}, "not laid out like the first row"),
        ({"problem": "P", "answer": "x" * 500}, "a solution, not an answer: 500 characters"),
        ({"problem": "What is 1 + 1?", "answer": "3"}, "two answers to one problem"),
    ],
)
def test_more_than_one_percent_of_bad_rows_is_an_error_that_names_them(tmp_path, bad, reason):
    with pytest.raises(DataError, match=rf"1 of 41 rows cannot be used[\s\S]*d.jsonl line 41: {reason}"):
        problems(data=jsonl(tmp_path / "d.jsonl", [*sums(40), bad]))


def test_bad_rows_of_the_evaluation_set_are_not_hidden_by_a_large_training_set(tmp_path):
    data = jsonl(tmp_path / "d.jsonl", sums(300))
    bad = [{"problem": "", "answer": "1"}, {"problem": "Prove it.", "answer": "\\boxed{"}]
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used[\s\S]*test.jsonl line 1: an empty problem"):
        problems(data=data, eval_data=jsonl(tmp_path / "test.jsonl", bad))
    with pytest.raises(DataError, match=r"test.jsonl is empty"):
        problems(data=data, eval_data=jsonl(tmp_path / "test.jsonl", []))


def test_a_row_whose_gold_answer_the_verifier_rejects_is_bad(tmp_path):
    rows = [*sums(40), {"problem": "Empty?", "answer": "\\text{ }"}]
    with pytest.raises(DataError, match="its verifier does not accept the gold answer"):
        problems(data=jsonl(tmp_path / "d.jsonl", rows))


def test_duplicate_rows_are_used_once(tmp_path):
    twice = [*sums(40), {"problem": "What is  3 + 1?", "answer": "4"}]  # equal apart from spaces
    task = problems(data=jsonl(tmp_path / "d.jsonl", twice))
    assert (len(task.train) + len(task.heldout), task.duplicates, task.drops) == (40, 1, [])


def test_problems_that_differ_in_case_only_are_two(tmp_path):
    cases = [{"problem": f"{x}=1, what is 2{x}?", "answer": a} for x, a in (("x", "2"), ("X", "3"))]
    task = problems(data=jsonl(tmp_path / "d.jsonl", [*sums(40), *cases]))
    assert (len(task.train) + len(task.heldout), task.duplicates, task.drops) == (42, 0, [])


def test_training_problems_that_are_in_the_evaluation_set_are_dropped(tmp_path):
    train, test = jsonl(tmp_path / "train.jsonl", sums(400)), jsonl(tmp_path / "test.jsonl", sums(3, start=398))
    task = problems(data=train, eval_data=test)
    assert not {p.id for p in task.train} & {p.id for p in task.heldout}
    assert [d.reason for d in task.drops] == ["also in the evaluation set"] * 2
    with pytest.raises(DataError, match=r"60 of 400 rows cannot be used \(60 also in the evaluation set\)"):
        problems(data=train, eval_data=jsonl(tmp_path / "test.jsonl", sums(60)))
