"""All metrics of a run as data for small interactive panels, one for each."""

from __future__ import annotations

import math
from typing import Any

from vapo.json_text import null_for_nan
from vapo.metrics import SECTIONS, Phase, metric_called
from vapo.metrics.metric_table import family_of
from vapo.reports.runfiles import Record, RunFiles, number

MOST_POINTS = 400
_NO_PANEL = {"step", "phase"}


def metric_panels(run: RunFiles) -> Record:
    """The steps of each phase, and for each metric with a number its heading, meaning, section and values by step.

    Of a long run every n-th step, and the last one.
    """
    order = {row.name: (at, section.heading) for at, (section, row) in enumerate(_table())}
    panels: list[tuple[tuple[bool, int], Record]] = []
    steps: dict[str, list[int]] = {}
    for phase in Phase:
        rows = thinned(run.phase(phase))
        steps[phase] = [int(row.get("step", at)) for at, row in enumerate(rows, start=1)]
        for name in dict.fromkeys(key for row in rows for key in row):
            values = [number(row.get(name)) for row in rows]
            if name in _NO_PANEL or not any(map(math.isfinite, values)):
                continue
            try:
                metric = metric_called(name)
            except KeyError:  # written by another version
                place, told = len(order), {"heading": name, "meaning": "", "section": "Others"}
            else:
                place, section = order[_family(name, order)]
                told = {"heading": metric.heading, "meaning": metric.meaning, "section": section}
            rounded = [null_for_nan(float(f"{value:.5g}")) for value in values]
            before = phase == Phase.PRETRAIN
            told["section"] = f"Pretraining: {told['section']}" if before else told["section"]
            panels.append(((before, place), {"name": name, "phase": phase, **told, "values": rounded}))
    panels.sort(key=lambda panel: panel[0])
    return {"steps": steps, "panels": [panel for _, panel in panels]}


def thinned(rows: list[Any]) -> list[Any]:
    """At most `MOST_POINTS` of the rows, evenly spread, the last one among them.

    >>> thinned(list(range(5))), len(thinned(list(range(1000)))), thinned(list(range(1000)))[-1]
    ([0, 1, 2, 3, 4], 334, 999)
    """
    stride = max(1, math.ceil(len(rows) / (MOST_POINTS - 1)))
    return rows[::-1][::stride][::-1]


def _table() -> list[tuple[Any, Any]]:
    return [(section, row) for section in SECTIONS for row in section.rows]


def _family(name: str, order: dict[str, Any]) -> str:
    return name if name in order else family_of(name)
