"""Pages that name a line of code name the right one, and no link of the repository leads nowhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from line_links import PAGES, ROOT, broken_links, refreshed

KINDS = ("equations.md", "pitfalls.md")


def tracked_pages() -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "*.md"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_lines_point_to_the_code_they_name(page: Path):
    assert not broken_links(page)


@pytest.mark.parametrize("name", KINDS)
def test_pages_that_explain_code_have_links_to_lines(name: str):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8").count("#L") > 15


def test_links_are_updated_when_lines_move(tmp_path: Path):
    page = tmp_path / "docs" / "equations.md"
    page.parent.mkdir()
    code = ROOT / "src" / "vapo" / "algo" / "advantages.py"
    number = next(n for n, line in enumerate(code.read_text().splitlines(), 1) if "def gae(" in line)
    page.write_text("[`def gae(`](../src/vapo/algo/gone.py#L1)")
    assert broken_links(page)
    assert refreshed(page) == f"[`def gae(`](../src/vapo/algo/advantages.py#L{number})"


def test_every_relative_link_of_a_page_points_to_a_file():
    missing = []
    for name in tracked_pages():
        page = ROOT / name
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path = target.split("#")[0]
            if path and "://" not in target and not (page.parent / path).exists():
                missing.append(f"{name}: {target}")
    assert not missing


def test_comments_name_existing_pages_and_pitfalls():
    pitfalls = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8"), re.M))
    pages = {Path(name).name for name in tracked_pages()}
    wrong = []
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        numbers = [n for found in re.findall(r"pitfalls?(?:\.md,)? (\d+)(?:,? and (\d+))?", text) for n in found if n]
        wrong += [f"{path.relative_to(ROOT)}: pitfall {n}" for n in numbers if n not in pitfalls]
        wrong += [f"{path.relative_to(ROOT)}: {n}" for n in re.findall(r"\b[\w-]+\.md\b", text) if n not in pages]
    assert not wrong


def test_the_rows_of_tables_have_lines_of_their_own():
    joined = [
        f"{page}: {line[:60]}"
        for page in tracked_pages()
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if ("--:|" in line or "|---" in line or "| --- |" in line) and set(line.strip()) - set("|-: ")
    ]
    assert not joined
