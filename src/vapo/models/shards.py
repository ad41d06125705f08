"""Tensors in parts: each process of a group writes its own rows of them to a safetensors file, and reads what it needs.

A folder of shards holds `shard-00000-of-00002.safetensors` and so on, and `shards.json`: the shape of each whole
tensor, and which of its rows are in which file. Any number of processes, one too, can read it: nothing is exchanged,
and no process holds more than its own part. An ordinary safetensors file counts as a folder of one shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vapo.errors import CheckpointError
from vapo.json_text import json_text
from vapo.models.whole import is_sharded, local_part, part_like, rows_of

INDEX = "shards.json"
FORMAT = 1
NOTES = "content"
"""The entry of the index, or of a file's metadata, that says what the tensors are."""


def is_in_shards(folder: str | Path) -> bool:
    """Whether the folder's tensors are in shards."""
    return (Path(folder) / INDEX).is_file()


def shard_name(rank: int, size: int) -> str:
    """The file of one of `size` processes."""
    return f"shard-{rank:05d}-of-{size:05d}.safetensors"


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and saved buffers by name, tied ones once."""
    parameters = dict(model.named_parameters())
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in every}
    return {**{name: parameter.detach() for name, parameter in parameters.items()}, **buffers}


def save_part(
    tensors: Mapping[str, Tensor], folder: Path, *, rank: int, size: int, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write this process's part of the tensors, and in the first of the `size` processes the index, with the `notes`;
    the part's file.

    What is not sharded is written by the first process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own, entries = dict[str, Tensor](), dict[str, Any]()
    for name, tensor in sorted(tensors.items()):  # what was just read has another order
        bounds = rows_of(tensor, size)
        part = local_part(tensor).detach()
        if bounds[rank + 1] > bounds[rank]:
            own[name] = part.cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "rows": bounds}
    if rank == 0:
        files = [shard_name(other, size) for other in range(size)]
        index = {"format": FORMAT, "files": files, "tensors": entries, **({NOTES: notes} if notes else {})}
        (folder / INDEX).write_text(json_text(index, indent=1))
    path = folder / shard_name(rank, size)
    save_file(own, path)
    return path


class StoredTensors:
    """The tensors of a safetensors file or of a folder of shards, read piece by piece. Close it in the end.

    Raises CheckpointError if the index cannot be read, and what safetensors raises for a damaged file.
    """

    def __init__(self, place: Path) -> None:
        self._open = ExitStack()
        self._place = place
        if place.is_dir():
            index = _read_index(place)
            self._files = [self._opened(place / name) for name in index["files"]]
            self._entries: dict[str, Any] = index["tensors"]
            self.notes: dict[str, Any] = index.get(NOTES, {})
            """What the writer noted of the tensors."""
        else:
            file = self._opened(place)
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            self._files = [file]
            self.notes = json.loads((file.metadata() or {}).get(NOTES, "{}"))
            self._entries = {n: {"shape": s, "rows": [0, s[0] if s else 1]} for n, s in shapes.items()}

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return tuple(self._entries[name]["shape"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows `start` to `stop` of a tensor, on the CPU, in memory of its own; without bounds the whole tensor."""
        shape, bounds = self.shape(name), self._entries[name]["rows"]
        if not shape:
            return self._files[bounds.index(1) - 1].get_tensor(name).clone()
        stop = shape[0] if stop is None else stop
        pieces = []
        for at, file in enumerate(self._files):
            low, high = max(start, bounds[at]), min(stop, bounds[at + 1])
            if low < high:
                pieces.append(file.get_slice(name)[low - bounds[at] : high - bounds[at]])
        if not pieces:
            return torch.empty((0, *shape[1:]), dtype=getattr(torch, self._entries[name].get("dtype", "float32")))
        return torch.cat(pieces)

    def read_like(self, name: str, like: Tensor) -> Tensor:
        """The tensor on the device of `like`, sharded as it is: of a sharded one only this process's rows are read.

        Raises CheckpointError if the shapes differ.
        """
        if self.shape(name) != tuple(like.shape):
            raise CheckpointError(
                f"{self._place} does not fit the model: {name} is {self.shape(name)} instead of {tuple(like.shape)}."
            )
        if not is_sharded(like):
            return self.read(name).to(like.device)
        start, stop = own_rows(like)
        return part_like(self.read(name, start, stop), like)

    def _opened(self, path: Path) -> Any:
        return self._open.enter_context(safe_open(path, "pt"))


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The rows of a sharded tensor that this process holds."""
    mesh: Any = getattr(tensor, "device_mesh")  # noqa: B009 - a DTensor
    bounds, rank = rows_of(tensor, mesh.size()), mesh.get_local_rank()
    return bounds[rank], bounds[rank + 1]


@torch.no_grad()
def load_parts(model: nn.Module, folder: Path) -> None:
    """Load what `save_part` wrote of a model's `stored_tensors`, in place; CheckpointError on any mismatch."""
    own = stored_tensors(model)
    try:
        with StoredTensors(folder) as stored:
            if wrong := sorted(own.keys() ^ set(stored)):
                raise CheckpointError(f"{folder} does not fit the model: only one of them has {wrong[0]}.")
            for name, tensor in own.items():
                tensor.copy_(stored.read_like(name, tensor))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not fit the model: {error}") from error


def load_whole(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Load the tensors of a folder of shards into a whole model, as far as they have a place there. What did not fit,
    in the words of transformers' loading info."""
    own = stored_tensors(model)
    with StoredTensors(folder) as stored, torch.no_grad():
        there = {name: stored.shape(name) for name in stored}
        strange = {name for name in own.keys() & there.keys() if there[name] != tuple(own[name].shape)}
        for name in own.keys() & there.keys() - strange:
            own[name].copy_(stored.read(name))
    return {
        "missing_keys": own.keys() - there.keys(),
        "unexpected_keys": there.keys() - own.keys(),
        "mismatched_keys": {(name, there[name], tuple(own[name].shape)) for name in strange},
    }


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        number = int(index["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Cannot read {folder / INDEX}: {error}.") from error
    if number > FORMAT:
        raise CheckpointError(
            f"{folder / INDEX} has format {number}; this version of vapo reads up to {FORMAT}. Use the version that "
            "wrote it."
        )
    return index
