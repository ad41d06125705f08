"""Versions, commit and machine that a run records in environment.json."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_VECTORS = re.compile(r"avx|fma|amx|asimd|sve|bf16|i8mm")


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for the record."""
    packages = {}
    for name in ("vapo", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "unknown"
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_source(),
    }


def _source() -> dict[str, Any]:
    """The commit of the code, and whether files differ from it; null where no repository has the code.

    The one around an installation, as in a project's .venv/, is another project's.
    """
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = _git("rev-parse", "HEAD") if ours else None
    changed = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "uncommitted_changes": None if changed is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", "-C", str(here), *arguments],  # noqa: S607 - whichever git the user has
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpuinfo(*names: str) -> str:
    """The value of the first line with one of these names in /proc/cpuinfo; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    named = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in named if name.strip() in names), "")


def _instructions() -> str:
    """The vector instructions that torch's kernels use, and those of the processor: both affect rounding."""
    there = [flag for flag in _cpuinfo("flags", "Features").split() if _VECTORS.match(flag)]
    return f"{torch.backends.cpu.get_cpu_capability()} of: {' '.join(there) or 'unknown'}"
