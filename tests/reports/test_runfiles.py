"""Reading a run directory: complete files, half-written files, and folders that are not runs."""

import gzip
import math
import re

import pytest

from vapo.errors import DataError
from vapo.metrics import EVALUATION, EVENTS, METRICS, PLACE, Phase
from vapo.reports.runfiles import column, flatten, number, read_rollouts, read_run, rollout_files


def test_reading_a_run_returns_its_config_metrics_evaluations_and_alarms(make_run):
    run = read_run(make_run())
    assert (run.name, run.label, run.config["task"]["name"]) == ("maze-vapo-s0", "vapo", "maze")
    assert len(run.phase(Phase.PRETRAIN)) == 2
    assert [row["step"] for row in run.phase(Phase.TRAIN)] == [1, 2, 3]
    assert [e["label"] for e in run.evaluations] == ["before", "during", "during", "after"]
    (alarm,) = run.alarms
    assert alarm["message"].startswith("The critic is not ready")
    assert run.environment["packages"]["torch"].startswith("2.")


def test_removed_techniques_are_part_of_the_label(make_run):
    run = read_run(make_run(config={"algorithm": {"preset": "vapo", "without": ["clip-higher", "positive-lm"]}}))
    assert run.label == "vapo without clip-higher, positive-lm"


@pytest.mark.parametrize("torn", [b'{"step": 13, "rew', b'{"step": 13, "note": "\xe2\x82', b"17", b"\x00\x00"])
def test_a_half_written_last_line_is_skipped(make_run, torn):
    path = make_run("grpo")
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in read_run(path).metrics] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_raises_an_error_with_its_line_number(make_run):
    path = make_run()
    lines = (path / "events.jsonl").read_text().splitlines()
    (path / "events.jsonl").write_text("\n".join([lines[0], "{torn", *lines[1:]]))
    with pytest.raises(DataError, match=r"events\.jsonl, line 2"):
        read_run(path)


def test_a_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is not a run: it has neither config\.yaml nor metrics\.jsonl"):
        read_run(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1,"), ("environment.json", "{")])
def test_damaged_settings_are_named(make_run, name, text):
    path = make_run()
    (path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        read_run(path)


def test_a_run_before_its_first_step_is_read_as_empty(make_run):
    run = read_run(make_run(begun=True))
    assert (run.metrics, run.evaluations, run.alarms) == ([], [], [])


def test_rollouts_are_listed_by_phase_and_step_and_read_back(make_run):
    path = make_run()
    (path / "rollouts" / "step_000001.jsonl.gz.tmp").write_bytes(b"")
    files = rollout_files(path)
    assert [(f.phase, f.step) for f in files] == [
        ("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2), ("train", 3)
    ]  # fmt: skip
    samples = read_rollouts(files[-1].path)
    assert len(samples) == 4
    assert len(samples[0]["tokens"]) == len(samples[0]["value"]) > 20


def test_a_rollout_file_that_was_cut_returns_the_samples_before_the_cut(make_run):
    path = rollout_files(make_run())[1].path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    assert 0 < len(read_rollouts(path)) < 4


def test_a_rollout_file_that_is_not_gzip_raises_an_error_with_its_name(tmp_path):
    for content in (b"not gzip", gzip.compress(b'{"a": 1}\n' * 500)[:-60] + b"x" * 60):
        (tmp_path / "step_000001.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"step_000001\.jsonl\.gz"):
            read_rollouts(tmp_path / "step_000001.jsonl.gz")


def test_a_curve_contains_finite_numbers_only():
    rows = [{"step": 1, "x": None}, {"step": 2, "x": 0.5}, {"step": 3}, {"step": 4, "x": math.nan}, {"step": 5, "x": 2}]
    assert column(rows, "x") == ([2, 5], [0.5, 2.0])
    assert math.isnan(number("0.5"))
    assert math.isnan(number(True))


def test_settings_flatten_to_dotted_keys():
    assert dict(flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}})) == {"a.b": 1, "a.c.d": [2], "e": {}}


@pytest.mark.parametrize("preset", ["vapo", "grpo"])
def test_recorded_runs_have_the_metric_names_that_runs_write_now(make_run, preset):
    # if this fails, record them again: tests/reports/recorded/README.md
    run = read_run(make_run(preset))
    for row in run.metrics:
        names = {re.sub(r"/\d+$", "/*", key) for key in row.keys() - PLACE.keys()}
        assert names <= {name for name, metric in METRICS.items() if Phase(row["phase"]) in metric.phases}
        every = {name for name, metric in METRICS.items() if Phase(row["phase"]) in metric.phases and not metric.where}
        assert every <= names
    assert all(evaluation.keys() == EVALUATION.keys() for evaluation in run.evaluations)
    assert {event["event"] for event in run.events} <= EVENTS.keys()
