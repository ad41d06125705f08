"""Run the cells of a study, each as an ordinary run in its own process.

Finished cells are skipped, killed ones resumed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vapo.errors import VapoError, counted
from vapo.metrics import EvaluationLabel, Phase
from vapo.reports.formatting import duration
from vapo.reports.runfiles import number, read_jsonl
from vapo.session.run_dirs import kept_weights_only
from vapo.study.cell_cards import critic_card, ended, outcome_of, read_card, write_json
from vapo.study.cell_processes import CellProcesses
from vapo.study.cells import PAUSE, Cell, base_folder, describe, run_cells
from vapo.study.comparison.compared_run import Outcome
from vapo.study.study import Study
from vapo.study.time_left import Took, Work, seconds_left, work_of

LOG_TAIL = 1500
"""The number of characters shown from the end of a failed cell's log."""
TICK_S = 1.0
"""Seconds between two looks at the file that pauses a study and updates of the view."""

Report = Callable[[str], None]


class StudyError(VapoError):
    """Some cells failed; the finished ones are kept."""

    exit_code = 1


@dataclass
class Runner:
    """Runs cells, `jobs` at a time, and pauses while the file `pause` is there. `say` is called with lines of text."""

    out: Path
    jobs: int
    say: Report
    on_progress: Callable[[Runner], None] = lambda runner: None
    processes: CellProcesses = field(default_factory=CellProcesses)
    done: int = 0
    running: dict[str, Path] = field(default_factory=dict)
    _left: dict[Path, Work] = field(default_factory=dict)
    """What has not ended yet, by folder."""
    _started: dict[Path, float] = field(default_factory=dict)
    """The time on the processes' clock at which each running part started."""
    _took: list[Took] = field(default_factory=list)
    _said_idle: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def logs(self) -> Path:
        """The folder with the output of the cells' processes."""
        return self.out / "logs"

    @property
    def total(self) -> int:
        """The number of cells and base models, ended ones included."""
        return self.done + len(self._left)

    @property
    def paused(self) -> bool:
        """Whether a pause holds the cells."""
        return self.processes.paused

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left of the whole study, pauses left out; None before the first cell has ended."""
        now = self.processes.clock()
        with self._lock:
            waiting = [work for folder, work in self._left.items() if folder not in self._started]
            running: dict[Work, list[float]] = {}
            for folder, since in self._started.items():
                running.setdefault(self._left[folder], []).append(now - since)
            return seconds_left(waiting, running, self._took, self.jobs)

    def plan(self, cells: Sequence[Cell], bases: Sequence[Path] = ()) -> None:
        """Count these as the parts that are left, besides those that have ended; ended cells tell what a cell takes."""
        with self._lock:
            self._left = {base: Work("base") for base in bases}
            self._left |= {cell.folder: work_of(cell) for cell in cells if not ended(cell)}

    def learn(self, cells: Sequence[Cell]) -> None:
        """Estimate the time left from cells that have finished in this folder before, too."""
        for cell in cells:
            card = read_card(cell.folder)
            if card.get("outcome") == "finished" and "seconds" in card:
                self._took.append(Took(work_of(cell), float(card["seconds"])))

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run all cells that have not ended, and return those that failed. A diverged run has ended."""
        outcomes = self._map(self._run_cell, [cell for cell in cells if not ended(cell)])
        return [cell for cell, outcome in outcomes if outcome in ("failed", "unfinished")]

    def make_bases(self, study: Study, seeds: Sequence[int]) -> None:
        """Make the base models of these seeds."""
        task = run_cells(study, self.out, {})[0].config.sections.task
        options = [part for key, value in task.options.items() for part in ("--set", f"{key}={value}")]

        def make(base: int) -> int:
            folder = Path(base_folder(study, self.out, base))
            arguments = ["make-base", task.name, "--seed", str(base), "--out", str(folder), "--json", *options]
            started = self._start(folder, f"base model of seed {base}", Work("base"))
            try:
                code = self._until_ended(lambda: self.processes.run(arguments, self.logs / f"base-seed{base}.log"))
            finally:
                self._leave(folder, f"base model of seed {base}")
            if code == 0:
                self._count(folder, self.processes.clock() - started, finished=True)
                self._say_ended(f"base model of seed {base}: made")
            return code

        if seeds:
            self.say(f"making {counted(len(seeds), 'base model')} (some minutes each)")
        for seed, code in self._map(make, seeds):
            if code:
                raise StudyError(f"Making the base model of seed {seed} failed; see {self.logs}.")

    def _map(self, function: Callable[[Any], Any], things: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(thing, function(thing)) for all, `jobs` at a time. Ctrl-C lets every process save and stop."""
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                if things:
                    self._look_for_pause()
                futures: dict[Future[Any], Any] = {pool.submit(function, thing): thing for thing in things}
                pending = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=TICK_S, return_when=FIRST_COMPLETED)
                    if pending:
                        self._look_for_pause()
                    self.on_progress(self)
                return [(thing, future.result()) for future, thing in futures.items()]
            except BaseException:
                self.processes.stop()
                raise

    def _look_for_pause(self) -> None:
        file, processes = self.out / PAUSE, self.processes
        if file.exists() and not processes.paused:
            processes.pause()
            self._said_idle = False
            self.say(f"paused: the running cells save and stop. Go on with --go-on, or remove {file}")
        elif not file.exists() and processes.paused:
            processes.go_on()
            self.say("goes on")
        if processes.paused:
            processes.kill_late()
            if processes.idle and not self._said_idle:
                self._said_idle = True
                self.say("paused: no cell runs now")

    def _until_ended(self, attempt: Callable[[], int | None]) -> int:
        """The exit code of a process that is started again after every pause that ended it."""
        while (code := attempt()) is None:
            pass  # the next attempt waits for the end of the pause
        return code

    def _attempt(self, cell: Cell) -> int | None:
        """Start or resume the run of a cell; None if a pause ended it."""
        folder, log = cell.folder, self.logs / f"{cell.name}.log"
        if (folder / "config.yaml").is_file():
            if kept_weights_only(folder):
                return 0  # the run had ended before the study was killed
            return self.processes.run(["resume", str(folder), "--json"], log)
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first step
        settings = cell.started_file.with_suffix(".yaml")
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(cell.config.to_yaml())
        write_json(cell.started_file, cell.settings)
        return self.processes.run(["train", str(settings), "--run-dir", str(folder), "--json"], log)

    def _run_cell(self, cell: Cell) -> Outcome:
        label, folder = describe(cell), cell.folder
        before = _seconds_before(folder)
        started = self._start(folder, label, work_of(cell))
        try:
            code = self._until_ended(lambda: self._attempt(cell))
        finally:
            self._leave(folder, label)
        outcome, seconds = outcome_of(code), before + self.processes.clock() - started
        if outcome != "unfinished" or folder.is_dir():  # a comparison counts a cell that failed before its run began
            folder.mkdir(parents=True, exist_ok=True)
            card = {**cell.card(), "settings": cell.settings, "outcome": outcome, "critic": critic_card(cell)}
            write_json(folder / "cell.json", {**card, "seconds": seconds})
        if outcome == "unfinished" and self.processes.stopping:
            return outcome
        self._count(folder, seconds, finished=code == 0)
        self._say_ended(f"{label}: {_score(folder) if code == 0 else outcome}, {seconds:.0f} s")
        if outcome in ("failed", "unfinished"):
            last = (self.logs / f"{cell.name}.log").read_text(errors="replace")[-LOG_TAIL:]
            self.say(f"  {f'signal {-code}' if code < 0 else f'exit code {code}'}; the log ends:\n{last}")
        return outcome

    def _start(self, folder: Path, label: str, work: Work) -> float:
        """Count a part as running, and return the time at which it started."""
        now = self.processes.clock()
        with self._lock:
            self.running[label] = folder
            self._left.setdefault(folder, work)
            self._started[folder] = now
        return now

    def _leave(self, folder: Path, label: str) -> None:
        with self._lock:
            self.running.pop(label, None)
            self._started.pop(folder, None)

    def _count(self, folder: Path, seconds: float, *, finished: bool) -> None:
        with self._lock:
            work = self._left.pop(folder)
            self.done += 1
            if finished:  # others end early
                self._took.append(Took(work, seconds))

    def _say_ended(self, text: str) -> None:
        left = self.seconds_left
        time_left = f"; about {duration(left)} left" if left else ""
        self.say(f"[{self.done}/{self.total}] {text}{time_left}")


def _seconds_before(folder: Path) -> float:
    """Seconds that a cell took before a stop, or before a kill that left no time to write them: those of its steps."""
    steps = [number(row.get("step_time")) for row in read_jsonl(folder / "metrics.jsonl")]
    return max(read_card(folder).get("seconds", 0.0), sum(seconds for seconds in steps if seconds > 0))


def _score(folder: Path) -> str:
    after = [e for e in read_jsonl(folder / "evaluations.jsonl") if e.get("label") == EvaluationLabel.AFTER]
    if after:
        return f"avg@{after[-1]['k']} {number(after[-1]['avg']):.3f}"
    rows = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("phase") == Phase.PRETRAIN]
    return f"explained variance {number(rows[-1].get('pretrain/explained_variance')):.2f}" if rows else "finished"
