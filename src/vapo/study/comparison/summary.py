"""Compute the content of `results.json` from the runs.

docs/compare.md explains each entry. Page, tables and figures are made from this content only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median, stdev
from typing import Any

import numpy as np

from vapo.errors import DataError
from vapo.evals.statistics import Scores, bootstrap_interval, unanimous_interval
from vapo.reports.runfiles import Record
from vapo.study.cell_identity import settings_hash
from vapo.study.comparison import dynamics
from vapo.study.comparison.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    band,
    degrees_of_freedom,
    estimate,
    paired_estimate,
    run_means,
)
from vapo.study.comparison.compared_run import ComparedRun, Evaluation
from vapo.study.comparison.kept_runs import run_record, settings_table
from vapo.study.comparison.methods import PAPER, short_names
from vapo.study.comparison.multiple import holm, p_value, unanimous_p_value
from vapo.study.comparison.readings import (
    PairReading,
    Reading,
    by_all_samples,
    by_gradient_steps,
    curve_of,
    fell,
    mean_score,
    most_reached,
    num_ended_low,
    pair_readings_at,
    readings_at,
)
from vapo.study.comparison.score_curves import mean_curves, steps_until_target

FORMAT = 1
DEFAULT_REFERENCE = "vapo"
TARGET = "dapo"
"""`steps_to_target` counts the steps to this method's final score; the paper: "50 in 60 % of DAPO's steps"."""
DIGITS = 5
ROUNDING = 1e-12
"""Smaller numbers count as 0."""


def summarise(
    runs: Sequence[ComparedRun], *, reference: str | None = None, heading: str | None = None, notes: Sequence[str] = ()
) -> Record:
    """The content of `results.json` for runs in the order of `read_compared_runs`.

    Raises DataError if no run of the `reference` method has finished. Without one it is "vapo", or the first method
    where "vapo" has no finished run.
    """
    finished = [run for run in runs if run.outcome == "finished"]
    groups = {method: [c for c in finished if c.method == method] for method in _distinct(c.method for c in runs)}
    reference = _reference(reference, [method for method, group in groups.items() if group])
    reached = most_reached(finished)
    readings, pair_readings = readings_at(reached), pair_readings_at(reached)
    names = short_names([run.path for run in runs])
    bases = _base_names(runs)
    gradient_steps = {c.final.gradient_steps for c in finished}
    target = groups.get(TARGET) or None
    methods = [
        _method(
            method, group, [c for c in runs if c.method == method], groups[reference], target, readings, pair_readings
        )
        for method, group in groups.items()
    ]
    _correct(methods, pair_readings)
    results = {
        "format": FORMAT,
        "heading": heading,
        "notes": list(notes),
        "task": runs[0].task,
        "k": finished[0].final.k,
        "prompts": len(finished[0].final.rates),
        "set": finished[0].set,
        "bases": _distinct(bases[run.base] for run in finished),
        "reference": reference,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "curve_k": min(e.k for c in finished for e in c.evaluations),
        "critics": _critics(finished, bases),
        "commits": sorted({c.code for c in finished}),
        "processors": sorted({str(p) for c in finished if (p := c.versions.get("processor"))}),
        "equal": {"gradient_steps": gradient_steps.pop() if len(gradient_steps) == 1 else None, **reached},
        "target": target and {"method": TARGET, "score": mean_score(target), "gradient_steps": _gradient_steps(target)},
        "methods": methods,
        "runs": [_run(run, name, bases[run.base]) for run, name in zip(runs, names, strict=True)],
    }
    return {**rounded(results), "settings": settings_table(runs)}


