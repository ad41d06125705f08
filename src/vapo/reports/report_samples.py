"""The responses on a run's page: those of a few steps, group by group, as many as its size allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vapo.errors import DataError
from vapo.json_text import json_text
from vapo.metrics import Phase
from vapo.reports.runfiles import Record, RolloutFile
from vapo.reports.view_data import ViewedRun, step_key, verdict_of


def report_samples(run: ViewedRun, *, max_bytes: int = 4_000_000) -> tuple[Record, list[str]]:
    """The viewer's data for a page that holds part of a run, and notes about what could not be read.

    The steps are the last one of pretraining, and the first, middle and last one of training. The index of a step
    lists all of its responses. Groups with both right and wrong responses come first onto the page.
    """
    overview, notes = run.overview(), []
    steps, parts, complete = [], {}, True
    chosen = chosen_steps(list(run.steps.values()))
    left = max_bytes
    for at, file in enumerate(chosen):
        key = step_key(file)
        try:
            index = run.index(key)
            budget = left // (len(chosen) - at)
            rows, size = _rows_within(run, key, index, budget)
        except DataError as error:
            notes.append(str(error))
            continue
        left -= size
        if not index["rows"]["prompt"]:
            continue
        complete = complete and len(rows) == len(index["rows"]["prompt"])
        index["rows"]["full"] = [n in rows and rows[n]["tokens"] is not None for n in range(len(index["rows"]["full"]))]
        parts[f"0/{key}"] = {"index": index, "rows": {str(n): row for n, row in rows.items()}}
        steps += [step for step in overview["steps"] if step["key"] == key]
    overview["steps"] = steps
    return {"served": False, "complete": complete, "runs": [overview], "parts": parts}, notes


def chosen_steps(files: list[RolloutFile]) -> list[RolloutFile]:
    """The last pretraining step, and the first, middle and last training step."""
    pretraining = [file for file in files if file.phase == Phase.PRETRAIN]
    training = [file for file in files if file.phase == Phase.TRAIN]
    picked = {0, len(training) // 2, len(training) - 1} if training else set()
    return pretraining[-1:] + [training[at] for at in sorted(picked)]


def mixed_groups_first(prompts: Sequence[int], verdicts: Sequence[Any]) -> list[list[int]]:
    """The rows of each prompt: first the prompts with both right and wrong responses, each in file order.

    >>> mixed_groups_first([0, 0, 1, 1], ["wrong", "wrong", "right", "wrong"])
    [[2, 3], [0, 1]]
    """
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    return sorted(groups.values(), key=lambda rows: not {"right", "wrong"} <= {verdict_of(verdicts[n]) for n in rows})


def _rows_within(run: ViewedRun, key: str, index: Record, max_bytes: int) -> tuple[dict[int, Record], int]:
    """Responses of a step, the chosen groups in turn, and their size as JSON."""
    columns = index["rows"]
    found: dict[int, Record] = {}
    used = len(json_text(index, separators=(",", ":")))
    full = set(_numbers_of(columns["full"]))
    for rows in mixed_groups_first(columns["prompt"], columns["verdict"]):
        for n, row in run.rows(key, [n for n in rows if n in full] or rows).items():
            size = len(json_text(row, separators=(",", ":")))
            if used + size > max_bytes:
                return found, used
            found[n] = row
            used += size
    return found, used


def _numbers_of(flags: Sequence[bool]) -> Iterator[int]:
    return (n for n, flag in enumerate(flags) if flag)
