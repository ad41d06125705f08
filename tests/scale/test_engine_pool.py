"""The pool of torch engines on a Ray of its own, which all tests of this file share."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rollout.tiny_models import make_prompts, tiny_model
from vapo.errors import DivergedError, EngineError, ModelError
from vapo.rollout.engine_settings import TorchEngineSettings
from vapo.rollout.torch_engine import TorchEngine
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.engine_pool import EnginePool
from vapo.scale.restarts import RestartBudget
from vapo.types import Completion, Decoding, Prompt

pytestmark = pytest.mark.timeout(120)
SETTINGS = TorchEngineSettings(slots=32)
PROMPTS = make_prompts([3, 3, 11, 20, 20, 33, 47, 60], per_prompt=5)
SEEDS = [1000 + i for i in range(len(PROMPTS))]
HOW = Decoding(max_tokens=24, stop_token_ids=(7, 8, 9))
MANY = make_prompts([3, 11, 20, 33, 47, 60], per_prompt=50)
LONG = Decoding(max_tokens=190, stop_token_ids=())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    alarms: list[str] = []
    made = Cluster(Wanted(3, restarts=10), alarms.append)
    made.alarms = alarms  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[EnginePool]:
    model = tiny_model()
    made = EnginePool(cluster, SETTINGS, model, model.state_dict().items(), workers=2, answer_limit_s=60)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def starting_weights(pool: EnginePool) -> None:
    pool.load_weights(tiny_model().state_dict().items(), 1)


def check_equal(samples: list[Completion], expected: list[Completion]) -> None:
    """Equal bits where one engine gives equal bits to halves of the samples."""
    for a, b in zip(samples, expected, strict=True):
        assert (a.token_ids, a.finish_reason, a.policy_version) == (b.token_ids, b.finish_reason, b.policy_version)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def expected_of(
    model: Any, how: Decoding, version: int, prompts: list[Prompt] = PROMPTS, seeds: list[int] = SEEDS
) -> list[Completion]:
    engine = TorchEngine(model, slots=32)
    engine.load_weights(model.state_dict().items(), version)
    return engine.generate(prompts, how, seeds)


def pids(pool: EnginePool) -> list[int]:
    return [process.place().pid for process in pool.crew._processes if process is not None]  # type: ignore[attr-defined]


def test_two_workers_draw_the_samples_of_one_engine_and_report_progress(pool: EnginePool):
    engine = TorchEngine(tiny_model(), slots=32)
    expected = expected_of(tiny_model(), HOW, 1)
    seen: list[tuple[int, int]] = []
    samples = pool.generate(PROMPTS, HOW, SEEDS, lambda done, tokens: seen.append((done, tokens)))
    check_equal(samples, expected)
    halves = [c for at in (0, 20) for c in engine.generate(PROMPTS[at : at + 20], HOW, SEEDS[at : at + 20])]
    if [c.logprobs for c in halves] == [c.logprobs for c in expected]:  # this machine's library sums alike
        assert samples == expected
    assert seen[-1] == (len(PROMPTS), sum(len(c.token_ids) for c in samples))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert pool.generate([], HOW, []) == []


def test_new_weights_reach_every_worker_in_buckets(pool: EnginePool, monkeypatch):
    monkeypatch.setattr("vapo.scale.weight_store.BUCKET_BYTES", 5000)
    other = tiny_model(seed=5)
    pool.load_weights(other.state_dict().items(), 8)
    assert pool.version == 8
    check_equal(pool.generate(PROMPTS, HOW, SEEDS), expected_of(other, HOW, 8))


def test_weights_of_another_model_are_an_error_of_the_caller(pool: EnginePool):
    with pytest.raises(ModelError, match="do not fit"):
        pool.load_weights(tiny_model("gpt2").state_dict().items(), 2)


def test_a_killed_worker_changes_no_sample_and_its_successor_has_the_weights(pool: EnginePool, cluster: Cluster):
    model = tiny_model(seed=3)
    pool.load_weights(model.state_dict().items(), 4)
    expected = expected_of(model, LONG, 4, MANY, list(range(300)))
    before = pids(pool)
    killed = False

    def kill_one(done: int, tokens: int) -> None:
        nonlocal killed
        if not killed:
            killed = True
            os.kill(before[0], signal.SIGKILL)

    alarms = len(cluster.alarms)  # type: ignore[attr-defined]
    check_equal(pool.generate(MANY, LONG, list(range(300)), kill_one), expected)
    (alarm,) = cluster.alarms[alarms:]  # type: ignore[attr-defined]
    assert f"rollout worker 0 (process {before[0]}) was lost: its process ended" in alarm
    deadline = time.monotonic() + 30
    while len(pool.crew.fleet.usable()) < 2 and time.monotonic() < deadline:
        check_equal(pool.generate(PROMPTS, HOW, SEEDS), expected_of(model, HOW, 4))
    assert len(pool.crew.fleet.usable()) == 2
    check_equal(pool.generate(MANY, LONG, list(range(300))), expected)
    assert not os.path.exists(f"/proc/{before[0]}")


def test_a_stopped_worker_is_found_ended_and_replaced(pool: EnginePool):
    expected = pool.generate(PROMPTS, HOW, SEEDS)
    stopped = pids(pool)[1]
    os.kill(stopped, signal.SIGSTOP)
    pool.crew._limit_s = 2.0
    try:
        assert pool.generate(PROMPTS, HOW, SEEDS) == expected
    finally:
        pool.crew._limit_s = 60.0
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{stopped}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{stopped}")


def test_a_stop_in_the_middle_leaves_the_workers_ready_for_the_next_call(pool: EnginePool):
    expected = pool.generate(PROMPTS, HOW, SEEDS)
    before = pids(pool)

    def stop(done: int, tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.generate(PROMPTS, LONG, SEEDS, stop)
    assert pool.generate(PROMPTS, HOW, SEEDS) == expected
    assert pids(pool) == before


def test_samples_are_drawn_from_a_thread_too(pool: EnginePool):
    expected, found = pool.generate(PROMPTS, HOW, SEEDS), []
    thread = threading.Thread(target=lambda: found.extend(pool.generate(PROMPTS, HOW, SEEDS)))
    thread.start()
    thread.join()
    assert found == expected


def test_logits_that_are_no_numbers_are_the_error_that_one_engine_raises(pool: EnginePool):
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in tiny_model().state_dict().items()}
    pool.load_weights(broken.items(), 6)
    with pytest.raises(DivergedError, match="version 6"):
        pool.generate(PROMPTS, HOW, SEEDS)


def test_without_restarts_a_lost_worker_ends_the_run(pool: EnginePool):
    pool.crew._restarts = RestartBudget(0, lambda _: None)
    lost = pids(pool)[0]
    os.kill(lost, signal.SIGKILL)
    with pytest.raises(EngineError, match=rf"rollout worker 0 \(process {lost}\) was lost.*scale.restarts=0"):
        pool.load_weights(tiny_model().state_dict().items(), 7)
