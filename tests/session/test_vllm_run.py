"""Runs that sample with vLLM, or with a stand-in for it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import toys
from vapo.algo.method import Band, NoCorrection, ProbabilityBound, RatioMask, TruncatedWeight
from vapo.errors import ConfigError, EngineError
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import resolve
from vapo.session.layers import file_layer, set_layer
from vapo.session.path_checks import check_paths
from vapo.trainer.guards import ALARMS, new_alarms
from vapo.trainer.settings import GuardSettings
from vapo.trainer.state import State
from vllm_python import fake_python

VLLM = {"rollout": {"engine": {"kind": "vllm"}}}


def engine(python: str, **settings) -> dict:
    return {"rollout": {"engine": {"kind": "vllm", "python": python, **settings}}}


def test_a_run_trains_loses_its_engine_and_resumes(tmp_path: Path):
    python, base = fake_python(tmp_path), toys.toy_base(tmp_path / "base")
    run = toys.toy_run(base, tmp_path / "run", engine(python))
    assert isinstance(run.algorithm.sampler, TruncatedWeight)
    assert run.guards.logp_gap_above == 1e-3
    first = run.engine.pid  # pyright: ignore[reportAttributeAccessIssue]

    def kill(metrics: dict) -> None:
        if metrics["phase"] == "train" and metrics["step"] == 1:
            os.kill(first, signal.SIGKILL)

    run.observer.step = kill  # pyright: ignore[reportAttributeAccessIssue]
    runs.finish(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [m for m in lines if m["phase"] == "train"]
    assert [m["step"] for m in trained] == [1, 2, 3]
    assert max(m["sampler/logp_gap_max"] for m in trained) < 1e-4
    assert {m["sampler/removed_ratio"] for m in trained} == {0.0}
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert sum(f"vLLM (process {first}) failed: was ended by SIGKILL" in e.get("message", "") for e in events) == 1
    assert "a library that prints to stdout" in (tmp_path / "run" / "vllm.log").read_text()

    class Notes(SilentView):
        def __init__(self):
            self.notes = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    view = Notes()
    longer = [set_layer("trainer.steps=4"), set_layer("rollout.engine.cache_gb=2")]  # neither alters a step
    runs.finish(runs.resume(tmp_path / "run", view, task=toys.EchoTask(), changes=longer))
    assert any("samples from the same distribution, and gets other samples" in note for note in view.notes)


def test_an_engine_that_keeps_dying_stops_the_run_which_can_be_resumed(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    python = fake_python(tmp_path, fault="die", after=50)  # each process dies after 50 samples
    run = toys.toy_run(base, tmp_path / "run", engine(python, restarts=1))
    with pytest.raises(EngineError, match=r"started again 1 time .*vllm\.log has the details.*vapo resume") as caught:
        runs.finish(run)
    assert caught.value.exit_code == 75
    (tmp_path / "python").unlink()
    fake_python(tmp_path)
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()))
    assert (tmp_path / "run" / "policy").is_dir()


def test_a_correction_is_on_by_itself_unless_somebody_chose():
    def sampler(*layers: dict):
        return resolve([file_layer("test", layer) for layer in layers]).algorithm.sampler

    assert isinstance(sampler({}), NoCorrection)
    assert isinstance(sampler(VLLM), TruncatedWeight)
    assert isinstance(sampler(VLLM, {"algorithm": {"preset": "grpo"}}), TruncatedWeight)
    assert isinstance(sampler(VLLM, {"algorithm": {"sampler": {"kind": "none"}}}), NoCorrection)
    assert sampler(VLLM, {"algorithm": {"sampler": {"kind": "band"}}}) == Band()
    for preset in ("sao", "vapo2", "bpco", "orz", "easyppo", "justrl2"):
        ours = sampler(VLLM, {"algorithm": {"preset": preset}})
        own = sampler({"algorithm": {"preset": preset}})
        clip = resolve([file_layer("test", {"algorithm": {"preset": preset}})]).algorithm.clip
        from_sampler = isinstance(clip, RatioMask | ProbabilityBound)
        assert ours == (TruncatedWeight() if isinstance(own, NoCorrection) and not from_sampler else own), preset


def test_the_correction_of_an_engine_is_noted_and_is_no_other_method():
    config = resolve([file_layer("test", VLLM)])
    assert config.label == "vapo"
    assert any("algorithm.sampler=truncated weighs" in note for note in config.notes)
    assert resolve([file_layer("again", config.as_dict())]) == config
    without = resolve([file_layer("test", VLLM), set_layer("algorithm.sampler.kind=none")])
    assert any(note.startswith("algorithm.sampler=none") for note in without.notes)


def test_a_missing_vllm_is_found_before_torch_loads(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    with pytest.raises(ConfigError, match="needs vLLM"):
        check_paths(resolve([file_layer("test", {**VLLM, "model": {"policy": str(base)}})]))


def test_a_gap_between_sampler_and_trainer_raises_an_alarm():
    alarm = next(alarm for alarm in ALARMS if alarm.name == "sampler disagrees")
    settings, state = GuardSettings(logp_gap_above=1e-3, patience=2), State()
    healthy, broken = {alarm.metric: 1e-6}, {alarm.metric: 2e-3}
    raised = [new_alarms(figures, state, settings) for figures in (healthy, broken, broken)]
    assert [alarm.name in names for names in raised] == [False, False, True]
    assert "differ by 0.002 nats a token, above guards.logp_gap_above=0.001" in raised[-1][alarm.name]
    assert not new_alarms({alarm.metric: float("nan")}, State(), settings)
