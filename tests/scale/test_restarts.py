"""A training rank that is killed in the middle of a run: the run goes on from its last checkpoint by itself."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toys
from vapo.chaos.scale_faults import descendants
from vapo.durability import checkpoint
from vapo.errors import RankError
from vapo.models.shards import is_in_shards, shard_name
from vapo.reports.live import SilentView
from vapo.session import lifecycle
from vapo.session.layers import file_layer

pytestmark = pytest.mark.timeout(400)
SCALED = {"scale": {"backend": "ray", "training_ranks": 2, "verifier_workers": 0, "restarts": 1}}


def ours(title: str) -> list[int]:
    """Processes of this test: others may have a Ray of their own beside it."""
    return [pid for pid, command in descendants(os.getpid()).items() if command.startswith(title)]


class Killer(SilentView):
    """Kills a training rank at the end of step 2, the first time or each time."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.alarms: list[str] = []

    def step(self, metrics: dict) -> None:
        if metrics["phase"] == "train" and metrics["step"] == 2 and self.times:
            self.times -= 1
            os.kill(ours("ray::Rank")[0], signal.SIGKILL)

    def alarm(self, message: str) -> None:
        self.alarms.append(message)


def carried_out(base: Path, folder: Path, view: Killer) -> None:
    task = toys.EchoTask()
    config = lifecycle.with_task(toys.toy_config(base, SCALED), task)
    lifecycle.finish_through(lifecycle.begin(config, folder, view, task), partial(lifecycle.resume, folder, view, task))


def test_a_killed_rank_does_not_change_the_result_and_the_budget_ends(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    calm, killed, hopeless = Killer(0), Killer(1), Killer(9)
    carried_out(base, tmp_path / "calm", calm)
    carried_out(base, tmp_path / "killed", killed)
    assert any("The run goes on from its last checkpoint; it may do so 0 more times" in a for a in killed.alarms)
    one, other = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("calm", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    check_shards_of(tmp_path / "calm")
    with pytest.raises(RankError, match="died"):
        carried_out(base, tmp_path / "hopeless", hopeless)
    deadline = time.monotonic() + 10
    while ours("ray::") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ours("ray::") == []


def test_a_task_that_all_restarts_share_is_closed_after_the_last_one(tmp_path: Path):
    class Closed(toys.EchoTask):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    class Losing(SilentView):
        lost = False

        def step(self, metrics: dict) -> None:
            if metrics["phase"] == "train" and not self.lost:
                self.lost = True
                raise RankError("training rank 0 died.")

    task, view, closed = Closed(), Losing(), list[int]()
    run = lifecycle.begin(
        lifecycle.with_task(toys.toy_config(toys.toy_base(tmp_path / "base")), task), tmp_path / "run", view, task
    )
    again = partial(lifecycle.resume, tmp_path / "run", view, task)
    lifecycle.finish_through(run, again, lambda _: closed.append(task.closed), task=task)
    assert [*closed, task.closed] == [0, 1]


def check_shards_of(folder: Path) -> None:
    """A torn shard is found, the checkpoint before it is used, and one process goes on from it."""
    root, alarms = folder / "checkpoints", list[str]()
    last, before = (root / name for name in checkpoint.names(root)[:2])
    shard = last / "critic_optimizer" / shard_name(1, 2)
    shard.write_bytes(shard.read_bytes()[:-8])
    assert checkpoint.newest(root, alarms.append) == before
    assert f"{last.name} is damaged (critic_optimizer/{shard.name} has " in alarms[0]
    local = file_layer("test", {"scale": {"backend": "local"}, "trainer": {"steps": 4}})
    run = lifecycle.resume(folder, SilentView(), toys.EchoTask(), changes=[local], allow_change=True)
    assert run.state.step == 2
    lifecycle.finish(run, report=False)
    assert run.state.step == 4
    assert not is_in_shards(root / "step_000004" / "policy")
