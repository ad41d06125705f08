"""Events about the process stay in events.jsonl when the log is cut back to a checkpoint; all others go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import toys
from vapo.errors import StoppedError
from vapo.metrics import EventName
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.layers import file_layer
from vapo.trainer import snapshot
from vapo.trainer.record import RunFolder
from vapo.types import Prompt

SHORT_LAMBDA = "of the outcome reaches the first token"
ONE_PROBLEM = "has one problem to train on"


class OneProblem(toys.EchoTask):
    def __init__(self) -> None:
        super().__init__()
        self.train = [Prompt("train-0", "0 x", 0)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return toys.toy_base(tmp_path / "base")


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def alarms(folder: Path, text: str) -> int:
    return sum(text in event.get("message", "") for event in events(folder) if event["event"] == EventName.ALARM)


def stopped(base: Path, folder: Path, *layers: dict[str, Any], task: toys.EchoTask | None = None) -> None:
    """A run that was stopped after its first joint step."""
    run = toys.toy_run(base, folder, *layers, task=task)
    run.observer.step = lambda metrics: setattr(run, "stop_requested", metrics["phase"] == "train")
    with pytest.raises(StoppedError):
        runs.finish(run, report=False)


def resume(folder: Path, changes: dict[str, Any] | None = None, **how: Any) -> Any:
    return runs.resume(folder, SilentView(), task=toys.EchoTask(), changes=[file_layer("test", changes or {})], **how)


def test_a_resume_that_is_killed_before_its_next_save_stays_in_the_log(base: Path, tmp_path: Path):
    stopped(base, tmp_path / "run")
    for _ in range(2):
        resume(tmp_path / "run").folder.close()
    runs.finish(resume(tmp_path / "run"), report=False)
    assert [e["step"] for e in events(tmp_path / "run") if e["event"] == EventName.RESUMED] == [1, 1, 1]


def test_a_resume_stays_in_the_log_once_after_a_rollback_to_the_checkpoint_before_it(base: Path, tmp_path: Path):
    stopped(base, tmp_path / "run")
    run = resume(tmp_path / "run")
    snapshot.roll_back(run, "a test")
    run.folder.close()
    kinds = [event["event"] for event in events(tmp_path / "run")]
    assert kinds.count(EventName.RESUMED) == 1
    assert kinds.count(EventName.ROLLED_BACK) == 1


def test_a_resume_removes_the_rollouts_of_later_steps_and_a_rollback_keeps_them(base: Path, tmp_path: Path):
    stopped(base, tmp_path / "run", {"trainer": {"save_rollouts_every": 1}})
    rollouts = tmp_path / "run" / "rollouts"
    kept = sorted(file.name for file in rollouts.iterdir())
    assert "step_000001.index.json.gz" in kept
    for name in ("step_000002.jsonl.gz", "step_000002.index.json.gz", "pretrain_000009.jsonl.gz"):
        (rollouts / name).touch()
    run = resume(tmp_path / "run")
    assert sorted(file.name for file in rollouts.iterdir()) == kept
    (rollouts / "step_000002.jsonl.gz").touch()
    snapshot.roll_back(run, "a test")
    assert (rollouts / "step_000002.jsonl.gz").exists()
    run.folder.close()


def test_alarms_raised_before_the_first_step_are_in_the_log(base: Path, tmp_path: Path):
    rate = {"trainer": {"actor_lr": 5.0}}
    run = toys.toy_run(base, tmp_path / "run", rate, task=OneProblem())
    for text in (SHORT_LAMBDA, ONE_PROBLEM, "trainer.actor_lr=5"):
        assert alarms(tmp_path / "run", text) == 1
    snapshot.restore(run, None)  # as a resume without a checkpoint does
    for text in (SHORT_LAMBDA, ONE_PROBLEM, "trainer.actor_lr=5"):
        assert alarms(tmp_path / "run", text) == 1
    run.folder.close()


def test_a_resume_checks_the_rate_and_lambda_again_and_logs_each_alarm_once(base: Path, tmp_path: Path):
    stopped(base, tmp_path / "run")
    assert alarms(tmp_path / "run", "trainer.actor_lr=5") == 0
    resume(tmp_path / "run", {"trainer": {"actor_lr": 5.0}}, allow_change=True).folder.close()
    run = resume(tmp_path / "run")
    run.folder.close()
    assert alarms(tmp_path / "run", "trainer.actor_lr=5") == 1
    assert alarms(tmp_path / "run", SHORT_LAMBDA) == 1
    shown: list[str] = []
    view = SilentView()
    view.alarm = shown.append
    runs.resume(tmp_path / "run", view, task=toys.EchoTask()).folder.close()
    assert any("trainer.actor_lr=5" in message for message in shown)  # shown again, though logged once
    assert any(SHORT_LAMBDA in message for message in shown)


def test_cutting_the_logs_keeps_lasting_events_and_drops_all_other_lines(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.event("alarm", message="first")
    lengths = folder.log_bytes()
    folder.event("alarm", message="lost")
    folder.event("resumed", lasting=True, step=1)
    folder.metrics({"step": 1})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "resumed", "lasting": true, "st')  # torn by a kill
    for _ in range(2):
        folder.cut_logs(lengths)
        assert [(e["event"], e.get("message")) for e in events(tmp_path)] == [("alarm", "first"), ("resumed", None)]
        assert (tmp_path / "metrics.jsonl").read_text() == ""
    folder.close()


def test_lasting_events_are_written_later_where_the_disk_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(tmp_path)
    folder.event("alarm", message="lost")
    folder.event("resumed", lasting=True, step=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_text", full)
    folder.cut_logs({})
    assert events(tmp_path) == []
    folder.log_bytes()
    assert [event["event"] for event in events(tmp_path)] == ["resumed"]
    folder.close()


def test_lasting_events_are_synced_to_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or real(file))
    folder = RunFolder(tmp_path)
    folder.event("alarm", message="of a step")
    assert synced == []
    folder.event("resumed", lasting=True, step=1)
    assert synced == [(tmp_path / "events.jsonl").stat().st_size]
    folder.close()
