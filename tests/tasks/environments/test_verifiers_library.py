"""Environments of the `verifiers` library as tasks: of a stand-in with its interface, and of the package itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from vapo.errors import ConfigError
from vapo.tasks.catalog import check_task, find_task
from vapo.types import Reply

FAKE = Path(__file__).parents[2] / "fake_verifiers"
NAME = "vapo.tasks.environments.verifiers_library:load"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(FAKE), prepend=":")
    yield
    sys.modules.pop("verifiers", None)


def test_an_environment_of_the_library_is_played_and_scored_by_its_rubric(library):
    task = check_task(find_task(NAME, {"environment": "higher", "arguments": {"numbers": 20}, "right_at": 0.5}))
    assert (task.name, len(task.train), len(task.heldout)) == ("verifiers/higher", 18, 2)
    assert task.environment is not None
    prompt = next(p for p in task.train if int(p.answer) > 5)
    won, lost = task.environment(prompt, 0), task.environment(prompt, 1)
    assert won.reset() == lost.reset() == ""
    assert won.step("1") == Reply("higher", messages=({"role": "user", "content": "higher"},))
    assert won.step(prompt.answer) == Reply(done=True)
    assert [lost.step("1").done for _ in range(3)] == [False, False, True]
    won.close(), lost.close()
    assert (won.verdict.status, won.verdict.score) == ("right", 0.5)
    assert (lost.verdict.status, lost.verdict.score) == ("wrong", 0.0)
    task.close()


def test_an_environment_that_is_missing_is_named(library):
    with pytest.raises(ConfigError, match=r"task\.environment=lower of the verifiers library cannot be made"):
        find_task(NAME, {"environment": "lower"})


def test_another_series_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "verifiers.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "verifiers", raising=False)
    with pytest.raises(ConfigError, match=r"verifiers<0\.2"):
        find_task(NAME, {"environment": "higher"})
    sys.modules.pop("verifiers", None)


@pytest.mark.skipif(importlib.util.find_spec("verifiers") is None, reason="the verifiers library is not installed")
def test_an_environment_of_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "higher_env.py").write_text(
        "import verifiers as vf\n"
        "from datasets import Dataset\n"
        "class Higher(vf.MultiTurnEnv):\n"
        "    async def env_response(self, messages, state, **kwargs):\n"
        "        said = int(messages[-1].content)\n"
        "        if said == int(state['answer']):\n"
        "            state['final_env_response'] = [{'role': 'user', 'content': 'yes'}]\n"
        "            return state['final_env_response']\n"
        "        return [{'role': 'user', 'content': 'higher'}]\n"
        "def won(state):\n"
        "    return float(state.get('final_env_response') is not None)\n"
        "def load_environment():\n"
        "    rows = [{'question': f'Guess {i}.', 'answer': str(i)} for i in range(20)]\n"
        "    return Higher(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[won]), max_turns=3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    task = check_task(find_task(NAME, {"environment": "higher-env"}))
    assert task.environment is not None
    prompt = task.train[0]
    played = task.environment(prompt, 0)
    assert played.reset() == ""
    assert played.step("99").text == "higher"
    assert played.step(prompt.answer).done
    played.close()
    assert played.verdict.right
    task.close()