def rounded(tree: Any) -> Any:
    """The same data with floats rounded to five significant digits, and None for nan and infinity."""
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
    group: list[ComparedRun],
    everyone: list[ComparedRun],
    reference: list[ComparedRun],
    target: list[ComparedRun] | None,
    readings: dict[str, Reading],
    pair_readings: dict[str, PairReading],
) -> Record:
    scores = [mean_score([run]) for run in group]
    return {
        "method": method,
        "paper": PAPER.get(method),
        "fell": sum(fell(run) for run in group),
        "ended_low": num_ended_low(group),
        "crashes": sum(run.outcome == "diverged" for run in everyone),
        "left_out": sum(run.outcome in ("failed", "unfinished") for run in everyone),
        **{name: _estimate_of(group, reading) for name, reading in readings.items()},
        "spread": stdev(scores) if len(scores) > 1 else None,
        "difference": None
        if group == reference or not group
        else {name: _difference(group, reference, reading) for name, reading in pair_readings.items()},
        "steps_to_target": _steps_to_target(group, target),
        "gradient_steps": [run.final.gradient_steps for run in group],
        "samples": _median(run.final.samples for run in group),
        "pretraining_samples": _median(run.pretraining.samples for run in group),
        "seconds": _median(run.seconds for run in group),
        "pretraining_seconds": _median(run.pretraining.seconds for run in group),
        "curves": {
            "gradient_steps": _mean_curve(group, by_gradient_steps),
            "samples": _mean_curve(group, by_all_samples),
        },
        "dynamics": {key: dynamics.metric_curve([c.rows for c in group], key) for key in dynamics.CURVES},
        "bias_by_position": dynamics.bias_by_position([c.rows for c in group]),
    }


def _run(run: ComparedRun, name: str, base: str) -> Record:
    evaluations = run.evaluations
    return {
        "run": name,
        "method": run.method,
        "base": base,
        "seed": run.seed,
        "outcome": run.outcome,
        "resumed": [resume._asdict() for resume in run.resumed],
        "score": mean_score([run]) if evaluations else None,
        "evaluations": {
            "step": [e.step for e in evaluations],
            "k": [e.k for e in evaluations],
            "gradient_steps": [e.gradient_steps for e in evaluations],
            "samples": [e.samples for e in evaluations],
            "samples_with_pretraining": [e.samples + run.pretraining.samples for e in evaluations],
            "seconds": [e.seconds for e in evaluations],
            "score": curve_of(run, by_gradient_steps).means.tolist() if evaluations else [],
        },
        "pretraining": {
            "samples": run.pretraining.samples,
            "tokens": run.pretraining.tokens,
            "seconds": run.pretraining.seconds,
            "steps": run.pretraining.steps,
            "shared_critic": run.pretraining.critic,
            "gradient_steps": run.pretraining.gradient_steps,
            "explained_variance": run.pretraining.explained_variance,
        },
        "seconds": run.seconds,
        "seconds_in_evaluation": run.seconds_in_evaluation,
        "versions": run.versions,
        "kept_from": run.kept_from,
        "settings": None if run.settings is None else settings_hash(run.settings),
        "record": run_record(run),
    }


def _estimate_of(group: list[ComparedRun], reading: Reading) -> Record:
    if not group:
        return _as_json(Estimate(math.nan, math.nan, math.nan, 0))
    scores = np.array([reading(run) for run in group])
    found = _over_prompts(estimate(scores, [run.base for run in group]), scores)
    if found.num_runs > 1 and _are_equal(scores):
        found = _exact(found, scores)
    return _as_json(found._replace(low=_share(found.low), high=_share(found.high)))


def _are_equal(scores: Scores) -> bool:
    """Whether all runs have one score on all prompts, so that resampling has no variance."""
    return float(np.nanmax(scores) - np.nanmin(scores)) < ROUNDING


