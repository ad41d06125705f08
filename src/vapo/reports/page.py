"""One self-contained HTML page about a run. It needs no network and supports light and dark mode.

The page holds the model's text as JSON in a data block, and the viewer's scripts show it as text. Everything else goes
through jinja2 with autoescape. A content security policy allows only our own script, by its hash.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import yaml
from markupsafe import Markup

from vapo.errors import command
from vapo.json_text import flatten
from vapo.metrics import Phase, metric_called
from vapo.reports import formatting
from vapo.reports.curves import curves_svg
from vapo.reports.metric_panels import metric_panels
from vapo.reports.page_assets import asset, page_templates, palette_css
from vapo.reports.report_samples import report_samples
from vapo.reports.runfiles import Record, RunFiles, column, number
from vapo.reports.style import themed
from vapo.reports.tables import before_after_rows, headings, headline
from vapo.reports.view_data import ViewedRun
from vapo.reports.view_page import VIEWER, hash_of, joined_scripts, script_json


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into the run directory and return its path."""
    target = Path(run_dir) / "report.html"
    page = report_html(run_dir)
    target.write_text(page, encoding="utf-8", errors="replace")  # a model may write half of a surrogate pair
    return target


def report_html(run_dir: str | Path) -> str:
    """The HTML text of the page."""
    viewed = ViewedRun(run_dir)
    run = viewed.files
    samples, notes = report_samples(viewed)
    panels = metric_panels(run)
    scripts = (["metric_panels.js"] if panels["panels"] else []) + (list(VIEWER) if samples["parts"] else [])
    script = joined_scripts(*scripts) if scripts else ""
    environment = page_templates()
    environment.filters.update(figure=formatting.figure, percent=formatting.percent, number=number)
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=headline(run.evaluations),
        rows=before_after_rows(run.evaluations) if run.evaluations else [],
        columns=headings(run.evaluations),
        totals=_totals(run),
        curves=Markup(themed(curves_svg(run))),  # noqa: S704  matplotlib draws text as shapes
        settings=_settings(run),
        environment=[(key, _plain(value)) for key, value in flatten(run.environment)],
        alarms=[_event(event) for event in run.alarms],
        events=[_event(event) for event in run.events],
        pass_ks=sorted({int(k) for e in run.evaluations for k in e.get("pass") or {}}),
        samples=Markup(script_json(samples)),  # noqa: S704  no < > & left in it
        samples_complete=samples["complete"],
        num_steps=len(samples["parts"]),
        has_samples=bool(samples["parts"]),
        view_command=command("view", run.path),
        panels=Markup(script_json(panels)),  # noqa: S704  no < > & left in it
        num_panels=len(panels["panels"]),
        notes=notes,
        css=Markup(palette_css() + asset("report.css") + asset("view.css") + asset("metric_panels.css")),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        script_source=hash_of(script),
    )


def _totals(run: RunFiles) -> list[tuple[str, str]]:
    """(label, value) of the run's totals: steps, samples, tokens and time."""
    train = run.phase(Phase.TRAIN)
    seconds = [s for s in (number(row.get("step_time")) for row in run.metrics) if math.isfinite(s)]
    step_seconds = column(train, "step_time")[1]
    planned = (run.config.get("trainer") or {}).get("steps")
    totals = [("training steps", f"{len(train)} of {planned}" if planned else str(len(train)))]
    if pretraining := run.phase(Phase.PRETRAIN):
        totals.append(("pretraining steps", str(len(pretraining))))
    for key in ("num_samples", "num_tokens"):
        if values := column(train, key)[1]:
            totals.append((metric_called(key).short, formatting.short_count(values[-1])))
    if seconds:
        totals.append(("time in steps", formatting.duration(sum(seconds))))
    if step_seconds:
        totals.append(("typical step", formatting.duration(median(step_seconds))))
    return totals


def _settings(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings by section, each value as in YAML."""
    alone = [(key, _plain(value)) for key, value in run.config.items() if not isinstance(value, dict)]
    sections = [(key, value) for key, value in run.config.items() if isinstance(value, dict)]
    named = [(section, [(k, _plain(v)) for k, v in flatten(tree)]) for section, tree in sections]
    return ([("run", alone)] if alone else []) + named


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _event(event: Record) -> tuple[str, str, str]:
    """(time, name, details) of an event."""
    details = {key: value for key, value in event.items() if key not in ("event", "time", "message")}
    parts = [str(event["message"])] if event.get("message") else []
    parts += [f"{key} {_plain(value)}" for key, value in details.items()]
    return str(event.get("time", "")), str(event.get("event", "?")), " · ".join(parts)
