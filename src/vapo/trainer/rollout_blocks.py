"""Rollout files that open in the middle: JSON lines in gzip blocks, and beside them an index of the lines.

A rollout file `NAME.jsonl.gz` is a sequence of gzip members, so anything that reads gzip reads it whole. Its index
`NAME.index.json.gz` says what each line is about and where its block begins: a viewer lists 8,192 responses without
reading them. The index can be made again from the file (`index_of`).

Needs no torch: reports read with it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vapo.json_text import json_text

Record = dict[str, Any]

BLOCK_BYTES = 64 * 1024
"""A block ends with the line that reaches this many bytes."""
COLUMNS = ("prompt", "sample", "verdict", "kind", "reward", "tokens", "truncated", "full")
"""What the index says of each line; `prompt` is its place among `prompts`, `full` whether its tokens are there."""
_NAME_CHARACTERS = 100
_TEMPLATE_CHARACTERS = 24
"""The start that all prompts share is a template, and left out of their names, from this length on."""


@dataclass(frozen=True)
class RolloutIndex:
    """What stands in a rollout file. `rows` has the columns of `COLUMNS`, a value per line.

    `prompts` are (id, name); `blocks` are (first byte, first line); `size` is the file's, in bytes.
    """

    size: int
    blocks: list[list[int]]
    prompts: list[list[str]]
    rows: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.rows["prompt"])


def index_path(rollouts: Path) -> Path:
    """Where the index of a rollout file is."""
    return rollouts.with_name(rollouts.name.removesuffix(".jsonl.gz") + ".index.json.gz")


def write_blocks(path: Path, records: Iterable[Record]) -> RolloutIndex:
    """Write the lines of a rollout file, and return its index; raises OSError."""
    blocks: list[list[int]] = []
    summary = _Summary()
    with path.open("wb") as file:
        waiting, size = [], 0
        for row, record in enumerate(records):
            if not waiting:
                blocks.append([file.tell(), row])
            line = json_text(record, separators=(",", ":")).encode() + b"\n"
            summary.add(record)
            waiting.append(line)
            size += len(line)
            if size >= BLOCK_BYTES:
                file.write(_packed(waiting))
                waiting, size = [], 0
        file.write(_packed(waiting))
        return summary.index(file.tell(), blocks)


def write_index(index: RolloutIndex, path: Path) -> None:
    """Write an index; raises OSError."""
    path.write_bytes(gzip.compress(json_text(asdict(index), separators=(",", ":")).encode(), 5, mtime=0))


def read_index(rollouts: Path) -> RolloutIndex | None:
    """The index beside a rollout file; None if there is none, or none of this file."""
    try:
        index = RolloutIndex(**json.loads(gzip.decompress(index_path(rollouts).read_bytes())))
        fits = index.size == rollouts.stat().st_size and all(len(index.rows[c]) == len(index) for c in COLUMNS)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return index if fits else None


def index_of(records: Iterable[Record]) -> RolloutIndex:
    """The index of a file's lines, without blocks."""
    summary = _Summary()
    for record in records:
        summary.add(record)
    return summary.index(0, [])


def prompt_names(texts: Sequence[str]) -> list[str]:
    """Prompts as people tell them apart: without the template they all begin with, on one line, and not long.

    >>> prompt_names(["Solve the problem step by step.\\n\\nWhat is 2 + 2?", "Solve the problem step by step.\\n\\nWhat is 6 / 2?"])
    ['What is 2 + 2?', 'What is 6 / 2?']
    >>> prompt_names(["map a to tower from g1", "map a to tower from h2"])
    ['map a to tower from g1', 'map a to tower from h2']
    """  # noqa: E501  the lines of an example are as long as they are
    first, last = min(texts, default=""), max(texts, default="")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    shared = "" if first == last else first[:same]
    ends = [found.end() for found in re.finditer(r"[.:!?]\s+|\n+", shared)]
    start = ends[-1] if ends and ends[-1] >= _TEMPLATE_CHARACTERS else 0
    return [_shortened(text[start:]) for text in texts]


def prompt_text(prompt: Any) -> str:
    """A prompt as one text: its own, or the last message of the user."""
    if not isinstance(prompt, list | tuple):
        return str(prompt)
    said = [m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
    return str(said[-1]) if said else json_text(prompt, ensure_ascii=False)


def _shortened(text: str) -> str:
    line = " ".join(text[: 4 * _NAME_CHARACTERS].split())
    return line if len(line) <= _NAME_CHARACTERS else line[: _NAME_CHARACTERS - 1].rstrip() + "…"


def _packed(lines: list[bytes]) -> bytes:
    return gzip.compress(b"".join(lines), 5, mtime=0) if lines else b""


class _Summary:
    """The columns of an index, line by line."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._texts: list[str] = []
        self._rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(self, record: Record) -> None:
        prompt_id = str(record.get("prompt_id", "?"))
        if prompt_id not in self._places:
            self._places[prompt_id] = len(self._places)
            self._texts.append(prompt_text(record.get("prompt", "")))
        tokens = record.get("tokens")
        values = {
            "prompt": self._places[prompt_id],
            "sample": record.get("sample"),
            "verdict": record.get("verdict"),
            "kind": record.get("kind"),
            "reward": record.get("reward"),
            "tokens": record.get("num_tokens", len(tokens) if isinstance(tokens, list) else None),
            "truncated": bool(record.get("truncated")),
            "full": isinstance(tokens, list),
        }
        for name, value in values.items():
            self._rows[name].append(value)

    def index(self, size: int, blocks: list[list[int]]) -> RolloutIndex:
        names = prompt_names(self._texts)
        return RolloutIndex(size, blocks, [list(pair) for pair in zip(self._places, names, strict=True)], self._rows)
