"""Two real steps in a temporary folder, on as few responses as the method allows, with a save and a resume between."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vapo.errors import VapoError, counted
from vapo.metrics import EventName
from vapo.reports.formatting import duration
from vapo.reports.live import SilentView
from vapo.reports.runfiles import read_jsonl
from vapo.session import lifecycle
from vapo.session.checking.finding import Finding, error, of_error, ok, warning
from vapo.session.config import Config, resolve
from vapo.session.layers import file_layer, set_layer
from vapo.trainer.outcomes import SAMENESS
from vapo.trainer.pretrain import NOT_READY
from vapo.trainer.record import EVENTS

NAME = "two steps, save and resume"
GROUPS = 2
"""Prompts of a step; a method without groups gets four."""
MUST_BE_FINITE = ("loss/", "grad_norm/", "value/loss")
OF_FEW = (*SAMENESS, NOT_READY)
"""Alarms that so few responses bring about by themselves."""


def short_config(config: Config) -> Config:
    """The configuration with two steps on few responses."""
    group = config.algorithm.sampling.per_prompt
    samples = GROUPS * group if group > 1 else 2 * GROUPS
    few: dict[str, Any] = {
        "trainer": {
            "steps": 1,
            "samples_per_step": samples,
            "minibatch_size": samples // 2,
            "pretraining_at": "tokens",  # a reward model has no steps of training to look at
            "pretraining_heldout": 2,
            "pretraining_passes": 1,
            "pretraining_ready": -1e9,
            "save_rollouts_every": 0,
        },
        "evaluation": {"every": 0, "prompts": 1, "samples_per_prompt": 1, "final_samples_per_prompt": 1},
        "checkpoint": {"every": 1, "keep": 1, "final": "state"},
        "guards": {"watchdog": False, "action": "warn"},
        "scale": {"backend": "local"},
        "trackers": [],
    }
    if config.algorithm.pretrains:
        few["trainer"]["pretraining_steps"] = 1
    return resolve([file_layer("the settings", config.as_dict()), file_layer("vapo check", few)])


def check_steps(config: Config) -> list[Finding]:
    """What came of two steps: times, alarms, and whether the second one could be resumed to."""
    view, short = SilentView(), short_config(config)
    with tempfile.TemporaryDirectory(prefix="vapo-check-") as folder:
        path = Path(folder) / "run"
        try:
            lifecycle.finish(lifecycle.begin(short, path, view), report=False)
            again = lifecycle.resume(path, view, changes=[set_layer("trainer.steps=2")])
            lifecycle.finish(again, report=False)
        except VapoError as problem:
            return [of_error(NAME, problem)]
        lines = [line for line in read_jsonl(path / "metrics.jsonl") if line.get("phase") == "train"]
        events = [event for event in read_jsonl(path / EVENTS) if event.get("event") == EventName.ALARM]
        saved = sum(file.stat().st_size for file in (path / "checkpoints").rglob("*") if file.is_file())
    findings = [_of_lines(lines, short.algorithm.sampling.samples, saved)]
    alarms = dict.fromkeys(str(event["message"]) for event in events if event.get("name") not in OF_FEW)
    return findings + [warning("alarms of two steps", message) for message in alarms]


def _of_lines(lines: list[dict[str, Any]], samples: int, saved: int) -> Finding:
    if [line["step"] for line in lines] != [1, 2]:
        return error(NAME, f"metrics of steps {[line['step'] for line in lines]} instead of 1 and 2")
    bad = sorted({name for line in lines for name in _not_finite(line)})
    if bad:
        return error(NAME, f"not finite: {', '.join(bad)}", "Look at the learning rates and at model.dtype.")
    times = " and ".join(duration(line["step_time"]) for line in lines)
    return ok(NAME, f"{times} for {counted(samples, 'response')} each; a checkpoint of {saved / 1e6:.0f} MB, read back")


def _not_finite(line: Mapping[str, Any]) -> list[str]:
    """The figures of a step that were not finite, null in metrics.jsonl, and those that count the gradient steps that
    were skipped for it."""
    lost = [name for name, value in line.items() if value is None and name.startswith(MUST_BE_FINITE)]
    return lost + [name for name, value in line.items() if value and name.startswith("skipped/")]
