"""The responses of earlier pretraining steps, on disk.

A step reads the rows that it draws, and a resume samples again only what is missing or damaged.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vapo.errors import StoppedError, command
from vapo.trainer.batch import RAGGED, Batch, concatenate

FOLDER = "pretraining"
"""Below the run directory; removed when value pretraining is over."""
DIGEST = "sha256"
ROW_READ_BYTES = 2**15
"""Reading one row by itself takes about as long as reading so many bytes at once."""


class Rows(Protocol):
    """Responses that can be drawn from: a `Batch`, or the file of one."""

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> Batch:
        """The given rows, in that order, with T cut to the longest of them."""
        ...


class ReplayPool:
    """Batches of finished pretraining steps, counted from 1. `on_refusal` gets a message when a file is not written.

    `batches` are the files, which are read when rows are drawn. A batch that the disk refused stays in memory.
    """

    def __init__(self, run_dir: Path, on_refusal: Callable[[str], None]) -> None:
        self.folder, self._on_refusal = run_dir / FOLDER, on_refusal
        self.batches: list[Rows] = []

    def add(self, batch: Batch) -> None:
        """Add the next step's batch. If the disk refuses it, a resume samples it again."""
        path = self._path(len(self.batches) + 1)
        try:
            _write(path, batch.tensors())
        except OSError as error:
            self.batches.append(batch)
            self._on_refusal(f"Could not write {path}: {error}. A resume will sample these responses again.")
        else:
            self.batches.append(StoredBatch(path, len(batch)))

    def restore(self, steps: int, sample: Callable[[int], Batch]) -> None:
        """Have the batches of so many steps: from the disk, or from `sample(step)` where a file is missing or damaged
        (`step` finished ones come before it)."""
        for step in range(steps):
            batch = _read(self._path(step + 1))
            if batch is None:
                self.add(sample(step))
            else:
                self.batches.append(StoredBatch(self._path(step + 1), len(batch)))

    def _path(self, number: int) -> Path:
        return self.folder / f"step_{number:06d}.safetensors"


def remove_pool(run_dir: Path) -> None:
    """Delete the files of a pool, if there are any."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


class StoredBatch:
    """A batch in a file. `select` reads the chosen rows alone."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __len__(self) -> int:
        return self._size

    def select(self, rows: Tensor) -> Batch:
        """See `Rows`. Raises StoppedError if the file cannot be read: a resume samples its responses again."""
        try:
            return self._read(rows)
        except (OSError, SafetensorError) as error:
            raise StoppedError(
                f"Cannot read {self._path}: {error}. Its responses are sampled again by: "
                f"{command('resume', self._path.parent.parent)}"
            ) from error

    def _read(self, rows: Tensor) -> Batch:
        with safe_open(self._path, "pt") as file:
            lengths = file.get_tensor("response_lengths")[rows]
            width = max(1, int(lengths.max())) if len(rows) else 1
            found: dict[str, Tensor] = {}
            for name, lengths_name in RAGGED.items():
                if name in file.keys():  # noqa: SIM118
                    counts = file.get_tensor(lengths_name)
                    ends, counts = counts.cumsum(0)[rows].tolist(), counts[rows]
                    tokens = file.get_slice(name)
                    if _is_cheaper_whole(8 * tokens.get_shape()[0], len(rows)):
                        tokens = file.get_tensor(name)
                    parts = [tokens[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]
                    found |= {name: torch.cat(parts), lengths_name: counts}
            for name in file.keys() - found.keys():
                stored = file.get_slice(name)
                shape = stored.get_shape()
                if len(shape) == 1:
                    found[name] = file.get_tensor(name)[rows]
                elif _is_cheaper_whole(4 * shape[0] * shape[1], len(rows)):
                    found[name] = file.get_tensor(name)[rows, :width]
                else:
                    found[name] = torch.cat([stored[row : row + 1] for row in rows.tolist()])[:, :width]
        return Batch.from_tensors(found)


def _is_cheaper_whole(size: int, count: int) -> bool:
    """Whether reading `size` bytes at once takes less time than reading `count` rows of them one by one."""
    return size <= count * ROW_READ_BYTES


def drawn_from(batches: Sequence[Rows], count: int, generator: torch.Generator) -> Batch | None:
    """Up to `count` rows of all the batches, none twice; None if there are none. Reads the drawn rows alone."""
    rows = torch.randperm(sum(len(batch) for batch in batches), generator=generator)[: max(0, count)]
    pieces, places, start = [], [], 0
    for batch in batches:
        here = ((rows >= start) & (rows < start + len(batch))).nonzero()[:, 0]
        if len(here):
            pieces.append(batch.select(rows[here] - start))
            places.append(here)
        start += len(batch)
    return concatenate(pieces).select(torch.cat(places).argsort()) if pieces else None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file that is whole or not there, with a digest of its tensors."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(save(dict(tensors), metadata={DIGEST: _digest(tensors)}))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Batch | None:
    """The batch in a file; None if it is missing or not as it was written."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
        return Batch.from_tensors(tensors) if digest == _digest(tensors) else None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()
