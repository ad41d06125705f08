"""The files of a judgement: `results.json`, and picture and page, which are made from it alone."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from vapo.errors import StoppedError
from vapo.json_text import json_text
from vapo.reports import critic_tables
from vapo.reports.critic_figures import judgement_png, judgement_svg
from vapo.reports.runfiles import Record
from vapo.reports.style import asset, page_templates, palette_css, themed

RESULTS, PICTURE, PAGE = "results.json", "judgement.png", "judgement.html"


def write_judgement(results: Record, folder: Path) -> None:
    """Write the three files; raises StoppedError on a disk that refuses, for the continuations are kept."""
    try:
        text = json_text(results) + "\n"
        temporary = folder / f".{RESULTS}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / RESULTS)
        judgement_png(results, folder / PICTURE)
        (folder / PAGE).write_text(judgement_html(results), encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoppedError(
            f"Cannot write to {folder}: {error.strerror}. Free space and give the same command again; the "
            "continuations are kept."
        ) from error


def judgement_html(results: Record) -> str:
    """The page from the content of `results.json`: no network, no script, light and dark."""
    return (
        page_templates()
        .get_template("critic.html.j2")
        .render(
            results=results,
            title=critic_tables.judgement_title(results),
            subtitle=critic_tables.judgement_subtitle(results),
            headings=critic_tables.number_headings(results),
            rows=critic_tables.number_rows(results),
            meanings=critic_tables.MEANING,
            beside=critic_tables.baseline_rows(results),
            bin_headings=critic_tables.BIN_HEADINGS,
            bins=critic_tables.bin_rows(results),
            picture=Markup(themed(judgement_svg(results))),  # noqa: S704  matplotlib draws text as shapes
            css=Markup(palette_css() + asset("report.css")),  # noqa: S704  our own file
        )
    )
