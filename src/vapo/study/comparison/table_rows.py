"""The cells and column explanations of a comparison's tables as text, for page, file and terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vapo.errors import counted
from vapo.reports.formatting import NOTHING, figure, interval, percent, short_count, signed
from vapo.reports.runfiles import Record, number
from vapo.study.comparison.bootstrap import LEVEL
from vapo.study.comparison.methods import LADDER

Row = list[str]
ONE_SEED = "over prompts, one seed"
"""The note after the interval of a single run or pair of runs."""
UNCORRECTED = "no clear difference after correction for the number of methods"
_FEW = 6  # the most methods that one sentence names


def comparison_title(results: Record) -> str:
    """The comparison's heading, or a default with the task's name."""
    return str(results["heading"] or f"Methods compared on {results['task']}")


def main_headings(results: Record) -> Row:
    """The column headings of the main table."""
    return [
        "method",
        "paper (Qwen2.5-32B)",
        f"avg@{results['k']}",
        "n",
        f"difference to {results['reference']}",
        "at equal samples (pretraining counted)",
        *([f"steps to {results['target']['method']}'s score"] if results["target"] else []),
        "samples (+ pretraining)",
        "minutes (+ pretraining)",
        "crashes",
    ]


def main_rows(results: Record) -> list[Row]:
    """The main table: one row per method."""
    return [_row(method, results) for method in results["methods"]]


def equal_samples_headings(results: Record) -> Row:
    """The column headings of the second table."""
    to = f"difference to {results['reference']}"
    equal = results["equal"]
    return [
        "method",
        f"at {short_count(equal['samples'])} samples, pretraining not counted",
        to,
        f"at {short_count(equal['samples_with_pretraining'])} samples, pretraining counted",
        to,
        "each run's final score",
        "their standard deviation",
    ]


def equal_samples_rows(results: Record) -> list[Row]:
    """The second table: the same methods at equal samples, and the score of every run."""
    table = []
    for method in results["methods"]:
        scores = final_scores(results, method["method"])
        cells = [method["method"]]
        for reading in ("equal_samples", "equal_samples_with_pretraining"):
            cells += [estimate_text(method[reading]), difference_text(method, reading)]
        table.append([*cells, " ".join(figure(score) for score in scores) or NOTHING, figure(method["spread"])])
    return table


def final_scores(results: Record, method: str) -> list[float]:
    """The final score of each finished run of a method."""
    return [run["score"] for run in results["runs"] if run["method"] == method and run["score"] is not None]


def comparison_headline(results: Record) -> str:
    """One paragraph with the main result.

    It calls a method better or worse only if the interval excludes 0, also after Holm's correction where there is one.
    """
    reference = next(method for method in results["methods"] if method["method"] == results["reference"])
    verdicts: dict[str, list[tuple[str, str]]] = {
        "better": [],
        "worse": [],
        UNCORRECTED: [],
        "no clear difference": [],
        "one pair only": [],
    }
    for method in results["methods"]:
        gap = (method["difference"] or {}).get("final")
        if gap is None or gap["mean"] is None:
            continue
        if gap["excludes_zero"] is None:
            verdict = "one pair only"
        elif gap["excludes_zero"] and gap.get("p_holm") is not None and not survives(gap):
            verdict = UNCORRECTED
        elif gap["excludes_zero"]:
            verdict = "better" if gap["mean"] > 0 else "worse"
        else:
            verdict = "no clear difference"
        verdicts[verdict].append((method["method"], f"{method['method']} ({signed(gap['mean'])})"))
    score = f"{results['reference']} reaches avg@{results['k']} {estimate_text(reference['final'])}"
    score += f" in {_runs(reference['final']['n'])}." if reference["final"]["n"] > 1 else "."
    few = len(results["methods"]) <= _FEW
    named, rest = [], []
    for verdict, found in verdicts.items():
        if names := [text for name, text in found if few or name in LADDER]:
            named.append(f"{verdict}: {', '.join(names)}")
        if others := len(found) - len(names):
            rest.append(f"{others} {verdict}")
    parts = [score, f"Compared with it: {'; '.join(named)}." if named else ""]
    parts.append(f"Other methods: {', '.join(rest)}." if rest else "")
    return " ".join(part for part in parts if part)


def runs_left_out(results: Record) -> list[str]:
    """One line for each run without a score, with the reason."""
    reasons = {
        "diverged": "diverged: counted as a crash",
        "failed": "failed for a reason other than the method",
        "unfinished": "not finished: continue it with vapo resume",
    }
    return [f"{_run(run)}: {reasons[run['outcome']]}" for run in results["runs"] if run["outcome"] != "finished"]


def runs_resumed(results: Record) -> list[str]:
    """One line for each run that was resumed with other settings."""
    return [f"{_run(run)}: {resumed_text(run)}" for run in results["runs"] if run.get("resumed")]


def resumed_text(run: Record) -> str:
    """The resumes of a run with other settings: steps and changes; empty if there were none.

    >>> resumed_text({"resumed": [{"step": 12, "changes": ["trainer.actor_lr: 0.001 -> 0.0005"]}]})
    'resumed with other settings at step 12: trainer.actor_lr: 0.001 -> 0.0005'
    """
    each = [
        ("" if resume["step"] is None else f" at step {resume['step']}") + f": {', '.join(resume['changes'])}"
        for resume in run.get("resumed", [])
    ]
    return "; ".join(f"resumed with other settings{text}" for text in each)


def column_explanations(results: Record) -> list[str]:
    """One explanation for each column."""
    k, reference = results["k"], results["reference"]
    count_intervals = sum(method["difference"] is not None for method in results["methods"])
    strata = "within each base, unless one has a single run, " if len(results["bases"]) > 1 else ""
    sentences = [
        f"avg@{k}: the share of right answers among {k} sampled responses to each of {results['prompts']} held-out "
        f"prompts, after training; mean over the n runs that finished (seeds × {len(results['bases'])} base "
        f"model{'s' if len(results['bases']) > 1 else ''}).",
        f"95 % intervals come from {results['resamples']:,} resamples. Each resample draws runs {strata}with "
        "replacement and held-out prompts with replacement, the same prompts for every run. Few runs estimate their "
        "variance poorly, so Student's t widens the interval. The interval of a single run or pair of runs covers the "
        f"prompts only ({ONE_SEED}), and not other seeds. Where all outcomes are equal, the interval is the exact one "
        "of Clopper and Pearson, with one trial per prompt.",
        f"Difference to {reference}: runs with the same base and seed are paired, prompt by prompt; the interval "
        "resamples pairs and prompts together. An asterisk marks an interval without 0."
        + (
            f" About one in twenty of these {count_intervals} intervals misses the true difference by chance."
            if count_intervals > 4
            else ""
        )
        + _about_correction(results),
        _about_gradient_steps(results),
        f"At equal samples: the score at {results['equal']['samples_with_pretraining']:,} training samples, the most "
        "that every run reached, from each run's held-out curve, linear between evaluations. Samples of value "
        "pretraining count, including those of a shared critic. The second table also has the score at "
        f"{results['equal']['samples']:,} samples, pretraining not counted. Evaluations during training use "
        f"{counted(results['curve_k'], 'sample')} per prompt, so these columns are noisier.",
    ]
    if results["target"]:
        target = results["target"]
        sentences.append(
            f"Steps to {target['method']}'s score: where the mean curve over a method's runs first reaches "
            f"{figure(target['score'])}, in percent of {target['method']}'s "
            f"{target['gradient_steps']:,.0f} gradient steps; linear between evaluations, not smoothed. "
            "Noise makes the first crossing come early for each "
            f"method; {target['method']}'s own figure shows by how much. An interval that ends in ∞ means that some "
            "resamples never reach the score."
            if any(method["steps_to_target"] for method in results["methods"])
            else f"Steps to {target['method']}'s score: empty, because {target['method']} did not improve in training."
        )
    sentences += [
        "Samples and minutes: median over runs; the number after the plus is that of the critic's pretraining. Minutes "
        "count the training steps and depend on the machine and on other runs on its cores.",
        "Crashes: runs whose numbers stopped being finite. Crashed, failed and unfinished runs have no score, which "
        "raises the mean of a method that crashes. Fell: runs that ended more than 0.15 below their own best "
        "evaluation; their scores count.",
        *_about_critics(results["critics"]),
        *_about_commits(results["commits"]),
        "Paper: avg@32 in percent on AIME 2024 from Qwen2.5-32B, arXiv:2504.05118, Table 1 (grpo: its "
        "R1-Zero-Qwen-32B). Task and model are different, so only the order can be compared.",
    ]
    return sentences


def _about_correction(results: Record) -> str:
    gaps = [method["difference"]["final"] for method in results["methods"] if method["difference"] is not None]
    tested = sum(gap.get("p_holm") is not None for gap in gaps)
    if not tested:
        return ""
    return (
        f" Two asterisks mark a difference that remains at the level of 5 % after Holm's correction for the {tested} "
        f"difference{'s' if tested > 1 else ''} of its column, so that the chance of any false one among them is at "
        "most 5 %. The p-values are those of Student's t that belong to the intervals."
    )


def _about_critics(critics: list[Record]) -> list[str]:
    if not critics:
        return []
    each = [
        f"{c['critic']} on base {c['base']} ({c['samples']:,} samples, {c['gradient_steps']:,} gradient steps, "
        f"{minutes(c['seconds'])} minutes, held-out explained variance {figure(number(c['explained_variance']))}; "
        f"{_runs(c['runs'])} started from it)"
        for c in critics
    ]
    return [
        f"Critics trained once and shared by all seeds, as in the paper: {'; '.join(each)}. So the intervals of "
        "methods with a pretrained critic do not include the variance of its pretraining."
    ]


def code_text(code: str) -> str:
    """The version of the code in words, of an entry of `commits`.

    >>> code_text("4f0c1d7a9be2c3d4"), code_text("vapo 0.3.0"), code_text("None")
    ('commit 4f0c1d7a9be2', 'vapo 0.3.0', 'an unknown version')
    """
    if code == "None":  # as an older version wrote it for an installed package
        return "an unknown version"
    return code if code.startswith("vapo ") else f"commit {code[:12]}"


def _about_commits(commits: list[str]) -> list[str]:
    if len(commits) == 1:
        return []
    return [f"The runs were made by {len(commits)} versions of the code: {', '.join(map(code_text, commits))}."]


def _row(method: Record, results: Record) -> Row:
    return [
        method["method"],
        NOTHING if method["paper"] is None else str(method["paper"]),
        estimate_text(method["final"]),
        _number_of_runs(method, results),
        "reference" if method["method"] == results["reference"] else difference_text(method, "final"),
        estimate_text(method["equal_samples_with_pretraining"]),
        *([_steps_to_target(method["steps_to_target"])] if results["target"] else []),
        _with_pretraining(method["samples"], method["pretraining_samples"], short_count),
        _with_pretraining(method["seconds"], method["pretraining_seconds"], minutes),
        _crashes(method),
    ]


def _number_of_runs(method: Record, results: Record) -> str:
    resumed = sum(bool(run.get("resumed")) for run in results["runs"] if run["method"] == method["method"])
    return f"{method['final']['n']}, {resumed} resumed" if resumed else str(method["final"]["n"])


def estimate_text(found: Record) -> str:
    """A mean with its interval."""
    if found["mean"] is None:
        return NOTHING
    if found["low"] is None:
        return f"{figure(found['mean'])} (n = {found['n']}, no interval)"
    text = f"{figure(found['mean'])} {interval(found['low'], found['high'])}"
    return text if found["n"] > 1 else f"{text} {ONE_SEED}"


def difference_text(method: Record, reading: str) -> str:
    """A paired difference with its interval; * excludes 0, ** does so after Holm's correction, too."""
    if method["difference"] is None:
        return NOTHING
    gap = method["difference"][reading]
    if gap["mean"] is None:
        return "no pairs"
    if gap["low"] is None:
        return f"{signed(gap['mean'])} (1 pair, no interval)"
    if gap["n"] == 1:
        return f"{signed(gap['mean'])} [{signed(gap['low'])}, {signed(gap['high'])}] {ONE_SEED}"
    star = {True: " **", False: " *"}[survives(gap)] if gap["excludes_zero"] else ""
    pairs = "" if gap["n"] == method["final"]["n"] else f", {gap['n']} pairs"
    return f"{signed(gap['mean'])} [{signed(gap['low'])}, {signed(gap['high'])}]{star}{pairs}"


