"""Run a study. Each cell is an ordinary run in its own process; finished cells are skipped, killed ones resumed.

A cell's folder is a run directory with a `cell.json`, which holds the cell's identity and outcome.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from vapo.errors import ConfigError, DivergedError, StoppedError, VapoError, counted
from vapo.json_text import flatten, json_text
from vapo.metrics import EvaluationLabel, Phase
from vapo.reports.runfiles import number, read_jsonl, read_run
from vapo.session.inputs import close_task, read_inputs, with_whole_paths
from vapo.session.run_dirs import kept_weights_only, load_run_config
from vapo.study.cells import Cell, base_folder, config_differences, critic_cells, describe, run_cells, tuning_cells
from vapo.study.comparison import compare_runs
from vapo.study.comparison.compared_runs import Outcome
from vapo.study.study import Study, study_yaml

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

    def make_bases(self, study: Study) -> None:
        """Make the missing base models among those that the study names by seed."""
        task = run_cells(study, self.out, {})[0].config.sections.task
        options = [part for key, value in task.options.items() for part in ("--set", f"{key}={value}")]

        def make(base: int) -> int:
            arguments = ["--seed", str(base), "--out", base_folder(study, self.out, base), "--json"]
            return self._command(["make-base", task.name, *arguments, *options], self.logs / f"base-seed{base}.log")

        seeds = [base for base in study.bases if isinstance(base, int)]
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
            card = {**cell.card(), "outcome": outcome, "critic": critic_card(cell)}
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


def run_study(
    study: Study,
    out: Path,
    *,
    name: str = "comparison",
    jobs: int | None = None,
    say: Report = print,
    on_progress: Callable[[Runner], None] = lambda runner: None,
    command: str = "vapo ablate",
) -> dict[str, Any]:
    """Run the study in `out`, write the comparison into `out/name`, and return the content of its `results.json`.

    The page shows `command` and the date on which the study ended. Call this again to continue a study, or with
    another study of the same settings to share the runs.

    Raises ConfigError before anything starts if a folder holds a run with other settings or another process
    uses `out`. Raises StudyError after comparing the finished runs if cells failed; a diverged run is a result.
    """
    runner = Runner(out, jobs or len(os.sched_getaffinity(0)), say, on_progress)
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    tried = [cell for cells in trials.values() for cell in cells]
    planned = run_cells(study, out, chosen_before(out))
    check_study(study, out)
    with locked(out):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "study.yaml").write_text(study_yaml(study))
        runner.total = sum(not ended(cell) for cell in [*critics, *tried, *planned])
        runner.make_bases(study)
        _check_inputs([*critics, *planned])
        for depth in sorted({_depth(cell, critics) for cell in critics}):  # a critic may start from another
            level = [cell for cell in critics if _depth(cell, critics) == depth]
            runner.run(level)
            for cell in level:
                if _read_card(cell.folder).get("outcome") != "finished":
                    raise StudyError(f"{describe(cell)} did not finish, and other runs need it; see {runner.logs}.")
        if failed := runner.run(tried):
            raise StudyError(
                f"{counted(len(failed), 'trial')} of tuning failed (first: {describe(failed[0])}), and tuning needs "
                f"all trials. Read {runner.logs}, then run the same command again."
            )
        tuned = choose_settings(study, trials, out)
        for method in study.tuning.methods if study.tuning else []:
            say(f"settings that tuning chose for {method}: {_flat(tuned.get(method, {}))}")
        cells = run_cells(study, out, tuned)
        for cell in cells:
            check_same(cell)
        failed = runner.run(cells)
        started = [cell.folder for cell in cells if _read_card(cell.folder)]
        note = f"{command}, ended {date.today()}"
        if not failed or finished_methods(started):
            reference = reference_among(finished_methods(started), study.reference)
            results = compare_runs(started, out / name, reference=reference, heading=study.about, notes=[note])
        else:
            results = {}
    if failed:
        raise StudyError(
            f"{counted(len(failed), 'cell')} failed (first: {describe(failed[0])}); {out / name} compares the finished "
            f"ones. Read {runner.logs}, then run the same command again."
        )
    return results


def finished_methods(folders: Sequence[Path]) -> set[str]:
    """The methods that have a finished run in one of these folders."""
    return {card["method"] for card in map(_read_card, folders) if card.get("outcome") == "finished"}


def reference_among(methods: Collection[str], wanted: str) -> str:
    """`wanted` if it has a finished run, else "vapo"; a comparison replaces a missing "vapo" by its first row."""
    return wanted if wanted in methods else "vapo"


def check_study(study: Study, out: Path) -> None:
    """Raise ConfigError, DataError or ModelError for mistakes that can be found before anything runs."""
    cells = [*critic_cells(study, out), *run_cells(study, out, chosen_before(out))]
    for cell in [*cells, *(cell for trials in tuning_cells(study, out).values() for cell in trials)]:
        check_same(cell)
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    _check_inputs([cell for cell in cells if cell.config.sections.model.policy not in made_here])


def choose_settings(
    study: Study, trials: Mapping[tuple[str, int], Sequence[Cell]], out: Path
) -> dict[str, dict[str, Any]]:
    """The settings of each tuned method's best grid point, by training accuracy over the last quarter of the steps.

    Accuracy is that on training prompts, so held-out prompts stay unseen. A diverged trial counts as 0, and the first
    of equal points wins. All scores are written to tuning.json, which keeps the choices of earlier studies.
    """
    path, tuned = out / "tuning.json", _read_tuning(out)
    if study.tuning is None:
        return {method: entry["chosen"] for method, entry in tuned.items()}
    for name in study.tuning.methods:
        scores = []
        for point in range(len(study.tuning.grid)):
            each = [late_accuracy(cell.folder) for cell in trials[name, point]]
            scores.append(fmean(0.0 if score is None else score for score in each))
        best = scores.index(max(scores))
        tuned[name] = {"chosen": study.tuning.grid[best], "late_accuracy": scores, "grid": study.tuning.grid}
    write_json(path, tuned)
    return {method: entry["chosen"] for method, entry in tuned.items()}


def chosen_before(out: Path) -> dict[str, dict[str, Any]]:
    """The settings that tuning has chosen in this folder so far, by method."""
    return {method: entry["chosen"] for method, entry in _read_tuning(out).items()}


def late_accuracy(folder: Path) -> float | None:
    """Mean training accuracy over the last quarter of a run's steps; None if the run did not finish."""
    if _read_card(folder).get("outcome") != "finished":
        return None
    rows = read_run(folder).phase(Phase.TRAIN)
    late = [number(row.get("accuracy")) for row in rows[len(rows) * 3 // 4 :]]
    return fmean(late) if late else None


def critic_card(cell: Cell) -> dict[str, Any] | None:
    """The cost of the cell's shared critic, including the critics it started from; None without one.

    The cell's own counts do not contain this cost.
    """
    if cell.critic is None:
        return None
    rows, before = read_run(cell.critic).metrics, _read_card(cell.critic).get("critic") or {}
    last = rows[-1] if rows else {}
    own = {
        "samples": int(last.get("num_samples", 0)),
        "tokens": int(last.get("num_tokens", 0)),
        "seconds": sum(number(row.get("step_time")) for row in rows),
        "gradient_steps": sum(int(row.get("pretrain/gradient_steps", 0)) for row in rows),
    }
    return {
        "name": _read_card(cell.critic).get("method", cell.critic.name),
        **{key: value + before.get(key, 0) for key, value in own.items()},
        "explained_variance": last.get("pretrain/explained_variance"),
    }


def ended(cell: Cell) -> bool:
    """Whether the cell's run has finished or diverged."""
    return _read_card(cell.folder).get("outcome") in ("finished", "diverged")


def outcome_of(code: int) -> Outcome:
    """The outcome of a run, from its exit code. Runs that a signal stopped are unfinished."""
    if code in (StoppedError.exit_code, 130) or code < 0:
        return "unfinished"
    if code == 0:
        return "finished"
    return "diverged" if code == DivergedError.exit_code else "failed"


def check_same(cell: Cell) -> None:
    """Raise ConfigError if the cell's folder holds a run with other settings than the study wants."""
    if not (cell.folder / "config.yaml").is_file():
        return
    # a run stores absolute paths, a study may have relative ones
    different = list(config_differences(with_whole_paths(cell.config), with_whole_paths(load_run_config(cell.folder))))
    if different:
        shown = "; ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise ConfigError(
            f"{cell.folder} holds a run with other settings ({shown}). Choose another --out, or delete that folder."
        )


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json_text(data, indent=1) + "\n")
    temporary.replace(path)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder for one study. Raises ConfigError if another process holds the lock."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the runs of a study need a folder. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another `vapo ablate` uses {out}. Wait until it ends, or choose another --out."
            ) from error
        yield


