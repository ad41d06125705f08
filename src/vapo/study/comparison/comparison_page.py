"""The comparison as one self-contained HTML page without scripts. It needs no network and supports light and dark mode.

Text from files (labels, notes) goes through jinja2 with autoescape; figures draw text as shapes.
"""

from __future__ import annotations

from markupsafe import Markup

from vapo.reports import formatting
from vapo.reports.page_assets import asset, page_templates, palette_css
from vapo.reports.runfiles import Record
from vapo.study.comparison import table_rows
from vapo.study.comparison.figures import dynamics_svg, main_svg, variations_svg
from vapo.study.comparison.pace_rows import has_pace, pace_explanations, pace_headings, pace_rows

PACKAGE = "vapo.study.comparison"


def comparison_html(results: Record) -> str:
    """The text of `comparison.html`, made from the content of `results.json`."""
    environment = page_templates(PACKAGE)
    environment.filters.update(figure=formatting.figure, count=formatting.short_count, duration=formatting.duration)
    return environment.get_template("comparison.html.j2").render(
        results=results,
        title=table_rows.comparison_title(results),
        headline=table_rows.comparison_headline(results),
        headings=table_rows.main_headings(results),
        rows=table_rows.main_rows(results),
        equal_samples_headings=table_rows.equal_samples_headings(results),
        equal_samples_rows=table_rows.equal_samples_rows(results),
        pace=has_pace(results) and (pace_headings(results), pace_rows(results), pace_explanations(results)),
        sentences=table_rows.column_explanations(results),
        left_out=table_rows.runs_left_out(results),
        resumed=table_rows.runs_resumed(results),
        main=_safe_svg(main_svg(results)),
        variations=_safe_svg(variations_svg(results)),
        dynamics=_safe_svg(dynamics_svg(results)),
        css=Markup(palette_css() + asset("report.css") + asset("comparison.css", PACKAGE)),  # noqa: S704  our own
    )


def _safe_svg(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704  matplotlib draws text as shapes