def survives(gap: Record) -> bool:
    """Whether a difference excludes 0 after Holm's correction; False where an older version wrote no p-values."""
    return bool(gap["excludes_zero"]) and gap.get("p_holm") is not None and gap["p_holm"] <= 1 - LEVEL


def _steps_to_target(found: Record | None) -> str:
    if found is None:
        return NOTHING
    share = "not reached" if found["share"] is None else percent(found["share"])
    if found["reached_in"] is None or found["share"] is found["low"] is None:
        return share
    low, high = ("∞" if found[end] is None else percent(found[end]) for end in ("low", "high"))
    return f"{share} [{low}, {high}]"


def _crashes(method: Record) -> str:
    return f"{method['crashes']}, {method['fell']} fell" if method["fell"] else str(method["crashes"])


def _with_pretraining(training: float | None, pretraining: float | None, formatted: Callable[[float], str]) -> str:
    if training is None:
        return NOTHING
    return f"{formatted(training)} + {formatted(pretraining)}" if pretraining else formatted(training)


def minutes(seconds: float | None) -> str:
    """Seconds as minutes."""
    return NOTHING if seconds is None or math.isnan(seconds) else f"{seconds / 60:.1f}"


def _about_gradient_steps(results: Record) -> str:
    equal = results["equal"]["gradient_steps"]
    if equal is not None:
        return f"Every run took {equal:,} gradient steps, so the final scores are at equal gradient steps."
    each = [f"{m['method']} {_span(m['gradient_steps'])}" for m in results["methods"] if m["gradient_steps"]]
    return f"The runs took different numbers of gradient steps: {', '.join(each)}."


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _run(run: Record) -> str:
    return f"{run['run']} ({run['method']}, base {run['base']}, seed {run['seed']})"


def _runs(num: int) -> str:
    return counted(num, "run")
