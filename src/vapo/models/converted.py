"""Copies of trained models in another precision, for serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vapo.errors import ModelError
from vapo.json_text import json_text
from vapo.models.loaded import read_tensors
from vapo.models.saving import move_into

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(source: Path, out: Path, dtype: str) -> int:
    """Copy a folder that a run wrote, its floating-point tensors in `dtype`; the bytes of the weights.

    Everything else (configuration, tokenizer, model card) is copied; config.json gets the precision. `out` is new or
    empty, and filled whole or not at all. ModelError if the folder holds no .safetensors file, or a weight that `dtype`
    cannot hold; OSError or SafetensorError if the disk refuses.
    """
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source} holds no .safetensors file. Give a run, or a folder that a run wrote.")
    out = out.resolve()  # through a link, and `.` has no name
    temporary = out / ".export.tmp" if out.exists() else out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("*.safetensors"))
        for file in files:
            _convert_file(file, temporary / file.name, dtype)
        _note_dtype(temporary / "config.json", dtype)
        move_into(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its space back
        raise
    return sum((out / file.name).stat().st_size for file in files)


def _convert_file(source: Path, target: Path, dtype: str) -> None:
    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    tensors = {name: _in(tensor, DTYPES[dtype], f"{source}: {name}") for name, tensor in read_tensors(source).items()}
    save_file(tensors, target, metadata=metadata)


def _note_dtype(config: Path, dtype: str) -> None:
    """Write the precision into a model's configuration; a folder of adapters has none."""
    if config.exists():
        content = json.loads(config.read_text())
        names = [name for name in ("dtype", "torch_dtype") if name in content] or ["dtype"]
        config.write_text(json_text({**content, **dict.fromkeys(names, dtype)}, indent=2) + "\n")


def _in(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    made = tensor.to(dtype)
    if bool(tensor.isfinite().all()) and not bool(made.isfinite().all()):
        raise ModelError(f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold. Take bfloat16.")
    return made
