"""States, dealing and faults, without processes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from stub_workers import StubBackend, StubProcess

from vapo.errors import EngineError
from vapo.scale import crew as crew_module
from vapo.scale.crew import Crew
from vapo.scale.deck import Deck, runs
from vapo.scale.fleet import Fleet, Health
from vapo.scale.restarts import RestartBudget
from vapo.scale.rollout_worker import Request, RolloutWorker
from vapo.types import Decoding

pytestmark = pytest.mark.timeout(30)


def test_a_dead_worker_is_used_again_only_after_a_hand_over_of_the_current_version():
    fleet = Fleet(2)
    for worker in range(2):
        fleet.ready(worker, fleet.begin(worker), 0)
    assert fleet.usable() == [0, 1]
    first = fleet.life(1)
    assert fleet.lost(1, first)
    fleet.publish(5)
    assert fleet.usable() == []
    fleet.handed_over(0, fleet.life(0), 5)
    assert fleet.usable() == [0]
    second = fleet.begin(1)
    fleet.ready(1, first, 5)  # the lost process comes back late
    assert fleet.health(1) is Health.STARTING
    fleet.ready(1, second, 4)  # the new one started with the version before
    assert fleet.health(1) is Health.STALE
    assert fleet.usable() == [0]
    fleet.handed_over(1, first, 5)
    assert fleet.health(1) is Health.STALE
    fleet.handed_over(1, second, 5)
    assert fleet.usable() == [0, 1]


def test_a_loss_counts_once_and_impossible_events_are_refused():
    fleet = Fleet(1)
    life = fleet.begin(0)
    assert (fleet.lost(0, life), fleet.lost(0, life), fleet.current(0, life)) == (True, False, False)
    fleet.begin(0)
    with pytest.raises(ValueError, match="worker 0 is starting"):
        fleet.begin(0)
    with pytest.raises(ValueError, match="worker 0 is starting"):
        fleet.handed_over(0, fleet.life(0), 0)


def test_few_samples_are_dealt_in_equal_shares_of_whole_groups():
    deck = Deck([4] * 8, workers=2, most=128)
    assert deck.take() == (0, 1, 2, 3)
    assert deck.take() == (4, 5, 6, 7)
    assert deck.take() == ()


def test_many_samples_are_dealt_in_full_then_shrinking_pieces_and_lost_ones_come_first():
    deck = Deck([4] * 100, workers=2, most=64)
    sizes = [len(piece) for piece in iter(deck.take, ())]
    assert sizes == [16, 16, 16, 16, 16, 10, 5, 4, 1]
    deck.give_back((7, 9, 10))
    assert deck.take() == (7, 9, 10)


def test_every_group_is_dealt_once_whatever_the_sizes():
    sizes = [1, 16, 3, 3, 40, 1, 1, 8] * 5
    for workers in (1, 2, 3, 7, 64):
        for most in (1, 8, 128):
            deck = Deck(sizes, workers=workers, most=most)
            dealt = [group for piece in iter(deck.take, ()) for group in piece]
            assert dealt == list(range(len(sizes)))


def test_runs_of_equal_neighbours():
    assert runs([(1,), (1,), (2,), (1,)]) == [(0, 2), (2, 3), (3, 4)]
    assert runs([]) == []


class Stage:
    """A crew of stubs that double numbers; `trouble(process, number)` may interfere with the work."""

    def __init__(self, size: int, trouble: Any = None, *, restarts: int = 3, limit_s: float = 20.0) -> None:
        self.processes: list[StubProcess] = []
        self.alarms: list[str] = []
        self.used: list[tuple[int, int]] = []  # (version that a worker had, version that was current)
        self.version, self.trouble = 0, trouble
        self.crew = Crew(
            size,
            backend=StubBackend(),
            spawn=self._spawn,
            begin=lambda _, process: process.call("start", self.version),
            hand_over=lambda process: process.call("load", self.version),
            restarts=RestartBudget(restarts, self.alarms.append),
            answer_limit_s=limit_s,
        )
        self.crew.start()

    def _spawn(self, number: int) -> StubProcess:
        self.processes.append(StubProcess(number, self._answer))
        return self.processes[-1]

    def _answer(self, process: StubProcess, method: str, *arguments: Any) -> Any:
        if method in ("start", "load"):
            process.version = arguments[0]
            return process.version
        if method == "stop":
            process.progress = (-1,)
            return None
        ticket, number = arguments
        process.progress = (ticket,)
        if self.trouble:
            self.trouble(process, number)
        self.used.append((process.version, self.version))
        return 2 * number

    def double(self, numbers: list[int], on_tick: Any = None) -> dict[int, int]:
        left, done = list(numbers), {}

        def take() -> Any:
            return (left[0], (left.pop(0),)) if left else None

        self.crew.work("double", take, done.__setitem__, lambda number, _: left.insert(0, number), on_tick)
        return done

    def publish(self, version: int) -> None:
        self.version = version
        self.crew.publish(version)


def test_all_work_is_done_whatever_the_number_of_workers():
    for size in (1, 3):
        stage = Stage(size)
        assert stage.double(list(range(20))) == {number: 2 * number for number in range(20)}
        assert stage.double([]) == {}
        stage.crew.close()


def test_work_of_a_killed_worker_is_done_again_and_its_successor_has_the_current_version():
    def trouble(process: StubProcess, number: int) -> None:
        time.sleep(0.01)
        if number == 7 and not stage.alarms:
            process.kill()

    stage = Stage(2, trouble)
    stage.publish(3)
    assert stage.double(list(range(20))) == {number: 2 * number for number in range(20)}
    assert len(stage.alarms) == 1
    assert "it was killed. It is started again, 1 of 3 restarts; its share is done again" in stage.alarms[0]
    assert {had for had, _ in stage.used} == {3}
    stage.publish(4)
    assert stage.double([1, 2, 3, 4]) == {1: 2, 2: 4, 3: 6, 4: 8}
    assert all(had == current for had, current in stage.used)
    stage.crew.close()


def test_a_worker_that_was_starting_during_a_hand_over_gets_the_newer_version_before_it_is_used():
    stage = Stage(2)
    stage.processes[0].kill()
    slow = stage._answer

    def answer(process: StubProcess, method: str, *arguments: Any) -> Any:
        if method == "start":
            time.sleep(0.4)  # so that the next version comes meanwhile
        return slow(process, method, *arguments)

    stage._answer = answer
    assert stage.double([1]) == {1: 2}  # worker 0 is found dead, and started again beside the work
    stage.publish(9)
    assert stage.double(list(range(50)), lambda _: time.sleep(0.02))
    assert all(had == current for had, current in stage.used)
    assert len(stage.processes) == 3
    stage.crew.close()


def test_a_worker_that_does_not_get_ahead_is_replaced(monkeypatch):
    monkeypatch.setattr(crew_module, "BEAT_S", 0.05)

    def trouble(process: StubProcess, number: int) -> None:
        if number == 3 and not stage.alarms:
            process.killed.wait(10)  # it answers beats all the while
        elif number == 5:
            for at in range(8):  # longer than the limit, but it gets ahead
                time.sleep(0.1)
                process.progress = (number, at)

    stage = Stage(2, trouble, limit_s=0.5)
    assert stage.double([1, 2, 3, 4, 5]) == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}
    assert len(stage.alarms) == 1
    assert "did not get ahead for 0.5 s (scale.answer_limit_s)" in stage.alarms[0]
    stage.crew.close()


def test_an_engine_that_reports_is_seen_to_get_ahead_before_its_first_response_is_finished(monkeypatch):
    monkeypatch.setattr("vapo.scale.supervised.die_with_parent", lambda: None)  # this process is the tests' own
    worker, beats = RolloutWorker(), list[tuple[int, ...]]()

    class Long:
        version = 1

        def generate(self, prompts, how, seeds, on_progress):
            for _ in range(3):
                on_progress(0, 0)
                beats.append(worker.beat())
            return []

    worker._engine = Long()  # type: ignore[assignment]
    worker.sample(7, Request((), np.array([], dtype=np.int64), Decoding(8, (0,)), 1))
    assert len(set(beats)) == 3
    assert {beat[:3] for beat in beats} == {(7, 0, 0)}


def test_more_losses_than_restarts_end_in_an_error():
    def trouble(process: StubProcess, number: int) -> None:
        if number == 3:
            process.kill()

    stage = Stage(2, trouble, restarts=2)
    with pytest.raises(EngineError, match=r"stub \d was lost: it was killed.*2 times \(scale.restarts=2\)"):
        stage.double([1, 2, 3, 4])
    assert len(stage.alarms) == 2
    stage.crew.close()


def test_work_for_a_crew_that_lost_all_its_workers_is_refused():
    stage = Stage(1, lambda process, number: process.kill(), restarts=0)
    with pytest.raises(EngineError, match="was lost"):
        stage.double([1])
    with pytest.raises(EngineError, match=r"No worker is left .*scale\.restarts"):
        stage.double([1])
    stage.crew.close()


def test_an_error_of_the_work_is_raised_and_a_stop_leaves_the_workers_usable():
    def trouble(process: StubProcess, number: int) -> None:
        if number == 3:
            raise ValueError("three")
        if number == 4:
            while process.progress != (-1,):
                time.sleep(0.01)

    stage = Stage(2, trouble)
    with pytest.raises(ValueError, match="three"):
        stage.double([1, 4, 3])
    ticks = iter(range(3))

    def stop_soon(_: Any) -> None:
        if next(ticks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.double([4, 4], stop_soon)
    stage.publish(2)
    assert stage.double([1, 2]) == {1: 2, 2: 4}
    assert stage.alarms == []
    stage.crew.close()
