"""Carry out a study: each cell an ordinary run in a process of its own, finished ones skipped, killed ones resumed.

A cell folder holds a run directory and `cell.json`, which says which cell it is and how it ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vapo.build import ground, load_run_config
from vapo.errors import ConfigError, DivergedError, StoppedError, VapoError
from vapo.reports.runfiles import number, read_jsonl, read_run
from vapo.study.plan import Cell, Study, base_folder, config_differences, critic_cells, frozen, run_cells, tuning_cells

LAST_WORDS = 1500
"""Characters of a failed cell's log that are shown."""
STOP_GRACE_S = 60.0
"""How long a cell may take to save after Ctrl-C."""

Report = Callable[[str], None]


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
    _stopping: threading.Event = field(default_factory=threading.Event)
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the cells that have ended; None before the first."""
        if not self._seconds:
            return None
        return (self.total - self.done) * fmean(self._seconds) / self.jobs

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Carry out all cells that are not finished; the ones that failed. Diverged ones have ended, too.

        Raises ConfigError before anything starts if a folder holds a run with other settings.
        """
        todo = [cell for cell in cells if not ended(cell)]
        failed: list[Cell] = []
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            futures: dict[Future[str], Cell] = {pool.submit(self._carry_out, cell): cell for cell in todo}
            try:
                pending = set(futures)
                while pending:
                    finished, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in finished:
                        if future.result() == "failed":
                            failed.append(futures[future])
                    self.on_progress(self)
            except BaseException:
                self._stop()
                raise
        return failed

    def command(self, arguments: Sequence[str], log: Path) -> int:
        """Run `vapo` with these arguments in a process of its own; its exit code. Output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            if self._stopping.is_set():
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
                self._children.discard(child)

    def _carry_out(self, cell: Cell) -> str:
        started, label = time.monotonic(), describe(cell)
        folder, log = cell.folder, self.out / "logs" / f"{cell.kind}-{cell.folder.name}.log"
        self.running[label] = folder
        try:
            if (folder / "config.yaml").is_file():
                code = self.command(["resume", str(folder), "--json"], log)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # killed before it began: nothing is in it yet
                settings = self.out / "cells" / f"{cell.kind}-{folder.name}.yaml"
                settings.parent.mkdir(parents=True, exist_ok=True)
                settings.write_text(cell.config.to_yaml())
                code = self.command(["train", str(settings), "--run-dir", str(folder), "--json"], log)
        finally:
            self.running.pop(label, None)
        if code in (StoppedError.exit_code, 130) or self._stopping.is_set():
            return "stopped"
        outcome = {0: "finished", DivergedError.exit_code: "diverged"}.get(code, "failed")
        if folder.is_dir():
            card = {**cell.card(), "outcome": outcome, "critic": critic_card(cell)}
            (folder / "cell.json").write_text(json.dumps(card, indent=1) + "\n")
        seconds = time.monotonic() - started
        self.done += 1
        self._seconds.append(seconds)
        self.say(f"[{self.done}/{self.total}] {label}: {_score(folder) if code == 0 else outcome}, {seconds:.0f} s")
        if outcome == "failed":
            self.say(f"  exit code {code}; the log ends:\n{log.read_text(errors='replace')[-LAST_WORDS:]}")
        return outcome

    def _stop(self) -> None:
        """Let every running cell save and stop; kill what does not in time."""
        self._stopping.set()
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for child in list(self._children):
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
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything the study names, in `out`; the comparison in `out/name`, and its results returned.

    Call it again to go on, or with another study of the same settings, which then shares the runs.

    Raises StudyError if cells failed (not for ones that diverged: those are a result), after comparing the rest.
    """
    runner = Runner(out, jobs or os.cpu_count() or 1, say, on_progress)
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    tried = [cell for cells in trials.values() for cell in cells]
    for cell in [*critics, *tried, *run_cells(study, out, chosen_before(out))]:
        check_same(cell)
    (out / name).mkdir(parents=True, exist_ok=True)
    (out / name / "study.yaml").write_text(frozen(study))
    runner.total = sum(not ended(c) for c in [*critics, *tried, *run_cells(study, out, {})])
    make_bases(runner, study)
    for cell in [*critics, *run_cells(study, out, {})]:
        if cell.critic is None:  # the others wait for a critic that is made from the same base
            ground(cell.config)
    for cell in critics:  # in order: one may start from another
        if runner.run([cell]) or not ended(cell):
            raise StudyError(f"{describe(cell)} failed, and runs start from it; see {out / 'logs'}.")
    failed = runner.run(tried)
    tuned = choose(study, trials, out) if not failed else chosen_before(out)
    for method, choice in tuned.items():
        say(f"tuning chose for {method}: {_flat(choice)}")
    cells = run_cells(study, out, tuned)
    for cell in cells:
        check_same(cell)
    failed += runner.run(cells)
    finished = [cell.folder for cell in cells if (cell.folder / "cell.json").is_file()]
    from vapo.reports.comparison import compare

    results = compare(finished, out / name, heading=study.about or None, notes=notes)
    if failed:
        raise StudyError(
            f"{len(failed)} cells failed (first: {describe(failed[0])}); what finished is in {out / name}. "
            f"Look into {out / 'logs'}, then give the same command again."
        )
    return results


