"""`vapo critic RUN --every N`: which checkpoints count, what is written, that it goes on where it stopped, mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import toys
import vapo
from vapo import cli
from vapo.errors import ConfigError
from vapo.json_text import json_text
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.judge_options import FOLDER, JudgeOptions
from vapo.session.judged_training import WholeCourse, moments

FEW: dict[str, Any] = {"task": "toys:EchoTask", "responses": 3, "continuations": 2, "fractions": (0.0, 0.5)}


class Steps(SilentView):
    """Keeps the course of the progress."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self.steps: list[int] = []
        self.activities: list[str] = []
        self.notes: list[str] = []

    def phase(self, name: str, done: int, total: int) -> None:
        self.phases.append((name, done, total))

    def step(self, metrics: dict[str, Any]) -> None:
        self.steps.append(metrics["step"])

    def progress(self, what: str, done: int, total: int | None) -> None:
        self.activities.append(what)

    def note(self, message: str) -> None:
        self.notes.append(message)


def trained(folder: Path, *layers: dict[str, Any], preset: str = "vapo") -> Path:
    base = toys.toy_base(folder.parent / "base")
    return runs.finish(toys.toy_run(base, folder, *layers, preset=preset), report=False).folder.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run of 2 + 3 steps that keeps every checkpoint."""
    return trained(tmp_path_factory.mktemp("judged") / "run")


def test_the_start_the_multiples_and_the_end_are_judged(run: Path):
    assert [(m.step, m.folder.name) for m in moments(run, 1)] == [
        (0, "pretrain_000002"),
        (1, "step_000001"),
        (2, "step_000002"),
        (3, "step_000003"),
    ]
    assert [m.step for m in moments(run, 2)] == [0, 2, 3]
    assert [m.step for m in moments(run, 50)] == [0, 3]


def test_each_checkpoint_is_judged_as_it_would_be_alone(run: Path, tmp_path: Path):
    view = Steps()
    course = vapo.judge_training(run, 2, **FEW, out=tmp_path, observer=view)
    assert [row["step"] for row in course["checkpoints"]] == [0, 2, 3]
    alone = vapo.judge_critic(run / "checkpoints" / "step_000002", **FEW, out=tmp_path / "alone")
    row = course["checkpoints"][1]
    assert row["figures"]["ceiling"]["value"] == alone.figures["ceiling"].value
    share = alone.figures["explained_variance"].value / alone.figures["ceiling"].value
    assert row["figures"]["explained_share"]["value"] == pytest.approx(share)
    assert row["prompt_ceiling"]["value"] == alone.by_position["ceiling"][0].value
    assert json.loads((tmp_path / "training.json").read_text()) == json.loads(json_text(course))
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "training.html").read_text()
    assert "step_000002/judgement.html" in page
    assert "share of the ceiling" in page
    assert "nan" not in page.lower().replace("nant", "")
    assert course["conclusion"].startswith("From step 0 to step 3 the ceiling moves from")
    assert view.steps == [1, 2, 3]
    assert any(what.startswith("step_000002 (2 of 3): ") for what in view.activities)


def test_it_goes_on_where_it_stopped(run: Path, tmp_path: Path):
    whole = vapo.judge_training(run, 2, **FEW, out=tmp_path)
    lines = (tmp_path / "step_000002" / "judged.jsonl").read_text()
    shutil.rmtree(tmp_path / "step_000003")
    view = Steps()
    again = vapo.judge_training(run, 2, **FEW, out=tmp_path, observer=view)
    assert json_text(again) == json_text(whole)
    assert view.steps == [1]
    assert (tmp_path / "step_000002" / "judged.jsonl").read_text() == lines


def test_progress_counts_the_checkpoints_that_are_to_come():
    view = Steps()
    # 64 prompts of 1,024 continuations make 64 blocks at a checkpoint
    course = WholeCourse(view, 3, JudgeOptions(responses=4, continuations=256, fractions=(0.0,)))
    course.begin("a", 0)
    course.phase("drawing", 0, 64)
    course.step({"step": 1})
    course.step({"step": 64})
    course.begin("b", 1)  # all of it is there already
    course.begin("c", 2)
    course.phase("drawing", 0, 10)
    course.step({"step": 10})
    assert view.phases == [("drawing of 3 checkpoints", 0, 192), ("drawing of 3 checkpoints", 64, 74)]
    assert view.steps == [1, 64, 74]
    course.note("once")
    course.note("once")
    assert view.notes == ["once"]


def test_a_run_without_a_critic_gets_the_ceiling_along_training(tmp_path: Path):
    path = trained(tmp_path / "grpo", preset="grpo")
    course = vapo.judge_training(path, 3, **FEW)
    assert [row["name"] for row in course["checkpoints"]] == ["pretrain_000000", "step_000003"]
    assert all("explained_variance" not in row["figures"] for row in course["checkpoints"])
    assert course["conclusion"].endswith(": what any critic could explain.")
    assert (path / FOLDER / "training.html").exists()


def test_a_critic_that_has_learned_nothing_yet_is_no_mistake(tmp_path: Path):
    path = trained(tmp_path / "run", {"trainer": {"pretraining_steps": 0}})
    course = vapo.judge_training(path, 3, **FEW, out=tmp_path / "out")
    first, last = course["checkpoints"]
    assert (first["critic"], "explained_variance" in first["figures"]) == (None, False)
    assert "explained_variance" in last["figures"]
    assert "explains of it from nothing to" in course["conclusion"]


def test_adapters_are_judged_on_the_base_they_belong_to(tmp_path: Path):
    path = trained(tmp_path / "run", {"model": {"policy_lora": 2, "critic_lora": 2}})
    course = vapo.judge_training(path, 3, **FEW, out=tmp_path / "out")
    assert [row["step"] for row in course["checkpoints"]] == [0, 3]


def test_a_run_that_kept_too_little_is_refused_with_the_settings(run: Path, tmp_path: Path):
    path = shutil.copytree(run, tmp_path / "run")
    for folder in (path / "checkpoints").iterdir():
        if folder.name != "step_000003":
            shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"kept 1 checkpoint for --every 1.*checkpoint.every=6 --set checkpoint.keep"):
        moments(path, 1)
    with pytest.raises(ConfigError, match=r"every must be at least 1, got 0: 1 judges all"):
        vapo.judge_training(path, 0)
    with pytest.raises(ConfigError, match=r"is no run directory\. --every judges the checkpoints"):
        moments(path / "policy", 1)


def test_the_command_prints_the_table_and_refuses_what_has_no_course(run: Path, tmp_path: Path, monkeypatch, capsys):
    few = ["--task", "toys:EchoTask", "-g", "3", "-k", "2", "--at", "0,0.5", "--out", str(tmp_path), "--every", "3"]

    def command(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["vapo", "critic", *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert command(str(run), *few) == 0
    text = capsys.readouterr().out
    for words in ("along training", "ceiling", "training.html", "From step 0 to step 3"):
        assert words in text, words
    assert command(str(run), *few, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "training.json").read_text())
    assert command("--policy", "builtin", "--every", "3") == 2
    assert "give a run and no others" in capsys.readouterr().err
