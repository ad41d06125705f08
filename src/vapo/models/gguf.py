"""Converts a .gguf file to an ordinary model folder, once: converting takes a minute, reading the folder a second."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vapo.errors import ModelError
from vapo.models.loaded import check_complete, read_model


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
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not folder.exists():  # another process may have finished first
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def cache_folder(path: Path) -> Path:
    """The folder for the converted model of this file; another size or time of change gives another folder."""
    cache = Path(os.environ.get("VAPO_CACHE") or Path.home() / ".cache" / "vapo")
    state = path.stat()
    digest = hashlib.sha256(f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()
    return cache / "gguf" / f"{path.stem}-{digest[:12]}"
