"""Trackers with their real packages, offline: what they wrote is read back. And trackers that fail or hang."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toys
from vapo.errors import ConfigError, StoppedError
from vapo.reports.live import SilentView
from vapo.session import lifecycle
from vapo.trackers import tracked, tracker
from vapo.trackers.tracked import TrackingObserver
from vapo.trackers.tracker import TrackedRun

NAMES = ("tensorboard", "wandb", "mlflow")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages


def settings(*names: str) -> dict:
    return {"trackers": list(names), "trainer": {"save_rollouts_every": 1}}


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run that was stopped after its first step and resumed, with three trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", str(folder / "mlruns"))
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        base = toys.toy_base(folder / "base")
        run = toys.toy_run(base, folder / "run", settings(*NAMES))
        step = run.observer.step

        def stop_after_the_first(metrics):
            step(metrics)
            run.stop_requested = metrics.get("phase") == "train"

        run.observer.step = stop_after_the_first
        with pytest.raises(StoppedError):
            lifecycle.finish(run)
        first = json.loads((folder / "run" / tracked.IDS).read_text())
        lifecycle.finish(lifecycle.resume(folder / "run", SilentView(), toys.EchoTask()))
        assert json.loads((folder / "run" / tracked.IDS).read_text()) == first
    return folder


def test_tensorboard_event_files_hold_the_metrics_of_both_parts(runs: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "run" / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    steps = [line for line in metrics_of(runs / "run") if line["phase"] == "train"]
    scalars = events.Scalars("reward")
    assert [(s.step, pytest.approx(s.value)) for s in scalars] == [(line["step"], line["reward"]) for line in steps]
    before = EventAccumulator(str(runs / "run" / "tensorboard" / "pretraining"))
    before.Reload()
    assert [s.step for s in before.Scalars("pretraining/reward")] == [1, 2]
    assert [s.step for s in events.Scalars("evaluation/avg")] == [0, 3]
    (text,) = events.Tensors("samples/text_summary")[0].tensor_proto.string_val
    assert "| prompt | response | verdict | reward | reason |" in text.decode()
    assert text.decode().count("\n") > 10


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(found.step, found.value) for found in events.Scalars(name)]


def texts(folder: Path, name: str) -> list[str]:
    # the reader of TensorBoard's pages, which also hides texts
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), tensor_size_guidance={"text": 0})
    events.Reload()
    return [found.tensor_proto.string_val[0].decode() for found in events.Tensors(f"{name}/text_summary")]


def tensorboard(folder: Path, step: int, earlier: str | None):
    from vapo.trackers.tensorboard_tracker import TensorboardTracker

    return TensorboardTracker(TrackedRun(folder, {"seed": 0}, step, earlier))


def test_tensorboard_shows_a_step_once_after_a_resume_from_value_pretraining(tmp_path: Path):
    earlier = None
    for value in (1.0, 2.0):  # the second start goes on from a checkpoint of pretraining step 2
        tracker = tensorboard(tmp_path, 0, earlier)
        if earlier is None:
            tracker.figures({"evaluation/avg": 0.5}, 0)
        for step in range(1 if earlier is None else 3, 5):
            tracker.figures({"pretraining/reward": value}, step)
        for step in (1, 2):
            tracker.figures({"reward": value}, step)
        tracker.close(failed=False)
        earlier = tracker.id
    folder = tmp_path / "tensorboard"
    assert scalars(folder / "pretraining", "pretraining/reward") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert scalars(folder, "reward") == [(1, 2.0), (2, 2.0)]
    assert scalars(folder, "evaluation/avg") == [(0, 0.5)]
    assert len(texts(folder, "config")) == 1


def test_tensorboard_shows_a_step_once_after_a_rollback(tmp_path: Path):
    tracker = tensorboard(tmp_path, 0, None)
    tracker.alarm("early", 0)
    for step in (1, 2, 3):
        tracker.figures({"reward": 1.0}, step)
        tracker.figures({"evaluation/avg": 1.0}, step)
    tracker.alarm("low", 3)
    tracker.alarm("rolled back", 3)
    for step in (2, 3):
        tracker.figures({"reward": 2.0}, step)
        tracker.figures({"evaluation/avg": 2.0}, step)
    tracker.close(failed=False)
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "reward") == scalars(folder, "evaluation/avg") == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert texts(folder, "alarms") == ["early", "low\n\nrolled back"]  # one text a step, as TensorBoard keeps them


def test_bars_and_norms_stay_in_their_cell(tmp_path: Path):
    tracker = tensorboard(tmp_path, 0, None)
    row = {"prompt": r"\|x\| = |y|", "response": "one\ntwo", "verdict": "correct", "reward": 1.0, "reason": ""}
    tracker.samples([row], 1)
    tracker.close(failed=False)
    line = texts(tmp_path / "tensorboard", "samples")[0].splitlines()[-1]
    assert line == r"| \\\|x\\\| = \|y\| | one<br>two | correct | 1.0 |  |"


def test_mlflow_has_one_run_with_metrics_settings_and_samples(runs: Path):
    from mlflow.tracking import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(str(runs / "mlruns"))
        experiment = client.get_experiment_by_name("vapo")
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, "reward")
    steps = [line for line in metrics_of(runs / "run") if line["phase"] == "train"]
    assert {(m.step, m.value) for m in history} == {(line["step"], line["reward"]) for line in steps}
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.steps"] == "3"
    samples = sorted((runs / "mlruns").glob("*/*/artifacts/samples/*.jsonl"))
    assert [path.stem for path in samples] == ["step_000001", "step_000002", "step_000003"]
    assert list(json.loads(samples[0].read_text().splitlines()[0])) == list(tracker.COLUMNS)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log in blocks of 32 KiB."""
    at, part = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part = content[at + 7 : at + 7 + length] if kind in (1, 2) else part + content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            yield part
        at += 7 + length


