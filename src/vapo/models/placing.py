"""Device and CPU threads of a model."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

TINY = 10_000_000
"""With fewer parameters than this, one CPU thread is the fastest."""


def num_threads(wanted: int | None, parameters: int) -> int:
    """CPU threads for a model: `wanted`; else 1 for a tiny one, for which more are slower; else all.

    All are OMP_NUM_THREADS where that is set, else the machine's cores.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    most = int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1
    return wanted or (1 if parameters < TINY else most)


def set_threads(wanted: int | None, model: PreTrainedModel) -> None:
    """Set torch's CPU threads to `num_threads`."""
    torch.set_num_threads(num_threads(wanted, model.num_parameters()))


def split_threads() -> int:
    """Share torch's CPU threads with a second thread that computes at the same time: half for each, one at least.

    Sets those of the calling thread, and returns the other's number.
    """
    every = torch.get_num_threads()
    other = max(1, every // 2)
    torch.set_num_threads(max(1, every - other))
    return other


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def total_memory() -> int:
    """Bytes of this machine's memory, or of its container's where that is less; the same in every run on it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def to_device(model: PreTrainedModel, to: torch.device | torch.dtype) -> PreTrainedModel:
    """Move the model to a device or convert it to a dtype, in place; returns it.

    A conversion leaves the frequencies of position encodings, and the weights that the architecture wants in float32,
    as they are, like `from_pretrained` in that dtype.
    """
    kept = _kept_precise(model, to) if isinstance(to, torch.dtype) else {}
    # transformers hides the plain signature of `to` behind a decorator
    torch.nn.Module.to(model, to)
    for name, tensor in _tensors(model).items():
        if name in kept:
            tensor.data = kept[name]
    return model


def _kept_precise(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that keep their precision in a model of this dtype, by name.

    A frequency is multiplied by the position: rounded to bfloat16, it is up to two radians off after a thousand tokens.
    """
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or () if dtype.itemsize < 4 else ()
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in strict]  # read as transformers reads them
    saved = model.state_dict(keep_vars=True)
    return {
        name: tensor.data
        for name, tensor in _tensors(model).items()
        if (name not in saved and "freq" in name.rpartition(".")[2]) or any(p.search(name) for p in patterns)
    }


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
