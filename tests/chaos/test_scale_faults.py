"""`vapo chaos --scale`: real processes of real runs are killed, a few of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vapo.chaos import scale_faults
from vapo.chaos.scale_faults import Row, Trial


def test_a_row_counts_kills_and_failed_runs():
    row = Row("training rank killed", kills=20, runs=4, failures=["a: exit code 75"])
    row.places["compute"] = 3
    found = row.as_dict()
    assert (found["trials"], found["runs"], found["failures"], found["places"]) == (20, 4, 1, {"compute": 3})
    assert found["bound"] == pytest.approx(0.2161, abs=1e-3)  # Clopper-Pearson, 1 of 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_leaves_the_result_and_no_process(tmp_path: Path):
    settings = tmp_path / "scaled.yaml"
    settings.write_text(scale_faults.small_config(scale_faults.SCALED, {"trainer": {"steps": 3}}).to_yaml())
    assert scale_faults._wait(scale_faults._start(settings, tmp_path / "calm"), 300) == 0
    expected = scale_faults.fingerprint(tmp_path / "calm")
    trial = Trial(settings, tmp_path / "killed", "ray::RolloutWorker", random.Random(0))
    assert trial.carried_out([0.5], expected) == []
    assert trial.kills == 1
    wrong = {**expected, "policy": "0"}
    (failure,) = Trial(settings, tmp_path / "wrong", "ray::VerifierWorker", random.Random(0)).carried_out([], wrong)
    assert failure == f"{tmp_path / 'wrong'}: different policy"