def _check_inputs(cells: Sequence[Cell]) -> None:
    """Check task, prompts and model of the cells without an initial critic; the other cells use the same."""
    seen = []
    for cell in cells:
        sections = cell.config.sections
        place = (sections.task, sections.model, sections.rollout)
        if cell.critic is None and place not in seen:
            seen.append(place)
            close_task(read_inputs(cell.config).task)


def _depth(cell: Cell, critics: Sequence[Cell]) -> int:
    start = next((c for c in critics if c.folder == cell.critic), None)
    return 0 if start is None else 1 + _depth(start, critics)


def _read_card(folder: Path) -> dict[str, Any]:
    """The content of cell.json; empty if it is missing or damaged, so that the cell is resumed."""
    try:
        card = json.loads((folder / "cell.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _read_tuning(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "tuning.json"
    if not path.is_file():
        return {}
    try:
        tuned = json.loads(path.read_bytes())
        return {str(method): {**entry, "chosen": dict(entry["chosen"])} for method, entry in tuned.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Delete it to make it again from the trials.") from error


def _score(folder: Path) -> str:
    after = [e for e in read_jsonl(folder / "evaluations.jsonl") if e.get("label") == EvaluationLabel.AFTER]
    if after:
        return f"avg@{after[-1]['k']} {number(after[-1]['avg']):.3f}"
    rows = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("phase") == Phase.PRETRAIN]
    return f"explained variance {number(rows[-1].get('pretrain/explained_variance')):.2f}" if rows else "finished"


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
