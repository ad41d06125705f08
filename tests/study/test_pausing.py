"""A study pauses while a file is there: cells save and stop, nothing runs, then they resume; and the time left."""

from __future__ import annotations

import json
import os
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from vapo.cli import app
from vapo.errors import ConfigError
from vapo.study import cell_processes, job_count
from vapo.study import runner as runner_module
from vapo.study import study_view as study_view_module
from vapo.study.cell_processes import CellProcesses
from vapo.study.cells import PAUSE, Cell, run_cells
from vapo.study.job_count import default_jobs, jobs_that_fit
from vapo.study.runner import Runner
from vapo.study.study import read_study
from vapo.study.study_run import in_use, locked
from vapo.study.study_view import StudyView, study_view
from vapo.study.time_left import Took, Work, expected_seconds, seconds_left

PROGRAM = """
import signal, sys, time
from pathlib import Path

command, first, *rest = sys.argv[1:]
folder = Path(first if command == "resume" else rest[rest.index("--run-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
ticks = folder / "ticks"
count = int(ticks.read_text()) if ticks.exists() else 0

def stop(*_):
    ticks.write_text(str(count))
    with (folder / "starts").open("a") as file:
        file.write("stopped ")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(folder / "config.yaml").touch()
with (folder / "starts").open("a") as file:
    file.write(command + " ")
while count < 20:
    time.sleep(0.02)
    count += 1
"""


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    (tmp_path / "study.yaml").write_text("recipe: chain\nseeds: [0, 1]\nmethods: [grpo]")
    return run_cells(read_study(str(tmp_path / "study.yaml")), tmp_path / "out", {})


