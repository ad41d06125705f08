"""The responses of earlier pretraining steps: in memory to draw from, on disk so that a resume need not sample them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vapo.trainer.batch import Batch, concatenate

FOLDER = "pretraining"
"""Below the run directory; removed when value pretraining is over."""
DIGEST = "sha256"


class ReplayPool:
    """Batches of finished pretraining steps, counted from 1. `on_refusal` gets a message when a file is not written."""

    def __init__(self, run_dir: Path, on_refusal: Callable[[str], None]) -> None:
        self.folder, self._on_refusal = run_dir / FOLDER, on_refusal
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Add the next step's batch. If the disk refuses it, a resume samples it again."""
        self.batches.append(batch)
        path = self._path(len(self.batches))
        try:
            _write(path, batch.tensors())
        except OSError as error:
            self._on_refusal(f"Could not write {path}: {error}. A resume will sample these responses again.")

    def restore(self, steps: int, sample: Callable[[int], Batch]) -> None:
        """Have the batches of so many steps: from the disk, or from `sample(step)` where a file is missing or damaged
        (`step` finished ones come before it)."""
        for step in range(steps):
            batch = _read(self._path(step + 1))
            if batch is None:
                self.add(sample(step))
            else:
                self.batches.append(batch)

    def _path(self, number: int) -> Path:
        return self.folder / f"step_{number:06d}.safetensors"


def remove_pool(run_dir: Path) -> None:
    """Delete the files of a pool, if there are any."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def drawn_from(batches: Sequence[Batch], count: int, generator: torch.Generator) -> Batch | None:
    """Up to `count` rows of all the batches, none twice; None if there are none. Copies the drawn rows alone."""
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
