"""Links of the pages in docs/ to lines of code: [`def gae`](../src/vapo/algo/advantages.py#L26).

The text in backticks stands in the linked line. `python tests/line_links.py` moves links to where their text stands,
in another file, too, if it stands in one place only.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\[`([^`]+)`\]\(((?:\.\./)?(?:src|tests|examples)/[^)#]+)#L(\d+)\)")


def broken_links(page: Path) -> list[str]:
    """One message for each wrong link to a line on a page."""
    found = []
    for text, target, line in LINK.findall(page.read_text(encoding="utf-8")):
        if not holds(page.parent / target, int(line), text):
            found.append(f"{page.name}: {target}#L{line} does not hold {text!r}. Refresh: python tests/line_links.py")
    return found


def holds(path: Path, number: int, text: str) -> bool:
    """Whether that line of the file has the text."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return 0 < number <= len(lines) and text in lines[number - 1]


def refreshed(page: Path) -> str:
    """The page with every link set to the line with its text. Raises ValueError unless exactly one line has it."""

    def moved(match: re.Match[str]) -> str:
        text, target, line = match.groups()
        path = page.parent / target
        if holds(path, int(line), text):
            return match[0]
        places = places_of(text, [path]) or places_of(text, sorted(ROOT.glob("src/**/*.py")))
        if len(places) != 1:
            raise ValueError(f"{page.name}: {text!r} stands in {len(places)} places ({target}). Mend the link by hand.")
        path, number = places[0]
        return f"[`{text}`](../{path.resolve().relative_to(ROOT)}#L{number})"

    return LINK.sub(moved, page.read_text(encoding="utf-8"))


def places_of(text: str, paths: list[Path]) -> list[tuple[Path, int]]:
    """(file, line) of every line that has the text."""
    return [
        (path, number)
        for path in paths
        if path.is_file()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if text in line
    ]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(refreshed(page), encoding="utf-8")