def test_wandb_wrote_one_run_offline(runs: Path):
    from wandb.proto import wandb_internal_pb2

    found: dict[int, float] = {}
    files = sorted(runs.glob("**/wandb/offline-run-*/*.wandb"))
    assert len({path.parent.name.rpartition("-")[2] for path in files}) == 1  # one id
    for path in files:
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "reward" in row:
                found[int(row["step"])] = float(row["reward"])
    steps = [line for line in metrics_of(runs / "run") if line["phase"] == "train"]
    assert found == {line["step"]: pytest.approx(line["reward"]) for line in steps}


class Recording(SilentView):
    def __init__(self) -> None:
        self.alarms: list[str] = []

    def alarm(self, message: str) -> None:
        self.alarms.append(message)


class Broken:
    id = "1"

    def __init__(self, how) -> None:
        self.how = how

    def figures(self, figures, step):
        self.how()

    def samples(self, rows, step): ...
    def alarm(self, message, step): ...
    def close(self, *, failed): ...


def observer_of(how, monkeypatch, tmp_path: Path) -> tuple[TrackingObserver, Recording]:
    monkeypatch.setattr(tracked, "make_tracker", lambda name, run: Broken(how))
    monkeypatch.setattr(tracked, "END_S", 0.5)
    view = Recording()
    observer = TrackingObserver(view, ("wandb",), tmp_path, {})
    observer.begin(0)
    return observer, view


def test_a_tracker_that_raises_is_left_out_with_one_alarm(monkeypatch, tmp_path: Path):
    def fail():
        raise ConnectionError("no route")

    observer, view = observer_of(fail, monkeypatch, tmp_path)
    for step in (1, 2, 3):
        observer.step({"phase": "train", "step": step, "reward": 0.5})
    observer.close(failed=False)
    assert len(view.alarms) == 1
    assert "wandb is left out from here: ConnectionError: no route" in view.alarms[0]


def test_a_tracker_that_hangs_holds_up_neither_steps_nor_the_end(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(tracked, "WAITING", 3)
    observer, view = observer_of(lambda: time.sleep(60), monkeypatch, tmp_path)
    start = time.monotonic()
    for step in range(10):
        observer.step({"phase": "train", "step": step, "reward": 0.5})
    observer.close(failed=True)
    assert time.monotonic() - start < 5
    assert len(view.alarms) == 1
    assert "messages wait for it" in view.alarms[0]


def test_a_tracker_that_cannot_begin_is_left_out(monkeypatch, tmp_path: Path):
    def refuse(name, run):
        raise SystemExit("log in first")

    monkeypatch.setattr(tracked, "make_tracker", refuse)
    view = Recording()
    observer = TrackingObserver(view, ("wandb",), tmp_path, {})
    observer.begin(0)
    observer.step({"phase": "train", "step": 1, "reward": 0.5})
    observer.close(failed=False)
    assert "SystemExit: log in first" in view.alarms[0]


def test_a_missing_package_and_an_unknown_tracker_are_named_before_weights_load(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    base = toys.toy_base(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"trackers: wandb is not installed.*pip install wandb"):
        toys.toy_run(base, tmp_path / "run", settings("wandb"))
    with pytest.raises(ConfigError, match="trackers"):
        toys.toy_config(base, settings("neptune"))


def test_figures_are_the_finite_numbers():
    values = {"a": 1, "b": {"c": 2.5, "d": None}, "e": float("nan"), "f": True, "g": "x"}
    assert tracked.numbers(values) == {"a": 1, "b.c": 2.5}
