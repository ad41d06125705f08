"""What is scored before an update: what is left out changes rounding only, and only where it is the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import toys
from vapo.algo.method import Fixed, LengthAdaptive
from vapo.algo.presets import GRPO, PRESETS, VAPO
from vapo.trainer import updates
from vapo.trainer.loop import train_step
from vapo.trainer.run import Run
from vapo.trainer.updates import SAME_LOGP, targets_need_no_values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def started(base: Path, folder: Path, *, scoring: str = "needed", preset: str = "vapo", minibatch: int = 8) -> Run:
    """A run whose policy has been handed over, past value pretraining."""
    changes = {"trainer": {"scoring": scoring, "steps": 2, "minibatch_size": minibatch}, "evaluation": {"prompts": 1}}
    run = toys.toy_run(base, folder, changes, preset=preset)
    run.hand_over()
    return run


def count_scored(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows with a learned token that each network is asked to score from now on."""
    rows = {network.name: 0 for network in run.networks}
    for network in run.networks:

        def counting(batch, what, *, micro_batch_tokens, network=network, real=network.score):
            rows[network.name] += int(batch.mask.any(-1).sum())
            return real(batch, what, micro_batch_tokens=micro_batch_tokens)

        monkeypatch.setattr(network, "score", counting)
    return rows


def all_weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for network in run.learners for p in network.parameters])


def step_figures(run: Run) -> dict[str, float]:
    train_step(run)
    run.folder.close()
    return json.loads((run.folder.path / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("preset", ["vapo", "grpo", "dapo", "vapo2", "vc-ppo"])
def test_leaving_scores_out_changes_a_step_by_rounding_only(base: Path, tmp_path: Path, preset: str):
    found = {}
    for scoring in ("needed", "all"):
        run = started(base, tmp_path / scoring, scoring=scoring, preset=preset)
        before = all_weights(run)
        figures = step_figures(run)
        weights = all_weights(run)
        found[scoring] = figures, weights
    (some, some_weights), (every, every_weights) = found["needed"], found["all"]
    assert some.keys() == every.keys()
    # Adam enlarges the rounding of gradients near 0, so single weights may differ by more
    assert (some_weights - every_weights).norm() < 1e-3 * (every_weights - before).norm()
    for name in every:
        if name.startswith(("value/", "loss/", "grad_norm/", "advantages/", "gae/")) and every[name] is not None:
            assert some[name] == pytest.approx(every[name], rel=1e-2, abs=1e-4), name


def test_the_policy_scores_a_sample_of_the_responses_only(base: Path, tmp_path: Path, monkeypatch):
    run = started(base, tmp_path / "run", preset="grpo")
    rows = count_scored(run, monkeypatch)
    figures = step_figures(run)
    assert rows["policy"] == 4 + 4  # of 32: is the sampler the trainer, and how far did the update go
    assert 0 <= figures["sampler/logp_gap_max"] < SAME_LOGP
    assert figures["entropy"] > 0  # of the update's own pass


def test_how_far_the_policy_moved_is_the_kl_from_before_to_now(base: Path, tmp_path: Path, monkeypatch):
    run = started(base, tmp_path / "run", preset="grpo")
    step_figures(run)
    mask = torch.tensor([[True, True, False]] * 8)
    batch = SimpleNamespace(mask=mask, old_logp=torch.full((8, 3), -1.0))
    batch.select = lambda rows: SimpleNamespace(
        mask=mask[rows], old_logp=batch.old_logp[rows], tokens=[[0] * 3] * len(rows)
    )
    # each token is e^.5 times as likely as before: k3 of KL[before | now] is e^.5 - 1 - .5, of KL[now | before] .107
    now = SimpleNamespace(old_logp=torch.full((4, 3), -0.5))
    monkeypatch.setattr(updates, "score", lambda *_, **__: now)
    assert updates.moved(run, batch) == pytest.approx(math.exp(0.5) - 1.5, rel=1e-5)


def test_with_all_every_response_is_scored(base: Path, tmp_path: Path, monkeypatch):
    run = started(base, tmp_path / "run", scoring="all")
    rows = count_scored(run, monkeypatch)
    step_figures(run)
    assert (rows["policy"], rows["critic"]) == (32 + 4, 32)  # 4 once more after the update


def test_a_sampler_that_differs_has_every_response_scored(base: Path, tmp_path: Path, monkeypatch):
    run = started(base, tmp_path / "run", preset="grpo")
    sample = run.engine.generate

    def shifted(prompts, how, seeds, on_progress=None):
        return [
            replace(c, logprobs=tuple(x - 2 * SAME_LOGP for x in c.logprobs))
            for c in sample(prompts, how, seeds, on_progress)
        ]

    monkeypatch.setattr(run.engine, "generate", shifted)
    rows = count_scored(run, monkeypatch)
    figures = step_figures(run)
    assert rows["policy"] >= 32
    assert figures["sampler/logp_gap_max"] == pytest.approx(2 * SAME_LOGP, rel=0.1)


@pytest.mark.parametrize(("minibatch", "scored"), [(8, 24), (32, 0)])
def test_the_first_minibatch_of_the_critic_gives_its_values_while_it_learns(
    base: Path, tmp_path: Path, monkeypatch, minibatch: int, scored: int
):
    run = started(base, tmp_path / "run", minibatch=minibatch)
    rows = count_scored(run, monkeypatch)
    passes = []
    real = run.critic.accumulate
    monkeypatch.setattr(
        run.critic, "accumulate", lambda batch, **options: passes.append(len(batch)) or real(batch, **options)
    )
    step_figures(run)
    assert rows["critic"] == scored
    assert passes == [minibatch] * (32 // minibatch)  # each minibatch once: the first is not made again


def test_values_of_the_first_minibatch_are_those_from_before_the_update(base: Path, tmp_path: Path):
    found = {}
    for scoring in ("needed", "all"):
        run = started(base, tmp_path / scoring, scoring=scoring, minibatch=32)
        found[scoring] = step_figures(run)
    for name in ("value/mean", "value/explained_variance", "entropy"):  # one gradient step: all read the same weights
        assert found["needed"][name] == pytest.approx(found["all"][name], abs=1e-5), name


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (VAPO, True),
        (replace(VAPO, credit=replace(VAPO.credit, critic_lambda=Fixed(0.95))), False),
        (replace(VAPO, credit=replace(VAPO.credit, critic_lambda=LengthAdaptive(2.0))), False),
        (replace(VAPO, credit=replace(VAPO.credit, value_clip=0.2)), False),
        (replace(VAPO, truncated="bootstrap"), False),
        (GRPO, False),
        (PRESETS["vapo2"], True),
        (PRESETS["ppo"], False),
    ],
)
def test_only_outcomes_as_targets_need_no_values(algorithm, expected: bool):
    assert targets_need_no_values(algorithm) is expected
