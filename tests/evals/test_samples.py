"""A stopped evaluation resumes from its sample file, and rejects the file of another evaluation."""

from __future__ import annotations

import pytest

import toys
from vapo.errors import ConfigError
from vapo.evals.evaluate import sample_and_judge, score_episodes
from vapo.evals.samples import SampleFile
from vapo.models.tokens import render
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding

HOW = Decoding(max_tokens=8, stop_token_ids=(1,))
ABOUT = {"model": "toy", "k": 2}


class Stopping:
    """An engine that raises KeyboardInterrupt after `limit` responses."""

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


def test_a_resumed_evaluation_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("vapo.evals.evaluate.CHUNK", 4)
    whole = run(Stopping(100), None)
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(8), SampleFile(tmp_path, ABOUT))
    rest = Stopping(8)  # 4 of 8 problems are left, so 8 samples are drawn
    resumed = run(rest, SampleFile(tmp_path, ABOUT))
    assert rest.left == 0
    assert score_episodes(resumed, k=2) == score_episodes(whole, k=2)
    assert [e.response for e in resumed] == [e.response for e in whole]
    assert score_episodes(run(Stopping(0), SampleFile(tmp_path, ABOUT)), k=2) == score_episodes(
        whole, k=2
    )  # no sample is drawn


def test_a_half_written_line_is_dropped_and_its_problem_sampled_again(tmp_path):
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


def test_another_file_in_place_of_samples_raises(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"about": {}}\nnot ours\n')
    with pytest.raises(ConfigError, match=r"damaged or not a file of vapo.*Choose another --out"):
        SampleFile(tmp_path, ABOUT)


def test_samples_of_another_evaluation_raise(tmp_path):
    run(Stopping(100), SampleFile(tmp_path, ABOUT))
    with pytest.raises(ConfigError, match=r"another evaluation: k was 2, is 4. Choose another --out"):
        SampleFile(tmp_path, {**ABOUT, "k": 4})
