"""The files of a judgement: `results.json`, and picture and page, which are made from it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from markupsafe import Markup

from vapo.errors import StoppedError
from vapo.json_text import json_text
from vapo.reports import critic_tables
from vapo.reports.critic_figures import judgement_png, judgement_svg
from vapo.reports.page_assets import asset, page_templates, palette_css
from vapo.reports.runfiles import Record
from vapo.reports.style import themed

RESULTS, PICTURE, PAGE = "results.json", "judgement.png", "judgement.html"


def write_judgement(results: Record, folder: Path) -> None:
    """Write the three files; raises StoppedError on a disk that refuses, for the continuations are kept."""
    with stopping_where_refused(folder, kept="continuations"):
        replace_json(folder / RESULTS, results)
        judgement_png(results, folder / PICTURE)
        (folder / PAGE).write_text(judgement_html(results), encoding="utf-8", errors="replace")


@contextmanager
def stopping_where_refused(folder: Path, *, kept: str) -> Iterator[None]:
    """Within: a disk that refuses raises StoppedError, which says what of the work is `kept`."""
    try:
        yield
    except OSError as error:
        raise StoppedError(
            f"Cannot write to {folder}: {error.strerror}. Free space and give the same command again; the {kept} are "
            "kept."
        ) from error


def replace_json(path: Path, content: Record) -> None:
    """Write the file whole, or leave it as it was. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json_text(content) + "\n", encoding="utf-8")
    temporary.replace(path)


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
