"""Converts a .gguf file to an ordinary model folder, once: converting takes a minute, reading the folder a second."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vapo.errors import ModelError
from vapo.models.loaded import check_complete, read_model

DAY_S = 24 * 60 * 60
"""No conversion takes that long."""


def converted(path: Path) -> Path:
    """The folder with the file's weights in float32, made by transformers' own loader if it does not exist yet.

    It is in `$VAPO_CACHE`, else in `~/.cache/vapo`, under the file's name, size and time of change. Raises
    ModelError if the file cannot be read, and whatever the loader raises.
    """
    folder = cache_folder(path)
    if folder.is_dir():
        return folder
    try:
        import accelerate  # noqa: F401  transformers asks for both
        import gguf  # noqa: F401
        from transformers import GgufConfig
    except ImportError as error:
        raise ModelError(f"Reading {path} needs two packages: pip install gguf accelerate.") from error
    with redirect_stderr(io.StringIO()):  # hides a progress bar that has no setting
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        # packed weights could not be trained
        model, info = read_model(
            AutoModelForCausalLM,
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    check_complete(model, info, path, "model")
    vars(model).pop("hf_quantizer", None)  # with these transformers refuses to save, although nothing is quantized now
    vars(model.config).pop("quantization_config", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        made = temporary / "model"  # with the permissions of any folder, which that of `mkdtemp` lacks
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _sync(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has finished first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def cache_folder(path: Path) -> Path:
    """The folder for the converted model of this file; another size or time of change gives another folder."""
    cache = Path(os.environ.get("VAPO_CACHE") or Path.home() / ".cache" / "vapo")
    state = path.stat()
    digest = hashlib.sha256(f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()
    return cache / "gguf" / f"{path.stem}-{digest[:12]}"


def _remove_abandoned(cache: Path) -> None:
    """Remove what conversions left behind that were killed more than a day ago."""
    for folder in cache.glob("*.tmp"):
        with suppress(OSError):  # another process may be removing it
            if folder.stat().st_mtime < time.time() - DAY_S:
                shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Sync a folder and its files to the disk, so that it is whole wherever its name is."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
