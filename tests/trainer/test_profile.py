"""`vapo train --profile`: a table whose parts add up, a trace, and the same numbers as without."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import toys
from vapo.cli import app
from vapo.errors import ConfigError
from vapo.session import lifecycle as runs
from vapo.trainer.profile_table import WORDS, StepProfile, profile_rows, profile_table
from vapo.trainer.profiler import check_steps
from vapo.trainer.run import Run
from vapo.trainer.spans import Part
from vapo.trainer.step_trace import StepTrace, write_trace

# 4 steps: warm-up, two measured ones with an evaluation between them, a traced one
LAYER = {"trainer": {"steps": 4, "pretraining_steps": 1}, "evaluation": {"every": 2}}


def finished(base: Path, folder: Path, steps: int, shown: list[str]) -> Run:
    run = toys.toy_run(base, folder, LAYER)
    return runs.finish(runs.profiled(run, steps, shown.append), report=False)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, list[str]]:
    folder, shown = tmp_path_factory.mktemp("profile"), list[str]()
    base = toys.toy_base(folder / "base")
    return finished(base, folder / "with", 2, shown), finished(base, folder / "without", 0, shown), shown


def test_weights_and_figures_are_those_of_a_run_without(both):
    profiled, plain, _ = both
    for one, other in zip(profiled.learners, plain.learners, strict=True):
        pairs = zip(one.weights(), other.weights(), strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    lines = [
        [
            {
                k: v
                for k, v in json.loads(line).items()
                if not k.startswith(("time/", "throughput/", "mfu/", "step_time"))
            }
            for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (profiled, plain)
    ]
    assert lines[0] == lines[1]
    assert not (plain.folder.path / "profile").exists()


def test_the_parts_add_up_to_the_time_of_the_measured_steps(both):
    profile = json.loads((both[0].folder.path / "profile" / "profile.json").read_text())
    assert (profile["first"], profile["last"]) == (2, 3)
    parts = profile["parts"]
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(profile["seconds"])
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    wanted = {"rollout", "verify", "score/policy", "score/critic", "update/policy", "update/critic", "hand_over"}
    assert wanted | {"save", "evaluate", "log", "other"} <= parts.keys()
    assert parts["other"]["share"] < 0.5
    assert parts["rollout"]["tokens"] == profile["sampled_tokens"] > 0
    # every response is learned from once by each network, the prompts' tokens included
    assert parts["update/policy"]["tokens"] > profile["sampled_tokens"]
    assert 0 < parts["update/critic"]["mfu"] < 1


def test_the_table_is_shown_and_kept(both):
    run, _, shown = both
    (table,) = shown
    assert (run.folder.path / "profile" / "table.txt").read_text() == table + "\n"
    assert table.startswith("Where the time of steps 2 to 3 went")
    assert all(words in table for words in ("sampling", "update: critic", "evaluation", "other", "the whole step"))


def test_the_trace_is_json_with_the_parts_as_spans_and_operations_in_them(both):
    with gzip.open(both[0].folder.path / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    # the first of each name: a few responses are scored again after the update
    spans = {event["name"]: event for event in reversed(events) if event.get("cat") == "user_annotation"}
    assert {"rollout", "verify", "score", "score/policy", "update", "update/policy", "hand_over", "log"} <= spans.keys()
    inner, outer = spans["score/policy"], spans["score"]
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert any(event["name"] == "aten::linear" for event in events)


def test_operations_of_a_part_stop_after_its_time_and_its_span_is_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("vapo.trainer.step_trace.PART_S", 0.0)
    trace, x = StepTrace(), torch.ones(2, 2)
    trace.start()
    for name in ("rollout", "rollout", "update"):
        trace.begin(name)
        with torch.profiler.record_function(name):
            trace.begun()
            for _ in range(50):
                x @ x
            trace.end()
        trace.ended()
    trace.stop()
    write_trace(trace, tmp_path / "trace.json.gz")
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert (names.count("rollout"), names.count("update")) == (2, 1)
    assert names.count("aten::matmul") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json.gz"]


def test_a_trace_on_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path):
    trace = StepTrace()
    trace.start()
    trace.stop()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))  # the file ends there, without a word from torch
    try:
        with pytest.raises(OSError, match="No space left"):
            write_trace(trace, tmp_path / "trace.json.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_the_profile_raises_alarms_and_the_run_goes_on(tmp_path: Path):
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", {"trainer": {"pretraining_steps": 1}})
    (tmp_path / "run" / "profile").write_text("in the way")
    shown: list[str] = []
    runs.finish(runs.profiled(run, 1, shown.append), report=False)
    assert run.state.step == 3
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    alarms = [event["message"] for event in events if "was not written" in event.get("message", "")]
    assert [message.partition(" was")[0] for message in alarms] == ["The profile", "The trace"]
    assert all("Free space on the disk" in message for message in alarms)
    assert len(shown) == 1  # the table is still printed


def test_too_few_steps_are_refused_before_torch_loads():
    check_steps(3, 1)
    with pytest.raises(ConfigError, match=r"trainer.steps is 2. Set --steps to 3 or more\."):
        check_steps(2, 1)
    result = CliRunner().invoke(app, ["train", "--steps", "4", "--profile-steps", "3"])
    assert isinstance(result.exception, ConfigError)
    assert "Set --steps to 5 or more, or --profile-steps to less" in str(result.exception)


def test_rows_worked_by_hand():
    # 4 s in two steps: 2 s of sampling, 1 s of an update at 30 operations a second, a tenth of the rate; 1 s is left
    parts = {"update/policy": Part(1.0, 6, 30.0), "rollout": Part(2.0), "beyond": Part(0.0)}
    profile = StepProfile(2, 3, 4.0, 10, parts, 300.0, "CPU", 2)
    rows = {row.name: row for row in profile_rows(profile)}
    assert list(rows) == ["rollout", "update/policy", "other", "beyond"]
    assert rows["rollout"].tokens_per_s == 5
    assert rows["update/policy"].mfu == pytest.approx(0.1)
    assert rows["other"].seconds == 1
    lines = profile_table(profile).splitlines()
    assert lines[3].split() == ["sampling", "1.000", "50.0%", "5"]
    assert lines[4].split() == ["update:", "policy", "0.500", "25.0%", "6", "10.0%"]
    assert lines[-1] == "Not due here: saving and evaluation."
    assert WORDS["other"] == "other"
