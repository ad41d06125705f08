"""What the driver of many rollout workers costs: stub workers behind the code that deals out samples.

    python benchmarks/scale.py [--samples 8192] [--workers 1 4 16 64 256] [--tokens 400] [--seconds 4]

A stub worker answers a request after the time that an engine would take whose step costs `a + b * rows`: ragged lengths
(log-normal, cut off at 8 times the mean), scaled so that the work of one worker with everything takes `--seconds` times
the number of workers. Prints a table: driver CPU and peak memory per sample, how busy the workers were, and how long
the driver took beyond the busiest worker.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import resource
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import numpy as np

from vapo.scale.crew import Crew
from vapo.scale.engine_pool import draw
from vapo.scale.restarts import RestartBudget
from vapo.scale.rollout_worker import PackedCompletions, Request
from vapo.types import Decoding, Prompt

STEP_S, ROW_S = 0.3, 0.01
"""An engine's step costs as much as 30 rows of it, before scaling."""


class Clock(threading.Thread):
    """Resolves futures when their time has come: one thread for all stub workers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._due: list[tuple[float, int, Future[Any], Any]] = []
        self._changed = threading.Condition()
        self._count = 0
        self.start()

    def after(self, seconds: float, future: Future[Any], result: Any) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (time.monotonic() + seconds, self._count, future, result))
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    left = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(left)
                _, _, future, result = heapq.heappop(self._due)
            future.set_result(result)


class StubEngine:
    """A worker without a process."""

    def __init__(self, number: int, clock: Clock, lengths: dict[int, int], scale: float) -> None:
        self.number, self.busy_s = number, 0.0
        self._clock, self._lengths, self._scale = clock, lengths, scale

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if method == "sample":
            request: Request = arguments[1]
            lengths = np.array([self._lengths[int(seed)] for seed in request.seeds])
            seconds = self._scale * (STEP_S * lengths.max() + ROW_S * lengths.sum())
            self.busy_s += seconds
            total = int(lengths.sum())
            answer = PackedCompletions(
                lengths, np.zeros(total, np.int32), np.zeros(total), np.ones(len(lengths), bool), request.version
            )
            self._clock.after(seconds, future, answer)
        else:
            future.set_result(0 if method in ("start", "load") else (0, 0, 0))
        return future

    def describe(self) -> str:
        return f"stub {self.number}"

    def kill(self) -> None:
        pass


class Futures:
    """The backend of the stubs."""

    def wait(self, calls: Any, timeout_s: float) -> list[Any]:
        return list(wait(calls, timeout_s, FIRST_COMPLETED).done)

    def result(self, call: Any) -> Any:
        return call.result()


def measure(samples: int, workers: int, mean_tokens: int, seconds: float, group: int = 16) -> dict[str, float]:
    """The figures of one step."""
    draws = random.Random(0)  # noqa: S311 - lengths, no secrets
    lengths = {
        at: min(8 * mean_tokens, max(1, int(draws.lognormvariate(0, 1) * mean_tokens / 1.65))) for at in range(samples)
    }
    work = ROW_S * sum(lengths.values()) + STEP_S * max(lengths.values())
    clock, engines = Clock(), list[StubEngine]()

    def spawn(number: int) -> StubEngine:
        engines.append(StubEngine(number, clock, lengths, seconds * workers / work))
        return engines[-1]

    crew = Crew(
        workers,
        backend=Futures(),
        spawn=spawn,
        begin=lambda _, process: process.call("start"),
        hand_over=lambda process: process.call("load"),
        restarts=RestartBudget(0, print),
        answer_limit_s=600,
    )
    crew.start()
    prompts = [Prompt(f"p{at // group}", "", token_ids=(at // group, 1, 2)) for at in range(samples)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.monotonic(), time.process_time()
    found = draw(crew, prompts, Decoding(8 * mean_tokens, ()), range(samples), version=0, most=128)
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert [len(completion.token_ids) for completion in found] == list(lengths.values())
    busy = [engine.busy_s for engine in engines]
    return {
        "workers": workers,
        "samples": samples,
        "tokens": sum(lengths.values()),
        "wall_s": wall,
        "driver_cpu_us_per_sample": 1e6 * cpu / samples,
        "driver_cpu_ns_per_token": 1e9 * cpu / sum(lengths.values()),
        "peak_memory_kb_per_sample": memory / samples,
        "busy_share": sum(busy) / (workers * wall),
        "beyond_busiest_s": wall - max(busy),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=8192)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    options.add_argument("--tokens", type=int, default=400)
    options.add_argument("--seconds", type=float, default=4.0)
    chosen = options.parse_args()
    for workers in chosen.workers:
        print(
            json.dumps(
                {k: round(v, 3) for k, v in measure(chosen.samples, workers, chosen.tokens, chosen.seconds).items()}
            )
        )


if __name__ == "__main__":
    main()
