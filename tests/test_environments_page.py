"""The examples of docs/environments.md run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import toys
from chat_toys import chat_tokenizer
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.tasks.environments.channels import EnvironmentServer
from vapo.trainer.record import read_episodes

PAGE = (Path(__file__).parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
PYTHON, YAML = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "yaml"))

pytestmark = pytest.mark.slow


def test_the_environment_of_the_page_is_played_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guess.py").write_text(PYTHON[0])
    rows = [{"problem": f"{i % 10} x" + " x" * (i // 10), "answer": str(i % 10)} for i in range(40)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    task = yaml.safe_load(YAML[0])["task"] | {"heldout": 8, "max_response_tokens": 24, "verifier_workers": 1}
    base = toys.toy_base(tmp_path / "base")
    settings: list[dict[str, Any]] = [toys.SETTINGS, {"model": {"policy": str(base)}, "task": task}]
    config = resolve([file_layer("page", layer) for layer in settings])
    runs.finish(runs.begin(config, tmp_path / "run", SilentView()), report=False)
    episodes = read_episodes(tmp_path / "run" / "rollouts" / "step_000003.jsonl.gz")
    assert {e.verdict.status for e in episodes} == {"right", "wrong"}
    assert max(e.num_turns for e in episodes) > 1
    assert all(turn.author == "policy" for e in episodes for turn in e.turns[-1:])


def test_the_tools_of_the_page_are_offered_and_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counter.py").write_text(PYTHON[1])
    server = EnvironmentServer("counter.py:Counter")
    assert [tool["function"]["name"] for tool in server.tools] == ["add"]
    server.close()
    base = toys.save_model(toys.tiny_llama(max_position_embeddings=300), chat_tokenizer(), tmp_path / "base") or (
        tmp_path / "base"
    )
    smaller = 'output_dir="counter", max_steps=1, num_generations=4, max_completion_length=16, pretraining_steps=0, '
    script = (
        PYTHON[2]
        .replace("Qwen/Qwen3-0.6B", str(base))
        .replace("max_steps=100, ", "")
        .replace('output_dir="counter", ', smaller)
    )
    names: dict[str, Any] = {}
    exec(PYTHON[1] + script, names)
    assert {"rewards/used_tools/mean", "rewards/Counter/mean"} <= names["trainer"].metrics[-1].keys()


def test_the_task_of_the_page_trains(tmp_path: Path):
    names: dict[str, Any] = {}
    exec(PYTHON[3], names)
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", task=names["DoubleTask"]())
    runs.finish(run, report=False)
    assert (tmp_path / "run" / "policy").exists()
