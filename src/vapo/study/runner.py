"""Run a study: every cell is an ordinary run in its own process; finished ones are skipped, killed ones resumed.

A cell's folder is a run directory with `cell.json`, which says which cell it is and how it ended.
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
from typing import Any, Literal

from vapo.errors import ConfigError, DivergedError, StoppedError, VapoError, counted
from vapo.json_text import json_text
from vapo.metrics import EvaluationLabel, Phase
from vapo.reports.runfiles import number, read_jsonl, read_run
from vapo.session.inputs import close_task, read_inputs, with_whole_paths
from vapo.session.layers import flatten
from vapo.session.run_dirs import kept_weights_only, load_run_config
from vapo.study.cells import Cell, base_folder, config_differences, critic_cells, describe, run_cells, tuning_cells
from vapo.study.comparison import compare_runs
from vapo.study.study import Study, study_yaml

LOG_TAIL = 1500
"""Characters of a failed cell's log that are shown."""
STOP_GRACE_S = 60.0
"""How long a cell may take to save after Ctrl-C."""

Report = Callable[[str], None]
Outcome = Literal["finished", "diverged", "failed", "unfinished"]


class StudyError(VapoError):
    """Cells failed; what finished is kept."""

    exit_code = 1


@dataclass
class Runner:
    """Runs cells, `jobs` at a time. `say` gets one line per event."""

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
        """What the cells' processes print."""
        return self.out / "logs"

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the cells that have ended; None before the first."""
        if not self._seconds:
            return None
        left = (self.total - self.done) * fmean(self._seconds) / self.jobs
        return max(0.0, left - (time.monotonic() - self._last_ended_at))

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Carry out all cells that have not ended; the ones that failed. (To diverge is an end, too.)"""
        outcomes = self._map(self._carry_out, [cell for cell in cells if not ended(cell)])
        return [cell for cell, outcome in outcomes if outcome in ("failed", "unfinished")]

    def make_bases(self, study: Study) -> None:
        """Make the base models that the study names by seed and that are not there yet."""
        task = run_cells(study, self.out, {})[0].config.sections.task
        options = [part for key, value in task.options.items() for part in ("--set", f"{key}={value}")]

        def make(base: int) -> int:
            where = ["--seed", str(base), "--out", base_folder(study, self.out, base), "--json"]
            return self._command(["make-base", task.name, *where, *options], self.logs / f"base-seed{base}.log")

        seeds = [base for base in study.bases if isinstance(base, int)]
        missing = [seed for seed in seeds if not Path(base_folder(study, self.out, seed), "config.json").is_file()]
        if missing:
            self.say(f"making {counted(len(missing), 'base model')} (some minutes each)")
        for seed, code in self._map(make, missing):
            if code:
                raise StudyError(f"Making the base model of seed {seed} failed; see {self.logs}.")

    def _map(self, function: Callable[[Any], Any], things: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(thing, function(thing)) for all, `jobs` at a time; Ctrl-C stops every process in order."""
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
        """Run `vapo` with these arguments in a process of its own; its exit code. Output goes to `log`."""
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
                    start_new_session=True,  # Ctrl-C reaches us alone; we stop the children in order
                )
                self._children.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)

    def _carry_out(self, cell: Cell) -> Outcome:
        started, label, folder = time.monotonic(), describe(cell), cell.folder
        name = f"{cell.kind}-{folder.name}"
        with self._lock:
            self.running[label] = folder
        try:
            if (folder / "config.yaml").is_file() and kept_weights_only(folder):
                code = 0  # it had ended when the study was killed
            elif (folder / "config.yaml").is_file():
                code = self._command(["resume", str(folder), "--json"], self.logs / f"{name}.log")
            else:
                shutil.rmtree(folder, ignore_errors=True)  # killed before it began: nothing is in it yet
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
        with self._lock:  # one cell's thread at a time
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
        """Ask every running process to save and stop; kill those that take too long."""
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
    """Everything the study names, in `out`; the comparison in `out/name`, and its results returned.

    `command` stands on the page, with the date of the end. Call it again to go on, or with another study of the same
    settings, which then shares the runs.

    Raises ConfigError before anything starts if a folder holds a run with other settings or another process
    works in `out`; StudyError if cells failed (not for ones that diverged: those are a result), after comparing
    the rest.
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
        for depth in sorted({_depth(cell, critics) for cell in critics}):  # one may start from another
            level = [cell for cell in critics if _depth(cell, critics) == depth]
            runner.run(level)
            for cell in level:
                if _read_card(cell.folder).get("outcome") != "finished":
                    raise StudyError(f"{describe(cell)} did not finish, and runs start from it; see {runner.logs}.")
        if failed := runner.run(tried):
            raise StudyError(
                f"Of tuning, {counted(len(failed), 'trial')} failed (first: {describe(failed[0])}), and without all no "
                f"learning rate can be chosen. Look into {runner.logs}, then give the same command again."
            )
        tuned = choose_settings(study, trials, out)
        for method in study.tuning.methods if study.tuning else []:
            say(f"tuning chose for {method}: {_flat(tuned.get(method, {}))}")
        cells = run_cells(study, out, tuned)
        for cell in cells:
            check_same(cell)
        failed = runner.run(cells)
        begun = [cell.folder for cell in cells if _read_card(cell.folder)]
        note = f"{command}, ended {date.today()}"
        if not failed or finished_methods(begun):
            reference = reference_among(finished_methods(begun), study.reference)
            results = compare_runs(begun, out / name, reference=reference, heading=study.about, notes=[note])
        else:
            results = {}
    if failed:
        raise StudyError(
            f"{counted(len(failed), 'cell')} failed (first: {describe(failed[0])}); what finished is compared in "
            f"{out / name}. Look into {runner.logs}, then give the same command again."
        )
    return results


def finished_methods(folders: Sequence[Path]) -> set[str]:
    """The methods that have a finished run among these."""
    return {card["method"] for card in map(_read_card, folders) if card.get("outcome") == "finished"}


def reference_among(methods: Collection[str], wanted: str) -> str:
    """The study's reference if it can be one; else the default, in whose place a comparison takes the first row."""
    return wanted if wanted in methods else "vapo"


def check_study(study: Study, out: Path) -> None:
    """Raise ConfigError, DataError or ModelError for what can be known before anything runs."""
    cells = [*critic_cells(study, out), *run_cells(study, out, chosen_before(out))]
    for cell in [*cells, *(cell for trials in tuning_cells(study, out).values() for cell in trials)]:
        check_same(cell)
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    _check_inputs([cell for cell in cells if cell.config.sections.model.policy not in made_here])


def choose_settings(
    study: Study, trials: Mapping[tuple[str, int], Sequence[Cell]], out: Path
) -> dict[str, dict[str, Any]]:
    """For each tuned method the grid point with the best training accuracy over the last quarter of the steps.

    Judged on training prompts, so that the held-out ones stay unseen; a diverged trial counts as 0; of equals
    the first. The whole table goes to tuning.json, beside what earlier studies in the folder chose.
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
    """What tuning has chosen in this folder so far, by method; nothing if it has not."""
    return {method: entry["chosen"] for method, entry in _read_tuning(out).items()}


def late_accuracy(folder: Path) -> float | None:
    """Mean training accuracy over the last quarter of a run's steps; None for a run that did not end well."""
    if _read_card(folder).get("outcome") != "finished":
        return None
    rows = read_run(folder).phase(Phase.TRAIN)
    late = [number(row.get("accuracy")) for row in rows[len(rows) * 3 // 4 :]]
    return fmean(late) if late else None


def critic_card(cell: Cell) -> dict[str, Any] | None:
    """What the cell's shared critic cost, with what it started from, which is not in the cell's own counts."""
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
    """Whether the cell's run came to an end of its own, good or bad."""
    return _read_card(cell.folder).get("outcome") in ("finished", "diverged")


def outcome_of(code: int) -> Outcome:
    """How a run ended, from its exit code; a signal from outside stopped it."""
    if code in (StoppedError.exit_code, 130) or code < 0:
        return "unfinished"
    if code == 0:
        return "finished"
    return "diverged" if code == DivergedError.exit_code else "failed"


def check_same(cell: Cell) -> None:
    """Raise ConfigError if the cell's folder holds a run with other settings than the study wants."""
    if not (cell.folder / "config.yaml").is_file():
        return
    # a run keeps its files by whole paths, the study says them as it was told
    different = list(config_differences(with_whole_paths(cell.config), with_whole_paths(load_run_config(cell.folder))))
    if different:
        shown = "; ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise ConfigError(
            f"{cell.folder} holds a run with other settings ({shown}). Choose another --out, or delete that folder."
        )


def write_json(path: Path, data: Any) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json_text(data, indent=1) + "\n")
    temporary.replace(path)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One study at a time in a folder; raises ConfigError if another process is at work in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the runs of a study need a folder. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another `vapo ablate` is at work in {out}. Wait for it, or choose another --out."
            ) from error
        yield


def _check_inputs(cells: Sequence[Cell]) -> None:
    """Check tasks, prompts and models of the cells that start from no critic; the others use the same ones."""
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
    """The content of cell.json; empty where it is missing or damaged, so that the cell is resumed."""
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
        raise ConfigError(f"{path} cannot be read ({error}). Delete it: it is made again from the trials.") from error


def _score(folder: Path) -> str:
    after = [e for e in read_jsonl(folder / "evaluations.jsonl") if e.get("label") == EvaluationLabel.AFTER]
    if after:
        return f"avg@{after[-1]['k']} {number(after[-1]['avg']):.3f}"
    rows = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("phase") == Phase.PRETRAIN]
    return f"explained variance {number(rows[-1].get('pretrain/explained_variance')):.2f}" if rows else "finished"


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
