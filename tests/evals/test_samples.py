"""An evaluation that is stopped goes on where it was, and never mixes two of them."""

from __future__ import annotations

import pytest

import toys
from vapo.errors import ConfigError
from vapo.evals.evaluate import sample_and_judge, score_episodes
from vapo.evals.samples import SampleFile
from vapo.models.loading import render
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding

HOW = Decoding(max_tokens=8, stop_token_ids=(1,))
ABOUT = {"model": "toy", "k": 2}


class Stopping:
    """An engine that is interrupted after so many responses."""

    def __init__(self, limit: int) -> None:
        self.engine, self.left = TorchEngine(toys.tiny_llama(), slots=16), limit

    def generate(self, prompts, how, seeds, on_progress=None):
        self.left -= len(prompts)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.engine.generate(prompts, how, seeds, on_progress)


def run(engine, kept):
    task, words = FullTask.of(toys.EchoTask()), toys.tokenizer()
    prompts = [render(words, p) for p in task.heldout]
    return sample_and_judge(
        engine, prompts, task, k=2, how=HOW, decode=lambda ids: words.decode(list(ids)), seed=3, kept=kept
    )


def test_a_stopped_evaluation_goes_on_and_equals_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr("vapo.evals.evaluate.CHUNK", 4)
    whole = run(Stopping(100), None)
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(8), SampleFile(tmp_path, ABOUT))
    rest = Stopping(8)  # 4 of 8 problems are left: no more than their 8 samples are drawn again
    resumed = run(rest, SampleFile(tmp_path, ABOUT))
    assert rest.left == 0
    assert score_episodes(resumed, k=2) == score_episodes(whole, k=2)
    assert [e.response for e in resumed] == [e.response for e in whole]
    assert score_episodes(run(Stopping(0), SampleFile(tmp_path, ABOUT)), k=2) == score_episodes(
        whole, k=2
    )  # all of it is there


def test_half_a_line_is_dropped_and_its_problem_sampled_again(tmp_path):
    whole = run(Stopping(100), SampleFile(tmp_path, ABOUT))
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    engine = Stopping(2)
    assert score_episodes(run(engine, SampleFile(tmp_path, ABOUT)), k=2) == score_episodes(whole, k=2)
    assert engine.left == 0


def test_invalid_samples_are_drawn_again(tmp_path):
    whole = run(Stopping(100), SampleFile(tmp_path, ABOUT))
    path = tmp_path / "samples.jsonl"
    path.write_text(path.read_text().replace('"verdict": "wrong"', '"verdict": "invalid"', 1))
    engine = Stopping(2)
    assert score_episodes(run(engine, SampleFile(tmp_path, ABOUT)), k=2) == score_episodes(whole, k=2)
    assert engine.left == 0


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"about": {}}\nnot ours\n')
    with pytest.raises(ConfigError, match=r"damaged or none of ours.*Choose another --out"):
        SampleFile(tmp_path, ABOUT)


def test_samples_of_another_evaluation_are_refused(tmp_path):
    run(Stopping(100), SampleFile(tmp_path, ABOUT))
    with pytest.raises(ConfigError, match=r"another evaluation: k was 2, is 4. Choose another --out"):
        SampleFile(tmp_path, {**ABOUT, "k": 4})