def make_bases(runner: Runner, study: Study) -> None:
    """Make the base models that the study names by seed and that are not there yet."""
    config = run_cells(study, runner.out, {})[0].config
    task = config.sections.task
    options = [part for key, value in task.options.items() for part in ("--set", f"{key}={value}")]
    wanted = [base for base in study.bases if isinstance(base, int)]
    missing = [base for base in wanted if not Path(base_folder(runner.out, base), "config.json").is_file()]

    def make(base: int) -> int:
        folder = base_folder(runner.out, base)
        arguments = ["make-base", task.name, "--seed", str(base), "--out", folder, "--json", *options]
        return runner.command(arguments, runner.out / "logs" / f"base-seed{base}.log")

    if missing:
        runner.say(f"making {len(missing)} base models (some minutes each)")
    with ThreadPoolExecutor(max_workers=runner.jobs) as pool:
        try:
            codes = list(pool.map(make, missing))
        except BaseException:
            runner._stop()
            raise
    for base, code in zip(missing, codes, strict=True):
        if code:
            raise StudyError(f"Making the base model of seed {base} failed; see {runner.out / 'logs'}.")


def choose(study: Study, trials: Mapping[tuple[str, int], Sequence[Cell]], out: Path) -> dict[str, dict[str, Any]]:
    """For each tuned method the grid point with the best training accuracy over the last quarter of the steps.

    Judged on training prompts, so that the held-out ones stay unseen; of equals the first. The whole table
    goes to tuning.json.
    """
    if study.tuning is None:
        return {}
    table: dict[str, list[float | None]] = {}
    for name in study.tuning.methods:
        table[name] = []
        for point in range(len(study.tuning.grid)):
            scores = [late_accuracy(cell.folder) for cell in trials[name, point]]
            known = [score for score in scores if score is not None]  # a diverged trial counts as 0
            table[name].append(sum(known) / len(scores) if known else None)
    chosen = {}
    for name, scores in table.items():
        best = max(range(len(scores)), key=lambda i: (scores[i] is not None, scores[i] or 0.0, -i))
        chosen[name] = study.tuning.grid[best]
    (out / "tuning.json").write_text(
        json.dumps({"grid": study.tuning.grid, "late_accuracy": table, "chosen": chosen}, indent=1) + "\n"
    )
    return chosen


def chosen_before(out: Path) -> dict[str, dict[str, Any]]:
    """What tuning chose in an earlier call; nothing if it has not."""
    path = out / "tuning.json"
    return json.loads(path.read_text())["chosen"] if path.is_file() else {}


def late_accuracy(folder: Path) -> float | None:
    """Mean training accuracy over the last quarter of the planned steps; None for a run that did not end well."""
    if _card(folder).get("outcome") != "finished":
        return None
    rows = read_run(folder).phase("train")
    late = [number(row.get("accuracy")) for row in rows[len(rows) * 3 // 4 :]]
    return fmean(late) if late else None


def critic_card(cell: Cell) -> dict[str, Any] | None:
    """What the cell's shared critic cost, with what it started from, which is not in the cell's own counts."""
    if cell.critic is None:
        return None
    run = read_run(cell.critic)
    before = _card(cell.critic).get("critic") or {}
    last = run.metrics[-1] if run.metrics else {}
    return {
        "name": _card(cell.critic).get("method", cell.critic.name),
        "samples": int(last.get("num_samples", 0)) + int(before.get("samples", 0)),
        "tokens": int(last.get("num_tokens", 0)) + int(before.get("tokens", 0)),
        "seconds": sum(number(row.get("step_time")) for row in run.metrics) + float(before.get("seconds", 0.0)),
        "gradient_steps": int(sum(row.get("pretrain/gradient_steps", 0) for row in run.metrics))
        + int(before.get("gradient_steps", 0)),
        "explained_variance": last.get("pretrain/explained_variance"),
    }


def ended(cell: Cell) -> bool:
    """Whether the cell's run came to an end of its own, good or bad."""
    return _card(cell.folder).get("outcome") in ("finished", "diverged")


def check_same(cell: Cell) -> None:
    """Raise ConfigError if the cell's folder holds a run with other settings than the study wants."""
    if not (cell.folder / "config.yaml").is_file():
        return
    different = list(config_differences(cell.config, load_run_config(cell.folder)))
    if different:
        shown = "; ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise ConfigError(
            f"{cell.folder} holds a run with other settings ({shown}). Choose another --out, or delete that folder."
        )


def describe(cell: Cell) -> str:
    """The cell in words."""
    return f"{cell.method}, base {cell.base}, seed {cell.seed}" + (" (tuning)" if cell.kind == "tuning" else "")


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "cell.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _score(folder: Path) -> str:
    after = [e for e in read_jsonl(folder / "evaluations.jsonl") if e.get("label") == "after"]
    if after:
        return f"avg@{after[-1]['k']} {number(after[-1]['avg']):.3f}"
    rows = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get("phase") == "pretrain"]
    return f"explained variance {number(rows[-1].get('pretrain/explained_variance')):.2f}" if rows else "finished"


def _flat(settings: Mapping[str, Any]) -> str:
    from vapo.config import flatten

    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
