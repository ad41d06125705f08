"""From runs to `results.json`: everything a comparison says, as plain data.

docs/compare.md explains each entry; page, table and figures are made from it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median, stdev
from typing import Any

import numpy as np

from vapo.errors import DataError
from vapo.evals.statistics import Scores
from vapo.reports.comparison import dynamics
from vapo.reports.comparison.bootstrap import LEVEL, RESAMPLES, Estimate, band, estimate, paired_estimate, run_means
from vapo.reports.comparison.methods import PAPER, short_names
from vapo.reports.comparison.progress import RunCurve, arrival, mean_curves, rates_at
from vapo.reports.comparison.runs import Cell, Evaluation, task_of
from vapo.reports.runfiles import Record, number

FORMAT = 1
TARGET = "dapo"
"""The method whose final score the others are timed to; the paper: "50 in 60 % of DAPO's steps"."""
DIGITS = 5
ROUNDING = 1e-12
"""Smaller numbers are what is left of 0 after floating-point sums."""
FALL = 0.15
"""How far below its own best evaluation a run ends to be called fallen; an avg@1 of 200 prompts errs by 0.035."""

Reading = Callable[[Cell], Scores]
"""How a run is scored: its success rate on each held-out prompt (P,), at some place in training."""


def summarise(
    cells: Sequence[Cell], *, reference: str = "vapo", heading: str | None = None, notes: Sequence[str] = ()
) -> Record:
    """The content of `results.json` for cells in the order of `read_cells`.

    Raises DataError if no run of the `reference` method has finished; without any "vapo", the default
    reference, the first method takes its place.
    """
    finished = [cell for cell in cells if cell.outcome == "finished"]
    groups = {method: [c for c in finished if c.method == method] for method in _in_order(c.method for c in cells)}
    reference = _reference(reference, groups)
    reached = {
        "samples": min(c.final.samples for c in finished),
        "samples_with_pretraining": min(c.final.samples + c.pretraining.samples for c in finished),
    }
    readings: dict[str, Reading] = {
        "final": lambda cell: cell.final.rates,
        "equal_samples": lambda cell: rates_at(_curve(cell, _samples), reached["samples"]),
        "equal_samples_with_pretraining": lambda cell: rates_at(
            _curve(cell, _all_samples), reached["samples_with_pretraining"]
        ),
    }
    names = short_names([cell.path for cell in cells])
    bases = _base_names(cells)
    gradient_steps = {c.final.gradient_steps for c in finished}
    target = groups.get(TARGET) or None
    results = {
        "format": FORMAT,
        "heading": heading,
        "notes": list(notes),
        "task": task_of(cells[0]),
        "k": finished[0].final.k,
        "prompts": len(finished[0].final.rates),
        "set": finished[0].set,
        "bases": _in_order(bases[cell.base] for cell in finished),
        "reference": reference,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "curve_k": min(e.k for c in finished for e in c.evaluations),
        "critics": _critics(finished, bases),
        "commits": sorted({str(c.files.environment.get("commit")) for c in finished}),
        "equal": {"gradient_steps": gradient_steps.pop() if len(gradient_steps) == 1 else None, **reached},
        "target": target and {"method": TARGET, "score": _score(target), "gradient_steps": _gradient_steps(target)},
        "methods": [
            _method(method, group, [c for c in cells if c.method == method], groups[reference], target, readings)
            for method, group in groups.items()
        ],
        "runs": [_run(cell, name, bases[cell.base]) for cell, name in zip(cells, names, strict=True)],
    }
    return rounded(results)


def rounded(tree: Any) -> Any:
    """The same data with floats of five significant digits, and null for numbers that JSON does not have."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(value) for value in tree]
    if isinstance(tree, float) and abs(tree) < ROUNDING:
        return 0.0
    if isinstance(tree, float):
        return float(f"{tree:.{DIGITS}g}") if math.isfinite(tree) else None
    return tree


