"""A user's modules in the working folder: processes of ours import them, and never in the place of Python's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapo.study.cell_processes import CellProcesses
from vapo.tasks.environments.channels import EnvironmentServer
from vapo.tasks.environments.players import Players
from vapo.tasks.verifiers.pool import VerifierPool
from vapo.types import Prompt, Reply

PROMPT = Prompt("p", "1 + 1 =", "2")
JUDGE = """
import random

from helper_here import ANSWER

def judge(response, answer):
    return response == ANSWER and random.random() < 1

class Guess:
    def reset(self):
        return "go"

    def step(self, response):
        return f"judged {judge(response, '')}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name in ("random", "json", "select", "numbers"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not the library of that name')\n")
    (tmp_path / "helper_here.py").write_text("ANSWER = '2'\n")
    (tmp_path / "judge_here.py").write_text(JUDGE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "judge_below.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", ["judge_here", "mine/judge_below.py"])
def test_a_verifier_and_its_helpers_are_imported_and_a_random_py_replaces_nothing(module: str, folder: Path):
    with VerifierPool(f"{module}:judge", workers=1) as pool:
        assert [verdict.right for verdict in pool.judge([(PROMPT, "2"), (PROMPT, "3")])] == [True, False]


def test_an_environment_and_its_helpers_are_imported_and_a_random_py_replaces_nothing(folder: Path):
    players = Players(EnvironmentServer("judge_here:Guess", workers=1))
    try:
        player = players(PROMPT, 0)
        player.reset()
        assert player.step("2") == Reply("judged True")
        player.close()
    finally:
        players.close()


def test_a_cell_of_a_study_starts_beside_a_random_py(folder: Path):
    assert CellProcesses().run(["recipes"], folder / "cell.log") == 0, (folder / "cell.log").read_text()
