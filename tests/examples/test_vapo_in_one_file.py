"""The example runs, uses the mathematics alone, and its reward rises."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "examples" / "vapo_in_one_file.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vapo_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_imports_only_vapo_algo():
    imported = [node.module for node in ast.walk(ast.parse(FILE.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [name for name in imported if name and name.startswith("vapo")] == ["vapo.algo"]
    assert len(FILE.read_text().splitlines()) <= 160


def test_the_example_runs_two_steps(example: ModuleType, capsys: pytest.CaptureFixture[str]):
    accuracy = example.main(steps=2, pretraining_steps=1)
    assert len(accuracy) == 2
    assert all(0 <= share <= 1 for share in accuracy)
    assert capsys.readouterr().out.startswith("step   1  right")


def test_the_critic_starts_at_zero_and_right_answers_are_verified(example: ModuleType):
    policy, critic = example.networks(0)
    tokens, mask, right = example.rollout(policy)
    assert not example.values_of(critic, tokens).any()
    for row, inside, verdict in zip(tokens.tolist(), mask.tolist(), right.tolist(), strict=True):
        response = [token for token, counts in zip(row[1:], inside, strict=True) if counts]
        assert verdict == (len(response) > 1 and response[-1] == example.STOP and response[-2] == row[0])


@pytest.mark.slow
def test_the_reward_of_the_example_rises(example: ModuleType):
    accuracy = example.main(steps=60)
    assert fmean(accuracy[-10:]) > 2 * fmean(accuracy[:10])
