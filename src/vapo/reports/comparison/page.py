"""The comparison as one self-contained page: it opens without a network, in light and in dark, without a script.

Whatever comes from files (labels, notes) goes through jinja2 with autoescape; figures draw text as shapes.
"""

from __future__ import annotations

from markupsafe import Markup

from vapo.reports import words
from vapo.reports.comparison import rows
from vapo.reports.comparison.figures import dynamics_svg, main_svg, variations_svg
from vapo.reports.runfiles import Record
from vapo.reports.style import asset, page_templates, palette_css


def page(results: Record) -> str:
    """`comparison.html` from the content of `results.json`, and from nothing else."""
    environment = page_templates()
    environment.filters.update(figure=words.figure, count=words.count, duration=words.duration)
    return environment.get_template("comparison.html.j2").render(
        results=results,
        title=rows.title(results),
        headline=rows.headline(results),
        headings=rows.headings(results),
        rows=rows.rows(results),
        reading_headings=rows.reading_headings(results),
        reading_rows=rows.reading_rows(results),
        sentences=rows.sentences(results),
        left_out=rows.left_out(results),
        main=_drawn(main_svg(results)),
        variations=_drawn(variations_svg(results)),
        dynamics=_drawn(dynamics_svg(results)),
        css=Markup(palette_css() + asset("report.css") + asset("comparison.css")),  # noqa: S704  our own
    )


def _drawn(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704  matplotlib draws text as shapes
