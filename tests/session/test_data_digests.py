"""A resume notices that a file of problems was edited since the run began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from vapo.errors import ConfigError
from vapo.reports.live import SilentView
from vapo.session import lifecycle


def write_problems(path: Path, first: int) -> None:
    rows = [{"problem": f"{i} x", "answer": str(i)} for i in range(first, first + 40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_goes_on_with_edited_problems_only_if_that_is_meant(tmp_path: Path):
    for name, first in (("train.jsonl", 100), ("eval.jsonl", 500)):
        write_problems(tmp_path / name, first)
    task = {
        "name": "math",
        "data": str(tmp_path / "train.jsonl"),
        "eval_data": str(tmp_path / "eval.jsonl"),
        "template": "{problem}",
    }
    settings = {
        "task": task,
        "trainer": {"steps": 1, "samples_per_step": 8},
        "rollout": {"max_response_tokens": 8},
        "guards": {"action": "warn"},
        "checkpoint": {"keep": 1},
    }
    folder = tmp_path / "run"
    config = toys.toy_config(toys.toy_base(tmp_path / "base"), settings, preset="grpo")
    lifecycle.finish(lifecycle.begin(config, folder, SilentView()), report=False)
    lifecycle.resume(folder, SilentView()).folder.close()  # as it was

    write_problems(tmp_path / "eval.jsonl", 700)
    with pytest.raises(ConfigError, match=r"content of .*eval\.jsonl \(edited since\).*--allow-change"):
        lifecycle.resume(folder, SilentView())
    lifecycle.resume(folder, SilentView(), allow_change=True).folder.close()
    lifecycle.resume(folder, SilentView()).folder.close()  # meant once
    assert "edited since" in (folder / "events.jsonl").read_text()
