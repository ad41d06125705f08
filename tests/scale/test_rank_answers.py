"""Which answers of training ranks are awaited after one of them failed; no processes."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from vapo.errors import RankError
from vapo.scale import ray_network
from vapo.scale.rank import Failure
from vapo.scale.ray_backend import RayBackend
from vapo.scale.ray_network import Ranks

exceptions = pytest.importorskip("ray.exceptions")
SLOW_S = 0.3


class StubRay:
    """Rank 0's disk refuses at once, and rank 1 is slow to write its part."""

    exceptions = SimpleNamespace(RayError=ConnectionError, RayTaskError=ChildProcessError)

    def __init__(self) -> None:
        self.began = time.monotonic()

    def wait(self, calls: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        if 0 in calls:
            return [0], []
        left = SLOW_S - (time.monotonic() - self.began)
        time.sleep(max(0.0, min(timeout, left)))
        return ([1] if timeout >= left else []), []

    def get(self, call: int) -> Any:
        return Failure(OSError(28, "No space left on device")) if call == 0 else {"policy/shard": {}}


class StubProcess:
    def __init__(self) -> None:
        self.killed = False

    def describe(self) -> str:
        return "rank"

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize("apart", [True, False])
def test_a_slow_disk_of_another_rank_is_awaited_where_ranks_write_for_themselves(
    apart: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_network, "GRACE_S", 0.02)
    ranks = Ranks.__new__(Ranks)
    ranks.limit_s, ranks._ray = 60.0, StubRay()
    processes = [StubProcess(), StubProcess()]
    ranks.processes = [*processes]  # type: ignore[list-item]
    with pytest.raises(OSError, match="No space left"):
        ranks._answers([0, 1], "save the policy", apart=apart)
    assert [process.killed for process in processes] == [not apart] * 2


def gone(call: Any, timeout: float | None = None) -> Any:
    raise call


OWNER_DIED = exceptions.OwnerDiedError("00ff", None, "")


@pytest.mark.parametrize("error", [OWNER_DIED, exceptions.GetTimeoutError("late")])
def test_weights_of_a_dead_rank_do_not_reach_the_driver_and_the_run_may_go_on(error: Exception):
    ranks = Ranks.__new__(Ranks)
    ranks.limit_s, ranks._ray = 60.0, SimpleNamespace(get=gone, exceptions=exceptions)
    process = StubProcess()
    ranks.processes = [process]  # type: ignore[list-item]
    with pytest.raises(RankError, match="did not arrive") as raised:
        ranks.fetch(error)
    assert process.killed
    assert not raised.value.would_repeat


def test_weights_of_a_dead_rank_do_not_reach_a_rollout_worker_and_the_run_may_go_on():
    backend = RayBackend()
    backend._ray = SimpleNamespace(get=gone)
    with pytest.raises(RankError, match="the training rank that handed them out died"):
        backend.result(exceptions.RayTaskError("load", "a traceback", OWNER_DIED, "worker", 1, "127.0.0.1"))
