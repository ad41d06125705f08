"""Under each method a tiny random model learns the echo task, and a critic learns to foresee it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from vapo.algo.presets import PRESETS
from vapo.session import lifecycle as runs
from vapo.types import Prompt, Verdict

pytestmark = pytest.mark.slow

LONGER = {
    "trainer": {"steps": 40, "samples_per_step": 128, "group_size": 8, "minibatch_size": 32, "save_rollouts_every": 0},
    "evaluation": {"samples_per_prompt": 16},
    "checkpoint": {"every": 0},
}
# its overlong punishment makes responses short first and right later: after 40 steps no seed of three is told apart
# from the start, after 80 all are
SLOWER = {"justrl2": {"trainer": {"steps": 80}}}


class ShortEchoTask(toys.EchoTask):
    """An echo task whose responses have room to end, 3 in 4 do by chance, and are wrong if they go on."""

    max_response_tokens = 24

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        if len(response.split()) > 8:
            return Verdict("wrong", "too many words")
        return super().verify(prompt, response)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_held_out_accuracy_rises_under(preset: str, tmp_path: Path):
    skips = PRESETS[preset].truncated == "drop-from-policy"
    task = ShortEchoTask() if skips else toys.EchoTask()
    run = toys.toy_run(
        toys.toy_base(tmp_path / "base"), tmp_path / "run", LONGER, SLOWER.get(preset, {}), preset=preset, task=task
    )
    assert run.algorithm.truncated == PRESETS[preset].truncated
    runs.finish(run)
    lines = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    before, after = (json.loads(line) for line in lines)
    # chance alone would leave the two intervals overlapping
    assert after["low"] > before["high"], (before["avg"], after["avg"])
    assert after["avg"] > before["avg"] + 0.15
    if skips:
        assert before["clipped_ratio"] > 0.2
        assert after["clipped_ratio"] < 0.1
