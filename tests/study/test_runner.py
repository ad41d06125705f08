"""Studies run in real processes: each cell once, resumed after a kill, then compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vapo.durability.checkpoint import sha256
from vapo.errors import ConfigError
from vapo.session.layers import merge
from vapo.study.cell_cards import critic_card
from vapo.study.cells import run_cells, tuning_cells
from vapo.study.study import read_study
from vapo.study.study_run import run_study
from vapo.study.tuning_choice import choose_settings

pytestmark = pytest.mark.slow

STUDY = """
about: a small one
recipe: chain
settings:
  trainer: {steps: 3, samples_per_step: 32, minibatch_size: 16, pretraining_steps: 2, pretraining_heldout: 16}
  evaluation: {every: 2, prompts: 8, samples_per_prompt: 1, final_samples_per_prompt: 4}
  checkpoint: {every: 1}
seeds: [0]
methods: [vapo, grpo]
tuning:
  methods: [grpo]
  grid: [{trainer: {actor_lr: 1.0e-4}}, {trainer: {actor_lr: 1.0e-3}}]
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def finished_study(study_file: Path) -> tuple[Path, dict]:
    """The study's folder and results after all cells have run, two at a time."""
    out = study_file.parent / "out"
    return out, run_study(read_study(str(study_file)), out, jobs=2, say=lambda line: None)


def modification_times(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}


def test_a_study_leaves_a_finished_run_per_cell_and_the_comparison_files(finished_study: tuple[Path, dict]):
    out, results = finished_study
    names = sorted(p.name for p in (out / "runs").iterdir())
    assert names == ["grpo-shipped-seed0", "vapo-shipped-seed0"]
    for folder in (out / "runs").iterdir():
        card = json.loads((folder / "cell.json").read_text())
        assert card["outcome"] == "finished"
        assert (folder / "policy" / "model.safetensors").is_file()
        assert (card["critic"] is not None) == (card["method"] == "vapo")
    for name in ("results.json", "table.md", "curves.png", "comparison.html", "study.yaml"):
        assert (out / "comparison" / name).is_file(), name
    assert results


def test_runs_start_from_the_shared_critic_and_their_card_has_its_cost(finished_study: tuple[Path, dict]):
    out, _ = finished_study
    cell = next(c for c in run_cells(read_study(str(out.parent / "small.yaml")), out, {}) if c.method == "vapo")
    card = critic_card(cell)
    assert card is not None
    assert card["samples"] == 2 * 32
    assert card["gradient_steps"] == 2 + 4  # 32 responses in minibatches of 16, then 32 new ones and 32 replayed
    events = [json.loads(line) for line in (cell.folder / "events.jsonl").read_text().splitlines()]
    assert "critics/pretrained" in next(e for e in events if e["event"] == "critic loaded")["origin"]


def test_tuning_chooses_the_grid_point_with_the_higher_training_accuracy(finished_study: tuple[Path, dict]):
    out, _ = finished_study
    study = read_study(str(out.parent / "small.yaml"))
    entry = json.loads((out / "tuning.json").read_text())["grpo"]
    assert len(entry["late_accuracy"]) == 2
    assert entry["chosen"] == entry["grid"][entry["late_accuracy"].index(max(entry["late_accuracy"]))]
    assert choose_settings(study, tuning_cells(study, out), out) == {"grpo": entry["chosen"]}


def test_a_second_identical_call_runs_nothing_and_returns_the_same_results(finished_study: tuple[Path, dict]):
    out, results = finished_study
    before = modification_times(out)
    again = run_study(read_study(str(out.parent / "small.yaml")), out, jobs=2, say=lambda line: None)
    assert modification_times(out) == before
    assert again == results


def test_a_killed_cell_resumes_and_reaches_the_same_weights(finished_study: tuple[Path, dict], tmp_path: Path):
    out, _ = finished_study
    folder = out / "runs" / "grpo-shipped-seed0"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    (folder / "cell.json").unlink()
    for later in ("policy", "checkpoints/step_000003"):
        shutil.rmtree(folder / later)
    run_study(read_study(str(out.parent / "small.yaml")), out, jobs=1, say=lambda line: None)
    assert sha256(folder / "policy" / "model.safetensors") == sha256(kept / "policy" / "model.safetensors")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_other_settings_in_the_same_folder_raise_before_anything_runs(finished_study: tuple[Path, dict]):
    out, _ = finished_study
    study = read_study(str(out.parent / "small.yaml"))
    other = study.model_copy(update={"settings": merge(study.settings, {"trainer": {"steps": 2}})})
    before = modification_times(out)
    with pytest.raises(ConfigError, match="other settings"):
        run_study(other, out, jobs=1, say=lambda line: None)
    assert modification_times(out) == before


def test_a_stopped_study_with_killed_cells_reaches_the_same_weights_as_an_undisturbed_one(
    finished_study: tuple[Path, dict],
):
    whole, _ = finished_study
    out = whole.parent / "stopped"
    command = ["ablate", str(whole.parent / "small.yaml"), "--budget", "full", "--out", str(out)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "vapo", *command, "--jobs", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # stopped while the critic trains: it saves, and no process remains
    critic = out / "critics" / "pretrained-shipped"
    study = start()
    wait_for(lambda: (critic / "metrics.jsonl").exists())
    study.send_signal(signal.SIGTERM)
    output, _ = study.communicate(timeout=120)
    assert study.returncode == 130
    assert f"Go on with: vapo ablate {whole.parent}" in output
    assert "Traceback" not in output
    assert not running_cells(out)

    # a killed cell counts neither as finished nor as a low score
    study = start()
    wait_for(lambda: bool(running_cells(out / "tuning")))
    victim = running_cells(out / "tuning")[0]
    os.kill(victim, signal.SIGKILL)
    output, _ = study.communicate(timeout=300)
    assert study.returncode == 1
    assert "1 trial of tuning failed" in output
    assert not (out / "runs").exists()  # no run starts before tuning is complete
    assert "Traceback" not in output

    study = start()
    output, _ = study.communicate(timeout=300)
    assert study.returncode == 0, output
    for name in ("vapo-shipped-seed0", "grpo-shipped-seed0"):
        file = Path("runs", name, "policy", "model.safetensors")
        assert sha256(out / file) == sha256(whole / file)
    assert json.loads((out / "tuning.json").read_text()) == json.loads((whole / "tuning.json").read_text())


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met in {seconds} s"
        time.sleep(0.02)


def running_cells(folder: Path) -> list[int]:
    """The ids of the `vapo train` and `vapo resume` processes with a run in the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if {"train", "resume"} & set(arguments) and any(a.startswith(str(folder)) for a in arguments):
            found.append(int(pid))
    return found
