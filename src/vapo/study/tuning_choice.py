"""The settings that tuning chose for each method, in `tuning.json` of the study's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from vapo.errors import ConfigError
from vapo.metrics import Phase
from vapo.reports.runfiles import number, read_run
from vapo.study.cell_cards import read_card, write_json
from vapo.study.cells import Cell
from vapo.study.study import Study


def choose_settings(
    study: Study,
    trials: Mapping[tuple[str, int], Sequence[Cell]],
    out: Path,
    kept: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """The settings of each tuned method's best grid point, by training accuracy over the last quarter of the steps.

    Accuracy is that on training prompts, so held-out prompts stay unseen. A trial that diverged or has no verdict
    counts as 0, and the first of equal points wins. All scores are written to tuning.json, which keeps the entries of
    earlier studies. `kept` has the entries of methods whose trials ran elsewhere.
    """
    if study.tuning is None:
        return {}
    path, tuned = out / "tuning.json", {**read_tuning(out), **kept}
    for name in study.tuning.methods:
        if name in kept:
            continue
        scores = []
        for point in range(len(study.tuning.grid)):
            each = [late_accuracy(cell.folder) for cell in trials[name, point]]
            scores.append(fmean(score or 0.0 for score in each))
        best = scores.index(max(scores))
        tuned[name] = {
            "chosen": study.tuning.grid[best],
            "late_accuracy": scores,
            "grid": study.tuning.grid,
            "trials": trial_hashes(name, trials),
            "commits": sorted({commit for cell in cells_of(name, trials) if (commit := _commit(cell.folder))}),
        }
    write_json(path, tuned)
    return {name: tuned[name]["chosen"] for name in study.tuning.methods}


def chosen_before(study: Study, out: Path) -> dict[str, dict[str, Any]]:
    """The settings that tuning has chosen in this folder so far, for the methods that this study tunes."""
    tuned, methods = read_tuning(out), study.tuning.methods if study.tuning else []
    return {name: tuned[name]["chosen"] for name in methods if name in tuned}


def tuning_of(study: Study, method: str) -> str | None:
    """The tuned method whose settings a method takes: itself, else its preset; None if neither is tuned."""
    tuned = study.tuning.methods if study.tuning else []
    return next((name for name in (method, study.method(method).preset) if name in tuned), None)


def late_accuracy(folder: Path) -> float | None:
    """Mean training accuracy over those of a run's last quarter of steps that have one; None if none has, or if the
    run did not finish."""
    if read_card(folder).get("outcome") != "finished":
        return None
    rows = read_run(folder).phase(Phase.TRAIN)
    late = [number(row.get("accuracy")) for row in rows[len(rows) * 3 // 4 :]]
    known = [accuracy for accuracy in late if not math.isnan(accuracy)]  # a step may have no verdict
    return fmean(known) if known else None


def cells_of(method: str, trials: Mapping[tuple[str, int], Sequence[Cell]]) -> list[Cell]:
    """The trials of one method."""
    return [cell for (name, _), cells in trials.items() if name == method for cell in cells]


def trial_hashes(method: str, trials: Mapping[tuple[str, int], Sequence[Cell]]) -> list[list[str]]:
    """The hashes of a method's trials: one list per grid point, one hash per seed."""
    return [[cell.hash for cell in cells] for (name, _), cells in trials.items() if name == method]


def read_tuning(out: Path) -> dict[str, dict[str, Any]]:
    """The content of tuning.json in a study's folder, by method; empty without one."""
    path = out / "tuning.json"
    if not path.is_file():
        return {}
    try:
        tuned = json.loads(path.read_bytes())
        return {str(method): {**entry, "chosen": dict(entry["chosen"])} for method, entry in tuned.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Delete it to make it again from the trials.") from error


def _commit(folder: Path) -> str | None:
    return read_run(folder).environment.get("commit") if folder.is_dir() else None
