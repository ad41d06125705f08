"""Where a model computes: its device, its threads."""

from __future__ import annotations

import os
from typing import cast

import torch
from transformers import PreTrainedModel

TINY = 10_000_000
"""Parameters below which one CPU thread is the fastest."""


def set_threads(wanted: int | None, model: PreTrainedModel) -> None:
    """CPU threads for the model: the products of a tiny one are too small to share, and sharing costs more."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    most = int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1
    torch.set_num_threads(wanted or (1 if model.num_parameters() < TINY else most))


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def moved(model: PreTrainedModel, to: torch.device | torch.dtype) -> PreTrainedModel:
    """The model on another device or in another dtype."""
    # transformers hides the plain signature of `to` behind a decorator
    return cast(PreTrainedModel, torch.nn.Module.to(model, to))
