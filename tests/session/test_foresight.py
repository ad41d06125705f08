"""What a run will take: sizes by hand and as they are, times from what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.foresight import (
    Forecaster,
    NetworkSize,
    Plan,
    cache_numbers,
    free_memory,
    memory_bytes,
    plan_of,
    report_size,
)
from vapo.trainer import snapshot
from vapo.trainer.settings import EvaluationSettings

PLAN = Plan(
    responses=32,
    rounds=1,
    max_tokens=100,
    pretraining_steps=4,
    steps=10,
    evaluation=EvaluationSettings(every=5, prompts=8, samples_per_prompt=2, final_samples_per_prompt=6),
    operations_per_token=1000,
    memory=3_000_000_000,
    checkpoints=50_000_000,
)
EVALUATION = {"label": "before", "prompts": 8, "k": 2, "mean_length": 50.0, "time/evaluate": 4.0}


class Told(SilentView):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.alarms: list[str] = []
        self.passed: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def alarm(self, message: str) -> None:
        self.alarms.append(message)

    def step(self, metrics: dict[str, Any]) -> None:
        self.passed.append(f"{metrics['phase']} {metrics['step']}")


def test_memory_worked_by_hand():
    # a policy of 1000, all trained: weights, gradients, 2 moments = 4 x 1000 numbers; a critic of 900 and adapters of
    # 100: 1000 + 3 x 100 numbers; a reference of 1000; all in 4 bytes: 4 (4000 + 1300 + 1000) = 25200
    networks = [NetworkSize(1000, 1000), NetworkSize(1000, 100), NetworkSize(1000, 0)]
    # the sampler's copy and its cache in bfloat16: 2 (1000 + 500) = 3000
    assert memory_bytes(networks, sampler_parameters=1000, cache_numbers=500, sampler_bytes=2) == 28_200
    assert memory_bytes(networks, sampler_parameters=1000, cache_numbers=500, sampler_bytes=4) == 31_200


def test_a_cache_worked_by_hand():
    # 2 layers x 1 key head x (hidden 32 / 2 heads = 16) x (keys, values): 64 numbers a token; 3 sequences of 10 tokens
    assert cache_numbers(toys.tiny_llama().config, slots=3, tokens=10) == 3 * 10 * 64
    assert cache_numbers(toys.tiny_llama(head_dim=8, num_key_value_heads=2).config, slots=1, tokens=1) == 2 * 2 * 8 * 2


@pytest.mark.parametrize("preset", ["vapo", "grpo"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_plan_knows_checkpoints_before_weights_load(tmp_path: Path, preset: str, rank: int):
    layer = {
        "model": {"policy_lora": rank, "critic_lora": rank},
        "algorithm": {"kl": {"coef": 0.1}, "alpha": 2.0 if preset == "vapo" else None},
        "checkpoint": {"keep": 2},
    }
    base, task = toys.toy_base(tmp_path / "base"), toys.EchoTask()
    config, inputs = runs.prepare(toys.toy_config(base, layer, preset=preset), SilentView(), task)
    run = toys.toy_run(base, tmp_path / "run", layer, preset=preset)
    run.folder.close()
    plan = plan_of(config, inputs)
    published = sum(network.published_bytes for network in run.learners)
    assert plan.checkpoints == 3 * snapshot.size(run) + published
    assert (plan.responses, plan.max_tokens, plan.steps) == (32, 8, 3)
    assert plan.pretraining_steps == (2 if preset == "vapo" else 0)
    assert plan.rounds == 1 + run.algorithm.sampling.refill_rounds
    whole, full = plan.memory, replace(config, sections=config.sections.model_copy(update={"model": replace(
        config.sections.model, policy_lora=0, critic_lora=0)}))  # fmt: skip
    assert (whole < plan_of(full, inputs).memory) == (rank > 0)


def test_nothing_is_said_of_a_run_that_fits():
    told = Told()
    report_size(PLAN, told, free_disk=10**9, free=4 * 10**9, operations_per_s=1e9)
    report_size(PLAN, told, free_disk=10**9, free=None, operations_per_s=1e9)
    assert told.notes + told.alarms == []
    assert free_memory(toys.tiny_llama().device) != 0


def test_what_is_out_of_proportion_is_said_before_weights_load_with_the_settings_that_help():
    told = Told()
    report_size(PLAN, told, free_disk=99_000_000, free=2_900_000_000, operations_per_s=1e9)
    assert told.notes == [
        "checkpoints and models take about 50 MB, and 99 MB are free on the disk. Less: checkpoint.keep, "
        "model.policy_lora"
    ]
    assert len(told.alarms) == 1
    for words in ("about 3.0 GB", "2.9 GB of memory are free", "model.policy_lora", "rollout.engine.slots",
                  "trainer.micro_batch_tokens", "model.dtype=bfloat16"):  # fmt: skip
        assert words in told.alarms[0]
    # 14 steps of 3200 tokens of 1000 operations = 4.48e7 operations
    for plan, speed in ((replace(PLAN, responses=100_001), 1e12), (PLAN, 44.8), (PLAN, 448.0)):
        told = Told()
        report_size(plan, told, free_disk=10**9, free=None, operations_per_s=speed)
        assert len(told.notes) == 1
        assert "14 such steps take" in told.notes[0]
        assert ("12 days or more" in told.notes[0]) == (speed == 44.8)
        assert "trainer.samples_per_step" in told.notes[0]
    assert "27h 46m or more" in told.notes[0]  # 4.48e7 / 448 = 100,000 s


def test_the_evaluation_before_training_gives_the_speed():
    # 16 responses of 50 tokens in 4 s: 200 tokens/s, and 32 responses in 8 s. 14 steps; the evaluations after steps 5
    # and 10, the last with three times the samples: 14 x 8 + 4 x (1 + 3) = 128 s
    told = Told()
    Forecaster(PLAN, told).evaluation(EVALUATION)
    assert told.notes == [
        "a step samples 32 responses of up to 100 tokens, about 8.0s at the measured 200 tokens/s; 14 steps and the "
        "evaluations: about 2m 08s, and learning comes on top; memory about 3.0 GB for networks and cache; checkpoints "
        "and models 50 MB"
    ]


def test_the_first_step_of_each_phase_gives_the_time_that_is_left():
    told = Told()
    view = Forecaster(PLAN, told)
    view.evaluation(EVALUATION)
    for phase, step, seconds in (("pretrain", 1, 10.0), ("pretrain", 2, 9.0), ("train", 1, 20.0), ("train", 2, 1.0)):
        view.step({"phase": phase, "step": step, "step_time": seconds})
    assert told.passed == ["pretrain 1", "pretrain 2", "train 1", "train 2"]
    # 3 + 10 steps of 10 s and 16 s of evaluations; then 9 steps of 20 s and the same evaluations
    assert told.notes[1:] == [
        "the first step of value pretraining took 10s: about 2m 26s for the 13 steps left and the evaluations",
        "the first step of training took 20s: about 3m 16s for the 9 steps left and the evaluations",
    ]


def test_a_run_that_resumes_says_at_its_first_step_what_is_left_and_the_sizes():
    told = Told()
    Forecaster(PLAN, told).step({"phase": "train", "step": 9, "step_time": 2.0})
    assert "about 2.0s for the 1 step left; a step samples 32 responses" in told.notes[0]
    assert "memory about 3.0 GB" in told.notes[0]
    told = Told()
    Forecaster(PLAN, told).step({"phase": "train", "step": 10, "step_time": 2.0})
    assert told.notes == []


def test_a_run_tells_its_observer_what_it_will_take(tmp_path: Path):
    told, task = Told(), toys.EchoTask()
    config = runs.with_task(toys.toy_config(toys.toy_base(tmp_path / "base")), task)
    runs.finish(runs.begin(config, tmp_path / "run", told, task=task), report=False)
    said = " | ".join(told.notes)
    assert "a step samples 32 responses of up to 8 tokens, about " in said
    assert "the first step of value pretraining took" in said
    assert "the first step of training took" in said
    assert told.passed == ["pretrain 1", "pretrain 2", "train 1", "train 2", "train 3"]
