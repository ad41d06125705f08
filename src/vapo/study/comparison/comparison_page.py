"""The comparison as one self-contained page: no network, no script, light and dark.

Whatever comes from files (labels, notes) goes through jinja2 with autoescape; figures draw text as shapes.
"""

from __future__ import annotations

from markupsafe import Markup

from vapo.reports import formatting
from vapo.reports.runfiles import Record
from vapo.reports.style import asset, page_templates, palette_css
from vapo.study.comparison import table_rows
from vapo.study.comparison.figures import dynamics_svg, main_svg, variations_svg

HERE = "vapo.study.comparison"


def comparison_html(results: Record) -> str:
    """`comparison.html` from the content of `results.json`, and from nothing else."""
    environment = page_templates(HERE)
    environment.filters.update(figure=formatting.figure, count=formatting.short_count, duration=formatting.duration)
    return environment.get_template("comparison.html.j2").render(
        results=results,
        title=table_rows.comparison_title(results),
        headline=table_rows.comparison_headline(results),
        headings=table_rows.main_headings(results),
        rows=table_rows.main_rows(results),
        reading_headings=table_rows.equal_samples_headings(results),
        reading_rows=table_rows.equal_samples_rows(results),
        sentences=table_rows.column_explanations(results),
        left_out=table_rows.runs_left_out(results),
        resumed=table_rows.runs_resumed(results),
        main=_drawn(main_svg(results)),
        variations=_drawn(variations_svg(results)),
        dynamics=_drawn(dynamics_svg(results)),
        css=Markup(palette_css() + asset("report.css") + asset("comparison.css", HERE)),  # noqa: S704  our own
    )


def _drawn(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704  matplotlib draws text as shapes
