"""Run the cells of a study, each as an ordinary run in its own process.

Finished cells are skipped, killed ones resumed.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vapo.errors import StoppedError, VapoError, counted
from vapo.metrics import EvaluationLabel, Phase
from vapo.reports.runfiles import number, read_jsonl
from vapo.session.run_dirs import kept_weights_only
from vapo.study.cell_cards import critic_card, ended, outcome_of, write_json
from vapo.study.cells import Cell, base_folder, base_name, describe, run_cells
from vapo.study.comparison.compared_runs import Outcome
from vapo.study.study import Study

LOG_TAIL = 1500
"""The number of characters shown from the end of a failed cell's log."""
STOP_GRACE_S = 60.0
"""Seconds that a cell may take to save after Ctrl-C."""

Report = Callable[[str], None]


class StudyError(VapoError):
    """Some cells failed; the finished ones are kept."""

    exit_code = 1


@dataclass
class Runner:
    """Runs cells, `jobs` at a time. `say` is called with one line per event."""

    out: Path
    jobs: int
    say: Report
    on_progress: Callable[[Runner], None] = lambda runner: None
    done: int = 0
    total: int = 0
    running: dict[str, Path] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)
    _last_ended_at: float = 0.0
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def logs(self) -> Path:
        """The folder with the output of the cells' processes."""
        return self.out / "logs"

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left, from the cells that have ended; None before the first ends."""
        if not self._seconds:
            return None
        left = (self.total - self.done) * fmean(self._seconds) / self.jobs
        return max(0.0, left - (time.monotonic() - self._last_ended_at))

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run all cells that have not ended, and return those that failed. A diverged run has ended."""
        outcomes = self._map(self._run_cell, [cell for cell in cells if not ended(cell)])
        return [cell for cell, outcome in outcomes if outcome in ("failed", "unfinished")]

    def make_bases(self, study: Study, cells: Sequence[Cell]) -> None:
        """Make the missing base models that the study names by seed and these cells start from."""
        task = run_cells(study, self.out, {})[0].config.sections.task
        options = [part for key, value in task.options.items() for part in ("--set", f"{key}={value}")]

        def make(base: int) -> int:
            arguments = ["--seed", str(base), "--out", base_folder(study, self.out, base), "--json"]
            return self._command(["make-base", task.name, *arguments, *options], self.logs / f"base-seed{base}.log")

        used = {cell.base for cell in cells}
        seeds = [base for base in study.bases if isinstance(base, int) and base_name(base) in used]
        missing = [seed for seed in seeds if not Path(base_folder(study, self.out, seed), "config.json").is_file()]
        if missing:
            self.say(f"making {counted(len(missing), 'base model')} (some minutes each)")
        for seed, code in self._map(make, missing):
            if code:
                raise StudyError(f"Making the base model of seed {seed} failed; see {self.logs}.")

    def _map(self, function: Callable[[Any], Any], things: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(thing, function(thing)) for all, `jobs` at a time. Ctrl-C lets every process save and stop."""
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                futures: dict[Future[Any], Any] = {pool.submit(function, thing): thing for thing in things}
                pending = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                    self.on_progress(self)
                return [(thing, future.result()) for future, thing in futures.items()]
            except BaseException:
                self._stop()
                raise

    def _command(self, arguments: Sequence[str], log: Path) -> int:
        """Run `vapo` with these arguments in a process and return its exit code. Its output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            with self._lock:
                if self._stopping:
                    return StoppedError.exit_code
                child = subprocess.Popen(  # noqa: S603  our own command, no shell
                    [sys.executable, "-m", "vapo", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process only, which then stops the children
                )
                self._children.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)

    def _run_cell(self, cell: Cell) -> Outcome:
        started, label, folder = time.monotonic(), describe(cell), cell.folder
        name = f"{cell.kind}-{folder.name}"
        with self._lock:
            self.running[label] = folder
        try:
            if (folder / "config.yaml").is_file() and kept_weights_only(folder):
                code = 0  # the run had ended before the study was killed
            elif (folder / "config.yaml").is_file():
                code = self._command(["resume", str(folder), "--json"], self.logs / f"{name}.log")
            else:
                shutil.rmtree(folder, ignore_errors=True)  # killed before its first step
                settings = self.out / "cells" / f"{name}.yaml"
                settings.parent.mkdir(parents=True, exist_ok=True)
                settings.write_text(cell.config.to_yaml())
                arguments = ["train", str(settings), "--run-dir", str(folder), "--json"]
                code = self._command(arguments, self.logs / f"{name}.log")
        finally:
            with self._lock:
                self.running.pop(label, None)
        outcome = outcome_of(code)
        if folder.is_dir():
            card = {**cell.card(), "settings": cell.settings, "outcome": outcome, "critic": critic_card(cell)}
            write_json(folder / "cell.json", card)
        if outcome == "unfinished":
            return outcome
        seconds = time.monotonic() - started
        with self._lock:
            self.done += 1
            done = self.done
            self._seconds.append(seconds)
            self._last_ended_at = time.monotonic()
        self.say(f"[{done}/{self.total}] {label}: {_score(folder) if code == 0 else outcome}, {seconds:.0f} s")
        if outcome == "failed":
            last = (self.logs / f"{name}.log").read_text(errors="replace")[-LOG_TAIL:]
            self.say(f"  exit code {code}; the log ends:\n{last}")
        return outcome

    def _stop(self) -> None:
        """Send SIGTERM to every process, so that it saves and stops; kill those that take too long."""
        with self._lock:
            self._stopping = True
            children = list(self._children)
        for child in children:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for child in children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


def _score(folder: Path) -> str:
    after = [e for e in read_jsonl(folder / "evaluations.jsonl") if e.get("label") == EvaluationLabel.AFTER]
    if after:
        return f"avg@{after[-1]['k']} {number(after[-1]['avg']):.3f}"
    rows = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("phase") == Phase.PRETRAIN]
    return f"explained variance {number(rows[-1].get('pretrain/explained_variance')):.2f}" if rows else "finished"
