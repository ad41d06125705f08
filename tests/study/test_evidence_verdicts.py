"""results/evidence: the verdicts on the predictions, as the page has them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EVIDENCE = Path(__file__).resolve().parents[2] / "results" / "evidence"


def test_a_lead_is_positive_where_the_other_method_scores_less():
    lead = runpy.run_path(str(EVIDENCE / "analysis.py"))["lead"]
    gap = {"mean": -0.2, "low": -0.3, "high": -0.1, "p_holm": 0.03}
    methods = {"grpo": {"difference": {"final": gap}}, "dapo": {"difference": {"final": gap | {"mean": 0.2}}}}
    assert lead(methods, "grpo", "final") == (0.2, 0.1, 0.3, True)
    assert lead(methods, "grpo", "final", 0.025) == (0.2, 0.1, 0.3, False)
    assert lead(methods, "dapo", "final")[3] is False
    assert lead(methods, "rloo", "final") is None


def printed_by(*command: str) -> str:
    return subprocess.run([sys.executable, *command], cwd=EVIDENCE, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "command",
    [
        ["analysis.py", "far/results.json"],
        ["analysis.py", "code/results.json"],
        ["analysis.py", "chain/results.json"],
        ["analysis.py", "maze/results.json"],
        ["other_regimes.py", "chain/results.json"],
        ["confirm.py", "far-confirm/results.json"],
        ["rare.py", "far-rare/results.json"],
        ["larger.py", "far-1m/results.json"],
        ["code_removals.py", "code-removals/results.json"],
    ],
)
def test_the_page_has_what_the_analysis_prints(command: list[str]):
    printed = printed_by(*command)
    assert len(printed.splitlines()) > 5
    assert f"```\n{printed}```" in (EVIDENCE / "README.md").read_text()


def test_the_page_has_what_was_found_of_the_mazes_prediction():
    chain = printed_by("other_regimes.py", "chain/results.json")
    both = printed_by("other_regimes.py", "chain/results.json", "maze/results.json", "far/results.json")
    about_the_maze = both.removeprefix(chain)
    assert about_the_maze.count("by less") == 6
    assert f"```\n{about_the_maze}```" in (EVIDENCE / "README.md").read_text()


def test_the_page_has_the_goals_that_runs_reach():
    far = ["far/results.json", "far-confirm/results.json", "far-rare/results.json", "far-removals/results.json"]
    files = [*far, "far-1m/results.json", "../residual/results.json", "maze/results.json"]
    printed = printed_by("goals.py", *files)
    assert "| ppo | 10 of 10 |" in printed
    assert printed in (EVIDENCE / "README.md").read_text()


def test_methods_are_level_only_if_neither_is_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EVIDENCE)
    level = runpy.run_path(str(EVIDENCE / "larger.py"))["level"]
    assert level((0.01, -0.03, 0.05, False))
    assert not level((-0.05, -0.08, -0.02, False))  # the other is ahead
    assert not level((0.05, 0.02, 0.08, False))
    assert not level((0.1, -0.1, 0.3, False))
    assert not level(None)


def test_the_predictions_are_those_of_the_files_study(tmp_path: Path):
    found = json.loads((EVIDENCE / "far-confirm" / "results.json").read_text())
    for run in found["runs"]:
        run["record"]["task"] = "reasoning-gym/basic_arithmetic"
    (tmp_path / "sums.json").write_text(json.dumps(found))
    printed = printed_by("larger.py", str(tmp_path / "sums.json"))
    assert "NOT met within 0.06 of vapo with a group baseline, not told apart: +0.295 [+0.170, +0.420]" in printed
    assert "met     vapo without value-pretraining ends 0.1 or more above grpo: +0.194" in printed
    assert "met     grpo gains 0.15 or more: +0." in printed
    printed = printed_by("larger.py", "far-confirm/results.json")
    assert "met     ahead of grpo at equal steps: +0.194 [+0.074, +0.320]" in printed
    assert "end below 0.55: 0 of 10" in printed
