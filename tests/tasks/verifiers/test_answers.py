"""`last_answer`: the marks of an answer, and which of them counts."""

from __future__ import annotations

import time

import pytest

from vapo.tasks.verifiers.answers import last_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("\\boxed{4} then \\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),  # escaped braces are not counted
        ("$\\boxed {21}$", "21"),
        ("\\boxed 7", "7"),
        ("\\fbox{8}", "8"),
        ("\\boxed{5} and then \\boxed{6", None),  # the last box is not closed, and the first one does not count
        ("\\boxed{5} #### 6", "5"),  # a box takes precedence over other marks
        ("<answer> 42 </answer>", "42"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", None),
        ("so\n#### 1,234\nthe end", "1,234"),
        ("#### Case 2\nso x = 34\nAnswer: 34", "34"),  # a heading before the answer
        ("#### Step 2\nmultiply\n\nThe final answer is 3.", "3"),
        ("#### Answer: 72", "72"),
        ("Answer: 34, or rather\n#### 72", "72"),  # the later mark counts
        ("The answer is 34.\n#### 72\n", "72"),
        ("#### 72\nThe answers vary: 5", "72"),
        ("Answer: 5\n#### Case 2\nwas easy", "5"),
        ("#### Case 2", "Case 2"),
        ("#### 2. Check\nAnswer: 5", "5"),
        ("#### 72\n\nThe answer is correct.", "72"),  # nothing behind a value counts
        ("#### 4 apples\n\nQuestion: Tom...\nAnswer: Let x", "4 apples"),
        ("The final answer is $42$.", "42"),
        ("**Answer:** 42", "42"),
        ("Answer: \\(x+1\\)", "x+1"),
        ("answer is: 7", "7"),
        ("My answers vary: 7", None),
        ("\\boxed{1}, \\boxed{2} and \\boxed{3}", "1, 2, 3"),  # one list
        ("$x=\\boxed{1}$ and $y=\\boxed{2}$", "x = 1, y = 2"),
        ("\\boxed{5} or \\boxed{5}", "5"),
        ("Answer:\n\n$$\n42\n$$", "42"),
        ("Answer:\n42\nIt was hard.", "42"),
        ("Answer - 42", "42"),
        ("Answer -42", None),
        ("The answer is option B because A fails.", "B"),
        ("nothing marked", None),
        ("", None),
    ],
)
def test_the_last_marked_answer_counts(response, answer):
    assert last_answer(response) == answer


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 150_000, "{" * 10**6, "answer " * 150_000, "####" * 250_000, "\\boxed{" + "{" * 10**6]
)
def test_a_megabyte_of_marks_is_read_in_linear_time(text):
    start = time.monotonic()
    last_answer(text)
    assert time.monotonic() - start < 1.0
