"""`model.dtype: auto` is made by measuring, and bfloat16 is warned of where it is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

import toys
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session import precision
from vapo.session.precision import Measured


class Notes(SilentView):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.alarms: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def alarm(self, message: str) -> None:
        self.alarms.append(message)


def begun(tmp_path: Path, dtype: str, speedup: float, monkeypatch) -> tuple[runs.Run, Notes]:
    monkeypatch.setattr(precision, "measure", lambda *_: Measured((60e9, 60e9 * speedup), speedup))
    task, view = toys.EchoTask(), Notes()
    config = toys.toy_config(toys.toy_base(tmp_path / "base"), {"model": {"dtype": dtype}})
    run = runs.begin(runs.with_task(config, task), tmp_path / "run", view, task=task)
    run.engine.close()
    run.folder.close()
    return run, view


@pytest.mark.parametrize(("speedup", "taken"), [(2.5, "bfloat16"), (1.05, "float32"), (0.003, "float32")])
def test_auto_takes_the_faster_precision_says_why_and_keeps_it(tmp_path, monkeypatch, speedup, taken):
    run, view = begun(tmp_path, "auto", speedup, monkeypatch)
    assert run.config["model"]["dtype"] == taken
    assert any(note.startswith(f"model.dtype=auto takes {taken}: ") for note in view.notes)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert f"dtype: {taken}" in text  # a resume on another machine goes on in the same precision
    assert f'"dtype": "{taken}"' in (tmp_path / "run" / "environment.json").read_text()


@pytest.mark.parametrize(("speedup", "warned"), [(0.003, True), (1.5, False)])
def test_bfloat16_is_warned_of_where_it_is_slower(tmp_path, monkeypatch, speedup, warned):
    run, view = begun(tmp_path, "bfloat16", speedup, monkeypatch)
    assert run.config["model"]["dtype"] == "bfloat16"  # what was chosen stays
    assert any("model.dtype=bfloat16 slows this machine down" in alarm for alarm in view.alarms) == warned


def test_float32_is_the_default_and_nothing_is_compared(tmp_path, monkeypatch):
    def never(*_: object) -> Measured:
        raise AssertionError

    monkeypatch.setattr(precision, "measure", never)
    config = toys.toy_config(toys.toy_base(tmp_path / "base"))
    assert config.sections.model.dtype == "float32"
    _, inputs = runs.prepare(runs.with_task(config, toys.EchoTask()), SilentView(), toys.EchoTask())
    assert precision.dtype_warning(config, inputs) is None


def test_a_real_measurement_is_finite_and_fast(tmp_path):
    config = toys.toy_config(toys.toy_base(tmp_path / "base"), {"model": {"dtype": "auto"}})
    config, inputs = runs.prepare(runs.with_task(config, toys.EchoTask()), SilentView(), toys.EchoTask())
    assert config.sections.model.dtype in ("float32", "bfloat16")
    measured = precision.measure(config, inputs)
    assert measured.speedup > 0
    assert "times as fast in bfloat16" in measured.words
