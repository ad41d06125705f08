"""Files of rows: CSV, and JSON files whose rows are under a key."""

from __future__ import annotations

import json

import pytest

from vapo.errors import DataError
from vapo.tasks.row_files import read_rows


def test_a_csv_file_is_read_as_texts_with_quotes_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(
        b'\xef\xbb\xbfproblem, answer\r\n"1, ""2"",\nthen?",007\r\n\r\n\xc3\xa9?,\r\n"last","\\frac{1}{2}"'
    )
    assert list(read_rows(str(path))) == [
        (f"{path} line 2", {"problem": '1, "2",\nthen?', "answer": "007"}),
        (f"{path} line 5", {"problem": "\u00e9?", "answer": ""}),
        (f"{path} line 6", {"problem": "last", "answer": "\\frac{1}{2}"}),
    ]


def test_a_value_of_a_csv_file_may_be_as_long_as_a_book(tmp_path):
    (tmp_path / "d.csv").write_text(f"problem,answer\n{'word ' * 50_000},2\n")
    [(_, row)] = read_rows(str(tmp_path / "d.csv"))
    assert len(row["problem"]) == 250_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("problem,answer\n1, 2?,3\n", r"line 2 has 3 values, the header 2 names\. Put values with commas"),
        ('problem,answer\na,1\n"b,2\nc,3\n', r"line 3 is not CSV: unexpected end of data"),
        ("a,a\n1,2\n", r"two columns 'a'"),
        ("problem;answer\n1;2\n", r"has ';' between its values.*read_csv\('d.csv', sep=';', dtype=str\)"),
        ("problem\tanswer\n1\t2\n", r"has '\\t' between its values"),
    ],
)
def test_a_csv_file_that_cannot_be_read_gives_an_error_with_the_line(tmp_path, content, message):
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / "d.csv")))


def test_the_rows_of_a_json_file_may_be_under_a_key(tmp_path):
    rows = [{"problem": "1 + 1?", "answer": "2"}]
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"version": "1.1", "tags": ["sums"], "data": rows}))
    assert [row for _, row in read_rows(str(path))] == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [{"a": 1}], "test": [{"a": 2}]}, r"found a dict\. Rows are under train, test: write each of them"),
        ({"problem": {"0": "1 + 1?"}, "answer": {"0": "2"}}, r"orient='records'"),
        ({"messages": [{"role": "user", "content": "Hi"}], "answer": "2"}, r"one row per line, rename it to .jsonl"),
        ("text", r"must hold a list of rows, found a str"),
    ],
)
def test_a_json_file_without_one_list_of_rows_is_refused_with_what_it_holds(tmp_path, data, message):
    (tmp_path / "d.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / "d.json")))
