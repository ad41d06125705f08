"""Run directories for tests: copies of two recorded runs (recorded/README.md), whole or before their first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports.recorded.record import restore

MakeRun = Callable[..., Path]


def cut_before_first_step(path: Path) -> None:
    """Remove everything that a run writes from its first step on."""
    for name in ("metrics.jsonl", "events.jsonl", "evaluations.jsonl"):
        (path / name).write_text("")
    for file in (path / "rollouts").glob("*"):
        file.unlink()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that copies a recorded run; `begun` cuts it before its first step, `config` replaces its settings."""

    def make(
        preset: str = "vapo", *, name: str | None = None, begun: bool = False, config: dict[str, Any] | None = None
    ) -> Path:
        path = restore(preset, tmp_path / (name or f"maze-{preset}-s0"))
        if begun:
            cut_before_first_step(path)
        if config is not None:
            (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (path / "method.yaml").unlink()  # vapo 0.1 did not write it
        return path

    return make
