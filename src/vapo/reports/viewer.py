"""The samples on the page: a few responses of a few steps, limited in size for the browser."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vapo.errors import DataError
from vapo.json_text import json_text
from vapo.metrics import Phase
from vapo.reports.runfiles import Record, RolloutFile, number, read_rollouts, rollout_files

VERDICTS = ("right", "wrong", "invalid")
SERIES = ("logp", "value", "advantage", "return")
ENVIRONMENT = "environment"
"""The key of a sample that says of each token whether the environment wrote it; null where none did."""
_PROMPT_CHARACTERS = 4_000


def viewer_data(
    run_dir: str | Path, *, samples_per_step: int = 8, max_bytes: int = 3_500_000
) -> tuple[Record, list[str]]:
    """The data of the page's viewer as plain JSON data, and notes about what was left out.

    The steps are the last step of pretraining and the first, middle and last step of training that have
    rollouts. If the data exceed `max_bytes`, responses are cut in the middle, all to the same length.
    """
    steps, notes = [], []
    for file in chosen_steps(rollout_files(run_dir)):
        try:
            records = read_rollouts(file.path)
        except DataError as error:
            notes.append(str(error))
            continue
        if records:
            steps.append(_step(file, records, samples_per_step))
    longest = max((len(s["tokens"]) for step in steps for s in step["samples"]), default=0)
    data = {"scale": _scale(steps), "steps": steps}
    while (size := len(script_json(data))) > max_bytes and longest > 16:
        longest = max(16, int(longest * min(0.9, max_bytes / size)))
        for step in steps:
            step["samples"] = [without_middle(sample, longest) for sample in step["samples"]]
    if any(sample["left_out"] for step in steps for sample in step["samples"]):
        notes.append(f"Responses of more than {longest} tokens are shown without their middle.")
    return data, notes


def chosen_steps(files: list[RolloutFile]) -> list[RolloutFile]:
    """The last pretraining step, and the first, middle and last training step."""
    pretraining = [file for file in files if file.phase == Phase.PRETRAIN]
    training = [file for file in files if file.phase == Phase.TRAIN]
    picked = {0, len(training) // 2, len(training) - 1} if training else set()
    return pretraining[-1:] + [training[at] for at in sorted(picked)]


def chosen_samples(records: list[Record], limit: int) -> list[Record]:
    """Up to `limit` samples, taken from the verdicts in turn, in file order."""
    queues = [[r for r in records if _verdict(r) == verdict] for verdict in VERDICTS]
    picked: list[Record] = []
    while len(picked) < limit and any(queues):
        picked += [queue.pop(0) for queue in queues if queue]
    places = {id(record): at for at, record in enumerate(records)}
    return sorted(picked[:limit], key=lambda record: places[id(record)])


def without_middle(sample: Record, limit: int) -> Record:
    """The sample cut to its first and last tokens, `limit` in all; `cut_at` and `left_out` describe the gap."""
    num = len(sample["tokens"])
    if num <= limit:
        return sample
    head, tail = limit - limit // 2, limit // 2
    cut = {
        key: sample[key] and sample[key][:head] + sample[key][num - tail :] for key in ("tokens", ENVIRONMENT, *SERIES)
    }
    # head and tail have equal size, so a second cut falls into the same gap
    return sample | cut | {"cut_at": head, "left_out": sample["left_out"] + num - head - tail}


def script_json(data: object) -> str:
    """JSON that is safe inside a `<script>` element: ASCII only, without <, > and &."""
    text = json_text(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _step(file: RolloutFile, records: list[Record], limit: int) -> Record:
    tally = Counter(map(_verdict, records))
    return {
        "label": ("pretraining " if file.phase == Phase.PRETRAIN else "") + f"step {file.step}",
        "phase": file.phase,
        "total": len(records),
        "counts": {verdict: tally[verdict] for verdict in VERDICTS},
        "samples": [_sample(record) for record in chosen_samples(records, limit)],
    }


def _verdict(record: Record) -> str:
    verdict = record.get("verdict")
    return verdict if verdict in VERDICTS else "invalid"


def _sample(record: Record) -> Record:
    tokens = [str(token) for token in record.get("tokens") or [record.get("response", "")]]
    series = {key: _numbers(record.get(key), len(tokens)) for key in SERIES}
    return {
        "id": str(record.get("prompt_id", "?")),
        "sample": str(record.get("sample", "?")),
        "prompt": _prompt(record.get("prompt", "")),
        "verdict": _verdict(record),
        "reason": str(record.get("reason") or ""),
        "reward": _short(number(record.get("reward"))),
        "lambda": _short(number(record.get("lambda"))),
        "version": str(record.get("weight_version", "?")),
        "truncated": bool(record.get("truncated")),
        "num_tokens": len(tokens),
        "cut_at": 0,
        "left_out": 0,
        "tokens": tokens,
        ENVIRONMENT: _by_environment(record.get("turns"), len(tokens)),
        **series,
    }


def _by_environment(turns: Any, num_tokens: int) -> list[bool] | None:
    """For each token whether the environment wrote it; None for an episode of the policy's tokens alone."""
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    return [author == "environment" for author, length in turns for _ in range(length)][:num_tokens]


def _prompt(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else json_text(prompt, ensure_ascii=False)
    if len(text) <= _PROMPT_CHARACTERS:
        return text
    half = _PROMPT_CHARACTERS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _numbers(values: Any, num_tokens: int) -> list[float | None] | None:
    """One rounded number per token, None for nan; None as a whole if the run has no such numbers."""
    if not isinstance(values, list):
        return None
    padded = [*values, *[None] * num_tokens][:num_tokens]
    return [_short(number(value)) for value in padded]


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _scale(steps: list[Record]) -> Record:
    """The ends of each colour scale; all samples share them."""

    def all_of(key: str) -> list[float]:
        samples = [sample for step in steps for sample in step["samples"]]
        return [x for sample in samples for x in sample[key] or [] if x is not None]

    values = all_of("value") + all_of("return")
    sizes = np.abs(all_of("advantage"))
    return {
        "value": [min([0.0, *values]), max([1.0, *values])] if all_of("value") else None,
        "advantage": max(float(np.quantile(sizes, 0.98)), 1e-6) if len(sizes) else None,
        "logp": 4.0 if all_of("logp") else None,
    }