def _exact(found: Estimate, scores: Scores, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The estimate of equal scores with their exact interval, in which each judged prompt is one trial."""
    return found._replace(**unanimous_interval(found.mean, _num_judged(scores), LEVEL, bounds)._asdict())


def _num_judged(scores: Scores) -> int:
    return int((~np.isnan(scores)).any(axis=0).sum())


def _over_prompts(found: Estimate, scores: Scores, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The estimate. For a single run or pair, its interval covers the prompts only, and not other seeds."""
    if found.num_runs != 1:
        return found
    (row,) = scores[~np.isnan(run_means(scores))]
    return found._replace(**bootstrap_interval(row, LEVEL, RESAMPLES, bounds=bounds)._asdict())


def _share(value: float) -> float:
    """The value clipped to [0, 1], the range of a share of right answers; nan is kept."""
    return value if math.isnan(value) else min(1.0, max(0.0, value))


def _difference(group: list[ComparedRun], reference: list[ComparedRun], reading: PairReading) -> Record:
    """The paired difference to the reference, over runs with the same base and seed, with its p-value."""
    partner = {(run.base, run.seed): run for run in reference}
    pairs = [(run, partner[run.base, run.seed]) for run in group if (run.base, run.seed) in partner]
    if not pairs:
        return {**_as_json(Estimate(math.nan, math.nan, math.nan, 0)), "excludes_zero": None, "p": None}
    own, others = (np.array(side) for side in zip(*(reading(*pair) for pair in pairs), strict=True))
    bases, gaps = [run.base for run, _ in pairs], own - others
    gap = paired_estimate(own, others, bases)
    if gap.num_runs < 2:  # a single seed is no evidence about other seeds
        return {**_as_json(_over_prompts(gap, gaps, (-1.0, 1.0))), "excludes_zero": None, "p": None}
    if _are_equal(gaps):
        gap = _exact(gap, gaps, (-1.0, 1.0))
        p = unanimous_p_value(gap.mean, _num_judged(gaps))
        return {**_as_json(gap), "excludes_zero": gap.low > 0 or gap.high < 0, "p": p}
    judged = ~np.isnan(run_means(gaps))
    df = degrees_of_freedom(gaps[judged], [base for base, use in zip(bases, judged, strict=True) if use])
    return {**_as_json(gap), "excludes_zero": gap.low > 0 or gap.high < 0, "p": p_value(gap, df)}


def _correct(methods: Sequence[Record], readings: Iterable[str]) -> None:
    """Add `p_holm` to each difference: its p-value corrected for the number of methods that are compared."""
    for reading in readings:
        gaps = [method["difference"][reading] for method in methods if method["difference"] is not None]
        tested = [gap for gap in gaps if gap["p"] is not None]
        for gap in gaps:
            gap["p_holm"] = None
        for gap, adjusted in zip(tested, holm([gap["p"] for gap in tested]), strict=True):
            gap["p_holm"] = adjusted


def _steps_to_target(group: list[ComparedRun], target: list[ComparedRun] | None) -> Record | None:
    if not target or not group or not _has_improved(target):
        return None
    total = _gradient_steps(target)
    found = steps_until_target(
        [curve_of(run, by_gradient_steps) for run in group],
        [run.base for run in group],
        np.array([run.final.rates for run in target]),
        [run.base for run in target],
        paired=[(c.base, c.seed) for c in group] == [(c.base, c.seed) for c in target],
    )
    return {
        "gradient_steps": found.x,
        "share": found.x / total if total else math.nan,
        "low": found.low / total if total else math.nan,
        "high": found.high / total if total else math.nan,
        "reached_in": found.reached,
    }


def _has_improved(group: list[ComparedRun]) -> bool:
    """Whether the method's final score exceeds its first one; a score reached at the start is not a target."""
    return mean_score(group) > float(np.mean([np.nanmean(run.evaluations[0].rates) for run in group]))


def _mean_curve(group: list[ComparedRun], axis: Callable[[ComparedRun, Evaluation], float]) -> Record | None:
    if not group:
        return None
    x, means = mean_curves([curve_of(run, axis) for run in group])
    low, high = band(means, [run.base for run in group])
    low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)  # keeps nan
    return {"x": x.tolist(), "mean": means.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}


def _reference(wanted: str | None, finished: list[str]) -> str:
    """The method that was named, else the default; `finished` are the methods with a finished run."""
    if wanted is None:
        return DEFAULT_REFERENCE if DEFAULT_REFERENCE in finished else finished[0]
    if wanted in finished:
        return wanted
    raise DataError(
        f"The reference method {wanted!r} has no finished run. Choose --reference from: {', '.join(finished)}."
    )


def _base_names(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The name of each base on the page; folders lose the parents that all of them share."""
    folders = _distinct(run.base for run in runs if "/" in run.base)
    return {run.base: run.base for run in runs} | dict(zip(folders, short_names(folders), strict=True))


def _gradient_steps(runs: Sequence[ComparedRun]) -> float:
    return float(np.mean([run.final.gradient_steps for run in runs]))


def _critics(runs: Sequence[ComparedRun], bases: dict[str, str]) -> list[Record]:
    """The shared critics, each once, with its cost and the number of runs that start from it."""
    users: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        if run.pretraining.critic is not None:
            users.setdefault((run.pretraining.critic, run.base), []).append(run)
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


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _as_json(found: Estimate) -> Record:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.num_runs}


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
