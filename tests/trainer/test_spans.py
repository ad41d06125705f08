"""Parts of a run's time: each second belongs to one of them."""

from __future__ import annotations

import threading
import time

import pytest

from vapo.trainer.clock import Clock, memory_figures, network_figures
from vapo.trainer.spans import Part, Spans, Trace


def test_the_seconds_of_an_inner_part_are_not_its_outer_parts():
    spans = Spans()
    began = time.perf_counter()
    with spans.time("score"):
        time.sleep(0.02)
        with spans.time("score/policy", tokens=7, flops=30.0):
            time.sleep(0.03)
        time.sleep(0.02)
    whole = time.perf_counter() - began
    outer, inner = spans.parts["score"], spans.parts["score/policy"]
    assert 0.04 <= outer.seconds < whole - 0.03
    assert inner.seconds >= 0.03
    assert (inner.tokens, inner.flops, outer.tokens) == (7, 30.0, 0)
    assert outer.seconds + inner.seconds == pytest.approx(whole, abs=2e-3)


def test_work_that_failed_takes_time_and_counts_no_tokens():
    spans = Spans()
    with pytest.raises(MemoryError), spans.time("update/policy", tokens=7, flops=1.0):
        raise MemoryError
    with spans.time("log"):
        pass
    assert spans.parts["update/policy"].seconds > 0
    assert spans.parts["update/policy"].tokens == 0


def test_parts_of_another_thread_are_left_out():
    spans, ticks = Spans(), list[str]()

    class Heard(Trace):
        def tick(self) -> None:
            ticks.append("heard")

    spans.trace = Heard()

    def work() -> None:
        with spans.time("rollout"):
            spans.tick()

    with spans.time("update"):
        other = threading.Thread(target=work)
        other.start()
        other.join()
    assert (list(spans.parts), ticks) == (["update"], [])
    spans.tick()
    assert ticks == ["heard"]


def test_a_clock_counts_what_came_after_it_began():
    spans = Spans()
    with spans.time("update/critic", tokens=1000, flops=1e9):
        time.sleep(0.001)
    clock = Clock(spans=spans)
    with clock.time("update"), spans.time("update/critic", tokens=20, flops=2e6):
        time.sleep(0.02)
    figures = clock.figures(sampled_tokens=0, learned_tokens=10, matrix_rate=1e9)
    assert figures["time/update"] >= 0.02
    assert 0 < figures["throughput/critic_update_tokens_per_s"] <= 20 / 0.02
    assert 0 < figures["mfu/critic"] <= 2e6 / 0.02 / 1e9
    assert "mfu/policy" not in figures


def test_mfu_is_the_operations_of_scores_and_updates_over_their_time_and_the_rate():
    # (10 + 50) operations in (2 + 4) seconds are 10 a second: a fifth of 50
    parts = {"score/policy": Part(2.0, 8, 10.0), "update/policy": Part(4.0, 8, 50.0), "update": Part(9.0)}
    assert network_figures(parts, 50.0) == {
        "throughput/policy_score_tokens_per_s": 4.0,
        "throughput/policy_update_tokens_per_s": 2.0,
        "mfu/policy": pytest.approx(0.2),
    }


def test_a_phases_memory_is_the_largest_peak_of_its_parts():
    peaks = {"score": 10**9, "score/policy": 3 * 10**9, "update/critic": 2 * 10**9, "log": 9 * 10**9}
    assert memory_figures(peaks) == {"memory/score_gb": 3.0, "memory/update_gb": 2.0}
