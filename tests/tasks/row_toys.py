"""Small data sets, and the task that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vapo.tasks.catalog import find_task
from vapo.tasks.problems import Problems


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(start, start + count)]


def problems(name: str = "math", **options: Any) -> Problems:
    task = find_task(name, {"verifier_workers": 1, "heldout": 1, **options})
    assert isinstance(task, Problems)
    task.close()
    return task