@pytest.fixture
def runner(cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner of two cells, whose processes count to 20 and save on SIGTERM."""
    monkeypatch.setattr(runner_module, "TICK_S", 0.02)
    (tmp_path / "program.py").write_text(PROGRAM)
    said: list[str] = []
    runner = Runner(tmp_path / "out", 2, said.append)
    runner.processes = CellProcesses([sys.executable, "-S", str(tmp_path / "program.py")])
    runner.plan(cells)
    return runner


def said_by(runner: Runner) -> list[str]:
    return runner.say.__self__  # type: ignore[attr-defined]


def started(cells: list[Cell]) -> bool:
    return all((cell.folder / "starts").exists() for cell in cells)


def test_cells_save_in_a_pause_and_resume_after_it(runner: Runner, cells: list[Cell], tmp_path: Path):
    pause, clock = tmp_path / "out" / PAUSE, []

    def look(runner: Runner) -> None:
        said = said_by(runner)
        if started(cells) and not said:
            pause.touch()
        elif "paused: no cell runs now" in said and len(clock) < 3:
            assert runner.paused
            assert runner.processes.idle
            clock.append(runner.processes.clock())
            time.sleep(0.05)
        elif clock:
            pause.unlink(missing_ok=True)

    runner.on_progress = look
    assert runner.run(cells) == []
    assert [(cell.folder / "starts").read_text() for cell in cells] == ["train stopped resume "] * 2
    assert len(set(clock)) == 1  # the time of the cells stands still
    said = said_by(runner)
    assert said[0].startswith("paused: the running cells save and stop.")
    assert said[1:3] == ["paused: no cell runs now", "goes on"]
    assert said[-1].startswith("[2/2] grpo, base shipped, seed ")
    assert not runner.paused
    cards = [json.loads((cell.folder / "cell.json").read_text()) for cell in cells]
    assert {card["outcome"] for card in cards} == {"finished"}


def test_a_study_that_is_paused_before_it_starts_starts_nothing(runner: Runner, cells: list[Cell], tmp_path: Path):
    def look(runner: Runner) -> None:
        assert not any(cell.folder.exists() for cell in cells) or not runner.paused
        (tmp_path / "out" / PAUSE).unlink(missing_ok=True)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PAUSE).touch()
    runner.on_progress = look
    runner.run(cells)
    assert [(cell.folder / "starts").read_text() for cell in cells] == ["train "] * 2


def test_ctrl_c_ends_a_paused_study(runner: Runner, cells: list[Cell], tmp_path: Path):
    def look(runner: Runner) -> None:
        if started(cells):
            (tmp_path / "out" / PAUSE).touch()
        if "paused: no cell runs now" in said_by(runner):
            raise KeyboardInterrupt

    runner.on_progress = look
    with pytest.raises(KeyboardInterrupt):
        runner.run(cells)
    assert runner.processes.idle
    assert {json.loads((c.folder / "cell.json").read_text())["outcome"] for c in cells} == {"unfinished"}
    assert (runner.done, runner.total) == (0, 2)


def test_a_cell_that_does_not_save_in_time_is_killed_and_resumed(runner, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(cell_processes, "STOP_GRACE_S", 0.2)
    deaf = PROGRAM.replace("signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    (tmp_path / "program.py").write_text(deaf.replace("count < 20", "count < 20 or command == 'train'"))

    def look(runner: Runner) -> None:
        pause = tmp_path / "out" / PAUSE
        if "paused: no cell runs now" in said_by(runner):
            pause.unlink(missing_ok=True)
        elif started(cells):
            pause.touch()

    runner.on_progress = look
    assert runner.run(cells) == []
    assert [(cell.folder / "starts").read_text() for cell in cells] == ["train resume "] * 2


def test_a_cell_that_a_signal_ended_is_counted_and_shows_the_end_of_its_log(runner, cells, tmp_path):
    (tmp_path / "program.py").write_text("import os\nprint('disk full', flush=True)\nos.kill(os.getpid(), 9)")
    assert runner.run(cells) == cells
    said = said_by(runner)
    assert said[-1] == "  signal 9; the log ends:\ndisk full\n"
    assert sum(": unfinished, " in line for line in said) == 2
    assert (runner.done, runner.total) == (2, 2)


def test_a_killed_cell_that_goes_on_counts_the_seconds_of_its_steps(runner, cells):
    (cell, _) = cells
    cell.folder.mkdir(parents=True)
    rows = [{"step": 1, "step_time": 40.0}, {"step": 2, "step_time": None}, {"step": 3, "step_time": 60.0}]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell.folder / "config.yaml").touch()
    assert runner.run([cell]) == []
    assert json.loads((cell.folder / "cell.json").read_text())["seconds"] > 100


def test_the_bar_shows_the_pause():
    class Bar:
        def add_task(self, *_: object, **__: object) -> int:
            return 0

        def update(self, _: int, **shown: object) -> None:
            self.shown = shown

    class Paused:
        done, total, seconds_left, paused, running = 1, 3, 60.0, True, {"a": 1}

    bar = Bar()
    StudyView(None, bar).progress(Paused())  # type: ignore[arg-type]
    assert bar.shown == {"completed": 1, "total": 3, "description": "paused", "left": "about 1m 00s left"}


def test_lines_go_to_stderr_if_stdout_is_for_json(capsys: pytest.CaptureFixture[str]):
    with study_view(as_json=True) as view:
        view.say("[1/3] grpo: avg@4 0.500, 12 s; about 24s left")
    with study_view(as_json=False) as view:
        view.say("on stdout")
    shown = capsys.readouterr()
    assert shown.err == "[1/3] grpo: avg@4 0.500, 12 s; about 24s left\n"
    assert shown.out == "on stdout\n"


def test_the_command_makes_and_removes_the_pause(tmp_path: Path):
    command = ["ablate", "chain", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--pause"])
    assert isinstance(done.exception, ConfigError)
    assert "No study in" in str(done.exception)
    (tmp_path / "out").mkdir()
    done = CliRunner().invoke(app, [*command, "--pause", "--json"])
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "out"), "paused": True, "running": False}
    assert (tmp_path / "out" / PAUSE).exists()
    done = CliRunner().invoke(app, [*command, "--go-on"])
    assert "goes on when it is started" in " ".join(done.stdout.split())
    assert not (tmp_path / "out" / PAUSE).exists()
    assert isinstance(CliRunner().invoke(app, [*command, "--go-on", "--pause"]).exception, ConfigError)


def test_a_folder_is_in_use_while_a_study_has_its_lock(tmp_path: Path):
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)


def test_runs_share_a_machine_by_their_threads_and_never_a_gpu(monkeypatch: pytest.MonkeyPatch):
    assert jobs_that_fit(1, cores=64, gpu=True) == 1
    assert jobs_that_fit(1, cores=64, gpu=False) == 64
    assert jobs_that_fit(8, cores=20, gpu=False) == 2
    assert jobs_that_fit(64, cores=2, gpu=False) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    assert default_jobs(None, 500_000_000) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(job_count, "best_device", lambda: torch.device("cpu"))
    assert default_jobs(2, 1) == 3
    monkeypatch.setattr(job_count, "best_device", lambda: torch.device("cuda"))
    assert default_jobs(2, 1) == 1


RUN, TRIAL, CRITIC, BASE = Work("run", 30), Work("tuning", 30), Work("critic", 12), Work("base")


def test_a_part_takes_the_mean_of_its_kind_else_what_its_steps_take_else_the_mean_of_all():
    ended = [Took(RUN, 90.0), Took(RUN, 110.0), Took(BASE, 1000.0)]
    assert expected_seconds(RUN, ended) == 100.0
    assert expected_seconds(CRITIC, ended) == 12 * 200 / 60
    assert expected_seconds(BASE, ended[:2]) == 100.0
    assert expected_seconds(CRITIC, ended[2:]) == 1000.0
    assert expected_seconds(RUN, []) is None


def test_the_time_left_adds_the_stages_each_at_least_its_longest_part():
    ended = [Took(CRITIC, 40.0), Took(TRIAL, 60.0), Took(RUN, 100.0)]
    assert seconds_left([CRITIC], {}, ended, 2) == 40.0  # one critic keeps one of two jobs busy
    assert seconds_left([CRITIC, TRIAL, TRIAL, TRIAL, RUN], {}, ended, 2) == 40 + 90 + 100
    # two runs have 70 and 0 seconds left, and one waits
    assert seconds_left([RUN], {RUN: [30.0, 130.0]}, ended, 2) == 100.0
    assert seconds_left([RUN], {}, [], 2) is None


def test_ended_cells_of_an_earlier_call_tell_the_time_left(cells: list[Cell], tmp_path: Path):
    cells[0].folder.mkdir(parents=True)
    (cells[0].folder / "cell.json").write_text('{"outcome": "finished", "seconds": 50.0}')
    runner = Runner(tmp_path / "out", 1, print)
    runner.plan(cells)
    assert (runner.total, runner.seconds_left) == (1, None)
    runner.learn(cells)
    assert runner.seconds_left == 50.0


def test_the_bar_shows_names_with_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch):
    class Running:
        done, total, seconds_left, paused = 1, 3, None, False
        running = {"vapo [/k], seed 0": 1, "vapo [k=.5], seed 0": 2}  # noqa: RUF012

    console = Console(file=StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(study_view_module, "best_effort_console", lambda stream: console)
    with study_view(as_json=False) as view:
        view.progress(Running())  # type: ignore[arg-type]
    assert "vapo [/k], seed 0; vapo [k=.5], seed 0" in console.file.getvalue()  # type: ignore[attr-defined]