def _method(
    method: str,
    group: list[Cell],
    everyone: list[Cell],
    reference: list[Cell],
    target: list[Cell] | None,
    readings: dict[str, Reading],
) -> Record:
    scores = [_score([cell]) for cell in group]
    return {
        "method": method,
        "paper": PAPER.get(method),
        "fell": sum(_fell(cell) for cell in group),
        "crashes": sum(cell.outcome == "diverged" for cell in everyone),
        "left_out": sum(cell.outcome in ("failed", "unfinished") for cell in everyone),
        **{name: _estimate_of(group, reading) for name, reading in readings.items()},
        "spread": stdev(scores) if len(scores) > 1 else None,
        "difference": None
        if group == reference or not group
        else {name: _difference(group, reference, reading) for name, reading in readings.items()},
        "steps_to_target": _steps_to_target(group, target),
        "gradient_steps": [cell.final.gradient_steps for cell in group],
        "samples": _median(cell.final.samples for cell in group),
        "pretraining_samples": _median(cell.pretraining.samples for cell in group),
        "seconds": _median(_seconds(cell) for cell in group),
        "pretraining_seconds": _median(cell.pretraining.seconds for cell in group),
        "curves": {"gradient_steps": _mean_curve(group, _gradient), "samples": _mean_curve(group, _all_samples)},
        "dynamics": {key: dynamics.metric_curve([c.files for c in group], key) for key in dynamics.CURVES},
        "bias_by_position": dynamics.bias_by_position([c.files for c in group]),
    }


def _run(cell: Cell, name: str, base: str) -> Record:
    evaluations, packages = cell.evaluations, cell.files.environment.get("packages") or {}
    return {
        "run": name,
        "method": cell.method,
        "base": base,
        "seed": cell.seed,
        "outcome": cell.outcome,
        "score": _score([cell]) if evaluations else None,
        "evaluations": {
            "step": [e.step for e in evaluations],
            "k": [e.k for e in evaluations],
            "gradient_steps": [e.gradient_steps for e in evaluations],
            "samples": [e.samples for e in evaluations],
            "samples_with_pretraining": [e.samples + cell.pretraining.samples for e in evaluations],
            "score": _curve(cell, _gradient).means.tolist() if evaluations else [],
        },
        "pretraining": {
            "samples": cell.pretraining.samples,
            "tokens": cell.pretraining.tokens,
            "seconds": cell.pretraining.seconds,
            "steps": cell.pretraining.steps,
            "shared_critic": cell.pretraining.critic,
        },
        "seconds": _seconds(cell),
        "seconds_in_evaluation": _sum(cell.files.phase("train"), "time/evaluate")
        + _sum([e for e in cell.files.evaluations if e.get("label") == "during"], "time/evaluate"),
        "versions": {
            **{package: packages.get(package) for package in ("vapo", "torch", "transformers")},
            "commit": cell.files.environment.get("commit"),
        },
    }


def _estimate_of(group: list[Cell], reading: Reading) -> Record:
    if not group:
        return _as_json(Estimate(math.nan, math.nan, math.nan, 0))
    found = estimate(np.array([reading(cell) for cell in group]), [cell.base for cell in group])
    return _as_json(found._replace(low=_share(found.low), high=_share(found.high)))


def _share(value: float) -> float:
    """A share of right answers: what lies outside 0 to 1 is not possible, however wide the interval. nan stays."""
    return value if math.isnan(value) else min(1.0, max(0.0, value))


def _difference(group: list[Cell], reference: list[Cell], reading: Reading) -> Record:
    """The paired difference to the reference over runs of equal base and seed."""
    partner = {(cell.base, cell.seed): cell for cell in reference}
    pairs = [(cell, partner[cell.base, cell.seed]) for cell in group if (cell.base, cell.seed) in partner]
    if not pairs:
        return {**_as_json(Estimate(math.nan, math.nan, math.nan, 0)), "excludes_zero": None}
    gap = paired_estimate(
        np.array([reading(own) for own, _ in pairs]),
        np.array([reading(other) for _, other in pairs]),
        [own.base for own, _ in pairs],
    )
    known = not math.isnan(gap.low)
    return {**_as_json(gap), "excludes_zero": (gap.low > 0 or gap.high < 0) if known else None}


