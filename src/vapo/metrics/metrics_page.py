"""The text of docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable

from vapo.metrics.metric import Metric
from vapo.metrics.metric_table import SECTIONS
from vapo.metrics.other_lines import EVALUATION, EVENTS, PLACE


def metrics_page() -> str:
    """The text of `docs/metrics.md`."""
    parts = [
        "# The metrics, one by one",
        "Printed from [`vapo.metrics`](../src/vapo/metrics) by `python -m vapo.metrics docs/metrics.md`.",
        "`metrics.jsonl` has one line a step, each step exactly once. A number that is not defined (an explained\n"
        "variance when all outcomes are equal) is `null`. Names follow TRL where the meaning is the same. A name that\n"
        "ends in `/*` is a family: `/0` to `/9` for tenths of a response.",
        _table(((f"`{key}`", meaning) for key, meaning in PLACE.items()), ("name", "meaning")),
    ]
    for section in SECTIONS:
        parts += [f"## {section.heading}", section.about, _table(map(_row, section.rows), _HEADINGS)]
    parts += [
        "## `evaluations.jsonl`",
        "One line an evaluation. The samples' seeds do not depend on the step: each evaluation meets the same luck.",
        _table(((f"`{key}`", meaning) for key, meaning in EVALUATION.items()), ("name", "meaning")),
        "## `events.jsonl`",
        "One line an event, with the time of day. `lasting` is true for events about the process: resumes, and alarms\n"
        "raised before the first step. They stay in the log when a resume or a rollback cuts it back.",
        _table(((f"`{name}`", meaning) for name, meaning in EVENTS.items()), ("event", "entries")),
        "`skipped/` holds the minibatches of gradient steps that were skipped because of numbers that are not finite;\n"
        "`stacks.txt` and `watchdog.log` what the watchdog saw ([durability](durability.md)).",
    ]
    return "\n\n".join(parts) + "\n"


_HEADINGS = ("name", "meaning", "unit", "healthy", "what to do otherwise")


def _row(metric: Metric) -> tuple[str, ...]:
    about = [metric.meaning]
    if metric.where:
        about.append(f"only {metric.where}")
    return f"`{metric.name}`", "; ".join(about), metric.unit, metric.healthy, metric.advice


def _table(rows: Iterable[tuple[str, ...]], headings: tuple[str, ...]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell or "–" for cell in line) + " |" for line in lines)
