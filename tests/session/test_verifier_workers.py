"""What the verifier workers of a scaled run are told."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from configured import of

from vapo.session.scaling import judge_spec
from vapo.tasks.catalog import find_task
from vapo.tasks.full_task import FullTask

VERIFIERS = """
def signed(response, answer):
    return 1.0 if str(answer) in response else -1.0

def partial(response, answer):
    return 0.3 if str(answer) in response else 0.1
"""


@pytest.mark.parametrize(("verifier", "known"), [("signed", True), ("partial", False)])
def test_workers_check_the_scores_of_a_verifier_that_accepts_no_gold_answer(tmp_path: Path, verifier: str, known: bool):
    (tmp_path / "mine.py").write_text(VERIFIERS)
    rows = "".join(f'{{"problem": "p{at}", "answer": "{at}"}}\n' for at in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    options = {"data": str(tmp_path / "rows.jsonl"), "heldout": 8, "verifier": f"{tmp_path / 'mine.py'}:{verifier}"}
    with closing(FullTask.of(find_task("math", {**options, "verifier_workers": 1}))) as task:
        assert judge_spec(of(), task).graded is known
        assert judge_spec(of("algorithm.reward.by=score"), task).graded