def _steps_to_target(group: list[Cell], target: list[Cell] | None) -> Record | None:
    if not target or not group or not _has_improved(target):
        return None
    total = _gradient_steps(target)
    found = arrival(
        [_curve(cell, _gradient) for cell in group],
        [cell.base for cell in group],
        np.array([cell.final.rates for cell in target]),
        [cell.base for cell in target],
        paired=[(c.base, c.seed) for c in group] == [(c.base, c.seed) for c in target],
    )
    return {
        "gradient_steps": found.x,
        "share": found.x / total if total else math.nan,
        "low": found.low / total if total else math.nan,
        "high": found.high / total if total else math.nan,
        "reached_in": found.reached,
    }


def _has_improved(group: list[Cell]) -> bool:
    """Whether the method ended above where it began; a score that it had from the start is no aim."""
    return _score(group) > float(np.mean([np.nanmean(cell.evaluations[0].rates) for cell in group]))


def _mean_curve(group: list[Cell], axis: Callable[[Cell, Evaluation], int]) -> Record | None:
    if not group:
        return None
    x, means = mean_curves([_curve(cell, axis) for cell in group])
    low, high = band(means, [cell.base for cell in group])
    low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)  # nan stays
    return {"x": x.tolist(), "mean": means.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}


def _curve(cell: Cell, axis: Callable[[Cell, Evaluation], int]) -> RunCurve:
    x = np.array([axis(cell, e) for e in cell.evaluations], dtype=np.float64)
    return RunCurve(x, np.array([e.rates for e in cell.evaluations]))


def _gradient(_: Cell, evaluation: Evaluation) -> int:
    return evaluation.gradient_steps


def _samples(_: Cell, evaluation: Evaluation) -> int:
    return evaluation.samples


def _all_samples(cell: Cell, evaluation: Evaluation) -> int:
    return evaluation.samples + cell.pretraining.samples


def _reference(wanted: str, groups: dict[str, list[Cell]]) -> str:
    if groups.get(wanted):
        return wanted
    with_runs = [method for method, group in groups.items() if group]
    if wanted == "vapo":
        return with_runs[0]
    raise DataError(
        f"No finished run is of the method {wanted!r}, so there is nothing to take differences to. "
        f"Choose --reference from: {', '.join(with_runs)}."
    )


def _base_names(cells: Sequence[Cell]) -> dict[str, str]:
    """What a page calls each base: a folder by its own name, without where it lies."""
    folders = _in_order(cell.base for cell in cells if "/" in cell.base)
    return {cell.base: cell.base for cell in cells} | dict(zip(folders, short_names(folders), strict=True))


def _score(cells: Sequence[Cell]) -> float:
    return float(run_means(np.array([cell.final.rates for cell in cells])).mean())


def _gradient_steps(cells: Sequence[Cell]) -> float:
    return float(np.mean([cell.final.gradient_steps for cell in cells]))


def _seconds(cell: Cell) -> float:
    """Seconds of all joint steps, without the held-out evaluations between them (which runs of vapo 0.1 counted in)."""
    rows = cell.files.phase("train")
    return _sum(rows, "step_time") - _sum(rows, "time/evaluate")


def _fell(cell: Cell) -> bool:
    """Whether the run ended far below its own best evaluation: a collapse that no exit code tells."""
    return float(_curve(cell, _gradient).means.max()) - _score([cell]) > FALL


def _critics(cells: Sequence[Cell], bases: dict[str, str]) -> list[Record]:
    """The critics that several runs start from, each once, with what making it cost."""
    users: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.pretraining.critic is not None:
            users.setdefault((cell.pretraining.critic, cell.base), []).append(cell)
    return [
        {
            "critic": name,
            "base": bases[base],
            "runs": len(group),
            "samples": group[0].pretraining.samples,
            "seconds": group[0].pretraining.seconds,
            "gradient_steps": group[0].pretraining.gradient_steps,
            "explained_variance": group[0].pretraining.explained_variance,
        }
        for (name, base), group in users.items()
    ]


def _sum(rows: Sequence[Record], key: str) -> float:
    return float(np.nansum([number(row.get(key)) for row in rows]))


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _as_json(found: Estimate) -> Record:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.num_runs}


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
