"""docs/metrics.md explains every name a run writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import toys
from vapo import runs

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize("preset", ["vapo", "grpo"])
def test_every_metric_is_documented(preset: str, tmp_path: Path):
    runs.finish(toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", preset=preset))
    named = set(re.findall(r"`([a-z_/]+)`", DOCS.read_text()))
    short = {f"completions/{name}" for name in ("min_length", "max_length")}
    written = {
        key for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)
    }
    families = {re.sub(r"/\d$", "/", key) for key in written}
    assert not {key for key in families if key not in named | short and f"{key}0" not in DOCS.read_text()}
