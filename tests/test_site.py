"""The documentation's site builds without a warning, and what its pages link to is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import vapo.algo
from doc_blocks import PAGES, ROOT

LINK = re.compile(r'href="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # --quiet would hide the warnings from --strict, too
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site_and_no_link_of_it_leads_out(site: Path):
    missing = []
    for source in PAGES:
        page = site / f"{source.stem}.html"
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = unescape(target).split("#")[0]
            if path and ":" not in path and not (page.parent / path).resolve().is_relative_to(site):
                missing.append(f"{page.name}: {target} leads out of the site")
            elif path and ":" not in path and not (page.parent / path).exists():
                missing.append(f"{page.name}: {target} is not there")
    assert missing == []


def test_no_page_loads_anything_from_another_server(site: Path):
    loading = re.compile(r'(?:src="|<link rel="(?:stylesheet|preconnect)"[^>]*href=")(https?:)?//')
    assert [page.name for page in site.glob("*.html") if loading.search(page.read_text(encoding="utf-8"))] == []


def test_a_link_to_a_line_of_code_opens_at_that_line(site: Path):
    text = (site / "equations.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(repository/[^"#]+)#(__codelineno-0-(\d+))"><code>([^<]+)</code>', text)
    assert len(links) > 30
    for path, anchor, number, words in links:
        assert f'id="{anchor}"' in (site / path).read_text(encoding="utf-8")
        code = (ROOT / path.removeprefix("repository/").removesuffix(".html")).read_text(encoding="utf-8")
        assert unescape(words) in code.splitlines()[int(number) - 1]


def test_the_reference_has_the_public_functions(site: Path):
    text = (site / "api.html").read_text(encoding="utf-8")
    there = {name.rsplit(".")[-1] for name in re.findall(r'id="(vapo\.[\w.]+)"', text)}
    wanted = {
        *vapo.algo.__all__,
        "train",
        "resume",
        "evaluate",
        "VAPOTrainer",
        "VAPOConfig",
        "Prompt",
        "Verdict",
        "Task",
    }
    assert wanted - there == set()
