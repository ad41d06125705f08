"""Open rollout files: the index of a step, and single responses of it without reading the others."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from vapo.errors import DataError
from vapo.json_text import json_text
from vapo.reports.runfiles import Record, read_rollouts
from vapo.trainer.rollout_blocks import RolloutIndex, index_of, prompt_text, read_index


class StepRollouts:
    """The responses of one step. A file without an index, of an earlier version, is read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = read_index(path)
        self._whole = index is None
        self.index: RolloutIndex = index_of(_whole_file(path, _stamp(path))) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, numbers: Iterable[int]) -> dict[int, Record]:
        """The records of some responses, by their number; DataError for a damaged file."""
        wanted = sorted({n for n in numbers if 0 <= n < len(self)})
        if self._whole:
            records = _whole_file(self.path, _stamp(self.path))
            return {n: records[n] for n in wanted if n < len(records)}
        found: dict[int, Record] = {}
        for block, first, last in self._spans():
            inside = [n for n in wanted if first <= n < last]
            if inside:
                lines = self._block(block)
                found |= {n: json.loads(lines[n - first]) for n in inside}
        return found

    def search(self, words: str) -> list[int]:
        """The numbers of the responses whose prompt, text, reason or answer has the words, whatever their case."""
        needle = words.casefold()
        return [n for n, record in self._records_with(words) if needle in _searched(record)]

    def _records_with(self, words: str) -> Iterator[tuple[int, Record]]:
        """All records that may have the words; the line of one without them is not parsed."""
        if self._whole:
            yield from enumerate(_whole_file(self.path, _stamp(self.path)))
            return
        written = json_text(words)[1:-1].lower().encode() if words.isascii() else b""
        for block, first, _ in self._spans():
            for at, line in enumerate(self._block(block), start=first):
                if written in line.lower():
                    yield at, json.loads(line)

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        """(block, its first line, the line after its last one)."""
        firsts = [first for _, first in self.index.blocks] + [len(self)]
        for block, (first, last) in enumerate(pairwise(firsts)):
            yield block, first, last

    def _block(self, block: int) -> list[bytes]:
        starts = [start for start, _ in self.index.blocks] + [self.index.size]
        try:
            with self.path.open("rb") as file:
                file.seek(starts[block])
                packed = file.read(starts[block + 1] - starts[block])
            return zlib.decompress(packed, wbits=31).splitlines()
        except (OSError, zlib.error) as error:
            raise DataError(f"{self.path} cannot be read: {error}. Delete it to continue without it.") from error


def _searched(record: Record) -> str:
    parts = (prompt_text(record.get("prompt", "")), *(record.get(k) for k in ("response", "reason", "final_answer")))
    return "\n".join(str(part) for part in parts if part).casefold()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _whole_file(path: Path, stamp: tuple[int, int]) -> list[Record]:
    """All records of a file; `stamp` makes a file that was written again another one."""
    return read_rollouts(path)
