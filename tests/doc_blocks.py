"""Fenced blocks of the pages in docs/, and the `vapo` commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file that it shows if its first line is `# name.py` or so."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        found = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages."""
    found = [Block(*match) for match in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `vapo` command on the page, as a shell takes them."""
    lines = "".join(block.text for block in blocks(page, "sh", "")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(\S*/)?(vapo|dev) ", line)]
    return [line[1:] for line in words if line[1] not in ("test", "vllm", "site")]  # those of ./dev
