"""Run directories: copies of two recorded runs (recorded/README.md), and what is left of one at an earlier moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports.recorded.record import restore

MakeRun = Callable[..., Path]


def only_begun(path: Path) -> None:
    """Leave what a run has before its first step."""
    for name in ("metrics.jsonl", "events.jsonl", "evaluations.jsonl"):
        (path / name).write_text("")
    for file in (path / "rollouts").glob("*"):
        file.unlink()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A copy of a recorded run; `begun` only: before its first step; `config`: with other settings."""

    def make(
        preset: str = "vapo", *, name: str | None = None, begun: bool = False, config: dict[str, Any] | None = None
    ) -> Path:
        path = restore(preset, tmp_path / (name or f"maze-{preset}-s0"))
        if begun:
            only_begun(path)
        if config is not None:
            (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (path / "method.yaml").unlink()  # as vapo 0.1 left it
        return path

    return make
