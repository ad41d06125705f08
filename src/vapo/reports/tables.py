"""The table of held-out scores before and after training, for the terminal and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from vapo.errors import counted
from vapo.metrics import EvaluationLabel
from vapo.reports.formatting import NOTHING, figure, gap, interval, percent, signed
from vapo.reports.runfiles import Record, number
from vapo.reports.score_change import direction, paired_change


@dataclass(frozen=True)
class Row:
    """One score before and after training, formatted."""

    name: str
    before: str
    after: str
    change: str
    before_interval: str = ""
    after_interval: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        """The cells of the row, each score with its interval."""
        before, after = f"{self.before} {self.before_interval}", f"{self.after} {self.after_interval}"
        return self.name, before.rstrip(), after.rstrip(), self.change


def first_and_last(evaluations: list[Record]) -> tuple[Record | None, Record | None]:
    """The evaluation before training and the newest one during or after it; None where there is none."""
    before = [e for e in evaluations if e.get("label") == EvaluationLabel.BEFORE]
    later = [e for e in evaluations if e.get("label") != EvaluationLabel.BEFORE]
    # the lines are in the order of time: a run that was made longer goes on after one of "after"
    return (before[-1] if before else None), (later[-1] if later else None)


def before_after_rows(evaluations: list[Record]) -> list[Row]:
    """One row for each score that either evaluation has; pass@1 is left out because it equals avg@k.

    More samples give another majority, so maj is compared at one k only.
    """
    before, after = (evaluation or {} for evaluation in first_and_last(evaluations))
    k = after.get("k", before.get("k", "k"))
    k_before = before.get("k", k)
    avg = f"avg@{k}" if k == k_before else f"avg@{k_before} → avg@{k}"
    rows = [replace(_plain(avg, before.get("avg"), after.get("avg")), **_intervals(before, after))]
    passes = {**(before.get("pass") or {}), **(after.get("pass") or {})}
    for j in sorted(passes.keys() - {"1"}, key=int):
        was, now = ((side.get("pass") or {}).get(j) for side in (before, after))
        rows.append(_plain(f"pass@{j}", was, now))
    rows.append(_plain(f"maj@{k}", before.get("maj") if k == k_before else None, after.get("maj")))
    rows.append(_plain("mean length", before.get("mean_length"), after.get("mean_length")))
    clipped, clipped_now = (percent(number(side.get("clipped_ratio"))) for side in (before, after))
    rows.append(Row("cut off at the limit", clipped, clipped_now, ""))
    return [row for row in rows if (row.before, row.after) != (NOTHING, NOTHING)]


def headline(evaluations: list[Record]) -> str:
    """One sentence about held-out accuracy. It says "rose" or "fell" only if the evaluations can tell."""
    before, after = first_and_last(evaluations)
    if before is None or after is None:
        return "There is no evaluation both before and after training yet."
    k, k_before, was, now = after.get("k", "k"), before.get("k", "k"), _score(before), _score(after)
    score = f"avg@{k}" if k == k_before else f"accuracy (avg@{k_before} before, avg@{k} after)"
    went = direction(before, after)
    change = f"went from {was} to {now}, not told apart," if went == "not told apart" else f"{went} from {was} to {now}"
    paired = paired_change(before, after)
    by = ""
    if paired is not None and not math.isnan(paired.low):
        by = f"; paired by prompt {gap(paired.mean)} [{gap(paired.low)}, {gap(paired.high)}]"
    return f"Held-out {score} {change} in {_counted(after.get('step'), 'step')}{by}."


def headings(evaluations: list[Record]) -> tuple[str, str]:
    """The names of the two columns; the second is "after" only if its evaluation was made at the end of training."""
    _, after = first_and_last(evaluations)
    if after is None or after.get("label") == EvaluationLabel.AFTER:
        return EvaluationLabel.BEFORE, EvaluationLabel.AFTER
    return EvaluationLabel.BEFORE, f"step {after.get('step', '?')}"


def evaluation_table(result: Record) -> Table:
    """One evaluation (a line of `evaluations.jsonl`, or what `vapo eval --json` prints) as a table."""
    rows = before_after_rows([{**result, "label": EvaluationLabel.AFTER}])
    title = f"{_counted(result.get('prompts'), 'held-out prompt')}, {_counted(result.get('k'), 'sample')} each"
    if "top_p" in result:
        title += f", temperature {result.get('temperature')}, top-p {result.get('top_p')}"
    table = Table("", "score", "95 % interval", title=title)
    intervals = {
        re.sub("^maj$", f"maj@{result.get('k')}", name): ends for name, ends in result.get("intervals", {}).items()
    }
    for row in rows:
        table.add_row(row.name, row.after, row.after_interval or _ends(intervals.get(row.name)))
    if result.get("in_order"):
        value, low, high = map(number, result["in_order"])
        table.add_row("a right sample above a wrong one, by the critic", figure(value), _ends((low, high)))
    for rank, scores in result.get("ranking", {}).items():
        table.add_row(f"{rank}, by the critic", figure(scores["score"]), _ends((scores["low"], scores["high"])))
        for other, name in (("over_maj", "the majority"), ("over_avg", "one sample")):
            if other in scores:
                mean, low, high = map(number, scores[other])
                ends = f"{gap(low)} to {gap(high)}" if low <= high else ""  # nan with fewer than two prompts
                table.add_row(f"  over {name}", gap(mean), ends)
    table.add_row("invalid verdicts", percent(number(result.get("invalid_ratio"))), "")
    return table


def _ends(ends: Sequence[float] | None) -> str:
    return "" if ends is None else interval(*ends)


def before_after_table(evaluations: list[Record]) -> Table:
    """The before-and-after table as a rich table."""
    before, after = headings(evaluations)
    table = Table(title=_title(evaluations), title_justify="left", title_style="bold", border_style="dim")
    table.add_column("held-out score")
    table.add_column(before, justify="right")
    table.add_column(after, justify="right", style="bold")
    table.add_column("change", justify="right")
    for row in before_after_rows(evaluations):
        table.add_row(*row.cells())
    return table


def _title(evaluations: list[Record]) -> str:
    prompts = [e["prompts"] for e in evaluations if e.get("prompts")]
    return f"{_counted(prompts[-1], 'held-out prompt')}, 95 % intervals" if prompts else "No evaluation yet"


def _bounds(evaluation: Record) -> str:
    return interval(number(evaluation.get("low")), number(evaluation.get("high")))


def _intervals(before: Record, after: Record) -> dict[str, str]:
    return {"before_interval": _bounds(before), "after_interval": _bounds(after)}


def _score(evaluation: Record) -> str:
    return f"{figure(number(evaluation.get('avg')))} {_bounds(evaluation)}".rstrip()


def _plain(name: str, before: object, after: object) -> Row:
    was, now = number(before), number(after)
    return Row(name, figure(was), figure(now), signed(now - was))


def _counted(value: object, noun: str) -> str:
    """`counted` for a number of a file, where it may be missing."""
    return counted(value, noun) if isinstance(value, int) else f"? {noun}s"
