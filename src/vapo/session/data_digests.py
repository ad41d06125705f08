"""What a task's files held when a run began, so that a resume notices other problems under the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from vapo.session.config import Config

DATA = ("data", "eval_data")
"""Options of a task that name a file of problems; code is not among them, only what is learned from."""


def data_digests(config: Config) -> dict[str, str]:
    """The SHA-256 of each file of problems that the task names, by its path; a hub id has none."""
    named = (config.sections.task.options.get(option) for option in DATA)
    paths = [path for path in named if isinstance(path, str) and Path(path).is_file()]
    return {path: _digest(Path(path)) for path in paths}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def edited(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Words for each file that both know and whose content differs."""
    return [
        f"the content of {path} (edited since)" for path, digest in now.items() if before.get(path, digest) != digest
    ]
