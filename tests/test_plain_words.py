"""Words for people: counts with their nouns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vapo
from vapo.errors import counted
from vapo.trainer.outcomes import lesson

NOUNS = "steps|responses|prompts|samples|rows|trials|items|cells|seeds|rollbacks|problems|duplicates|moves|verdicts"


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(1, "step", "1 step"), (0, "step", "0 steps"), (2, "held-out prompt", "2 held-out prompts"),
     (8192, "response", "8,192 responses")],
)  # fmt: skip
def test_a_noun_takes_an_s_unless_it_is_one(count: int, noun: str, words: str):
    assert counted(count, noun) == words


def test_one_response_in_one_step_is_singular():
    right = {"responses": 1, "right": 1}
    assert lesson(right, f"in {counted(1, 'step')}").startswith("The only response in 1 step is right: ")
    several = {"responses": 4, "right": 4}
    assert lesson(several, f"in {counted(2, 'step')}").startswith("All 4 responses in 2 steps are right: ")


def test_no_message_puts_a_plural_behind_a_count_by_hand():
    # "1 steps": a number in braces and a plural after it
    by_hand = re.compile(rf'f".*\{{(?:len\([^{{}}]*\)|count|total|steps|num_\w+)(?::,)?\}} (?:[a-z-]+ )?(?:{NOUNS})\b')
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(vapo.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if by_hand.search(line) and "> 1" not in line
    ]
    allowed = ("graded.py", "draws.py", "generate_engine.py", "torch_engine.py")  # 8 of them; and errors of code
    assert [line for line in found if not line.startswith(allowed)] == []
