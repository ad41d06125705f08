"""Guarantee 3 over architectures: whatever the model, a resumed run ends with the bytes of one never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_resume import timeless

import architectures
import toys
from architectures import ARCHITECTURES
from vapo.durability import checkpoint
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import resolve
from vapo.session.layers import file_layer, recipe_layer
from vapo.trainer import snapshot
from vapo.trainer.run import Run

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "algorithm": {"kl": {"coef": 0.01, "refresh_every": 4}},
    "trainer": {"steps": 2, "samples_per_step": 16, "pretraining_steps": 1, "pretraining_heldout": 8},
    "evaluation": {"prompts": 4, "samples_per_prompt": 1},
    "guards": {"watchdog": False},
}
SHIFT = 24
"""Bytes by which the base's file is out of step with those that a run writes."""


def models(folder: Path) -> dict[str, str]:
    found = sorted(folder.glob("*/model.safetensors"))
    return {str(path.relative_to(folder)): checkpoint.sha256(path) for path in found}


def check_resumed_is_whole(whole: Path, copy: Path, task: Any) -> None:
    """A copy of a finished run that goes on from its first step does the rest again, the same."""
    shutil.copytree(whole, copy)
    for name in ("policy", "critic", "checkpoints/step_000002"):
        shutil.rmtree(copy / name)
    run = runs.resume(copy, SilentView(), task=task)
    assert run.state.step == 1
    runs.finish(run, report=False)
    assert timeless(copy, "metrics.jsonl") == timeless(whole, "metrics.jsonl")
    assert timeless(copy, "evaluations.jsonl") == timeless(whole, "evaluations.jsonl")
    for folder in (".", "checkpoints/step_000002"):
        assert len(models(whole / folder)) >= 2
        assert models(copy / folder) == models(whole / folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_resumed_run_equals_one_never_stopped_and_a_rollback_restores_exactly(tmp_path: Path, name: str):
    base = architectures.folder_of(architectures.tiny(name), tmp_path / "base", SHIFT)
    run = runs.finish(toys.toy_run(base, tmp_path / "whole", SMALL), report=False)
    at_one = tmp_path / "whole" / "checkpoints" / "step_000001"
    starts = [architectures.data_start(f / "model.safetensors") % 64 for f in (base, at_one / "policy")]
    assert starts[0] != starts[1]  # else there would be nothing to see
    check_resumed_is_whole(tmp_path / "whole", tmp_path / "again", toys.EchoTask())
    check_restored_live(run, at_one, tmp_path / "restored")


def check_restored_live(run: Run, folder: Path, scratch: Path) -> None:
    """A run that has gone on goes back, in place, to what it saved: what it would save now has the same bytes."""
    run.folder.cut_logs = lambda _: None  # the run has ended; this test does not check its logs
    snapshot.restore(run, folder)
    saved = {p.relative_to(folder): checkpoint.sha256(p) for p in folder.rglob("*.safetensors")}
    assert len(saved) == 5
    assert run.critic is not None
    assert run.reference is not None
    scratch.mkdir()
    for network in (run.policy, run.critic, run.reference):
        network.save(scratch)
    assert {p.relative_to(scratch): checkpoint.sha256(p) for p in scratch.rglob("*.safetensors")} == saved


def test_the_shipped_maze_model_resumes_exactly(tmp_path: Path):
    # with responses cut to 24 tokens, or without the recipe, weights left in their mapped file made no difference here
    sizes = {"samples_per_step": 32, "group_size": 4, "minibatch_size": 16, "pretraining_heldout": 16}
    more = {"trainer": {**SMALL["trainer"], **sizes, "pretraining_ready": -10.0}, "scale": {"threads": 1}}
    kept = {"checkpoint": {"every": 1, "keep": 9}, "evaluation": SMALL["evaluation"], "guards": SMALL["guards"]}
    config = resolve([recipe_layer("maze"), file_layer("test", more), file_layer("test", kept)])
    runs.finish(runs.begin(config, tmp_path / "whole", SilentView()), report=False)
    check_resumed_is_whole(tmp_path / "whole", tmp_path / "again", None)
