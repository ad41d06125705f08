from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

import toys
from vapo.errors import ConfigError, EngineError
from vapo.scale import reaper
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.nodes import check_software, software
from vapo.scale.placement import place
from vapo.scale.restarts import RestartBudget
from vapo.session import scaling
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.scaling import placement_of, threads_of_each
from vapo.session.schema import ScaleConfig

DRIVER = """
import os, signal, time
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.supervised import SupervisedActor
if __name__ == "__main__":
    stop = lambda *_: None
    signal.signal(signal.SIGTERM, stop)
    cluster = Cluster(Wanted(2))
    first, second = [cluster.spawn(SupervisedActor, name=f"worker {at}") for at in range(2)]
    os.kill(first.place().pid, signal.SIGSTOP)
    started = time.monotonic()
    first.kill()
    while os.path.exists(f"/proc/{first.place().pid}") and time.monotonic() < started + 10:
        time.sleep(0.05)
    print(os.path.exists(f"/proc/{first.place().pid}"), signal.getsignal(signal.SIGTERM) is stop)
    print(cluster._reaper.args[-2])
    os.kill(second.place().pid, signal.SIGSTOP)
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.timeout(120)
def test_a_stopped_actor_is_ended_and_a_killed_driver_leaves_no_process_behind(tmp_path: Path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    lines = []
    while "ready" not in lines:
        line = driver.stdout.readline()
        assert line, "the driver ended early"
        lines.append(line.strip())
    alive_and_handler, folder = lines[-3], lines[-2]
    assert alive_and_handler == "False True"
    assert len(reaper.users_of(folder)) >= 4  # GCS, raylet, agents, the second actor, which is stopped
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 20
    while (os.path.exists(folder) or reaper.users_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reaper.users_of(folder) == []
    assert not os.path.exists(folder)


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["ray://", ""])
def test_an_address_that_does_not_answer_is_one_clear_error(scheme: str):
    address = f"{scheme}127.0.0.1:{refused_port()}"
    with pytest.raises(ConfigError, match=f"{address} does not answer"):
        Cluster(Wanted(1, address=address))


@pytest.mark.parametrize("address", ["somewhere", "ray://host", "ray://host:port"])
def test_an_address_of_another_form_is_named(address: str):
    with pytest.raises(ConfigError, match="must be auto, HOST:PORT or ray://HOST:PORT"):
        Cluster(Wanted(1, address=address))


def test_several_machines_need_a_cluster_that_runs():
    with pytest.raises(ConfigError, match=r"scale\.nodes=2 needs a cluster that runs already"):
        Cluster(Wanted(1, nodes=2))


def test_a_machine_with_other_software_is_named():
    here = software()
    check_software(here, {"10.0.0.1": dict(here)})
    with pytest.raises(ConfigError, match=r"machine 10.0.0.2 of the cluster has torch 1.0, this process has"):
        check_software(here, {"10.0.0.1": dict(here), "10.0.0.2": {**here, "torch": "1.0"}})
    with pytest.raises(ConfigError, match=r"10\.0\.0\.3 of the cluster cannot load vapo: No module named 'vapo'"):
        check_software(here, {"10.0.0.3": "No module named 'vapo'"})


def test_colocated_engines_share_the_gpus_of_the_ranks_and_split_ones_have_their_own():
    together = place(gpus=4, training_ranks=4, rollout_workers=2, tensor_parallel=2)
    assert (together.ranks, together.engines, together.shared) == ((0, 1, 2, 3), ((0, 1), (2, 3)), True)
    apart = place(gpus=4, training_ranks=2, rollout_workers=1, tensor_parallel=2, placement="split")
    assert (apart.ranks, apart.engines, apart.shared) == ((0, 1), ((2, 3),), False)
    on_cpus = place(gpus=0, training_ranks=2, rollout_workers=2)
    assert (on_cpus.ranks, on_cpus.engines) == ((), ((), ()))


def test_an_engine_knows_the_names_of_its_gpus_which_are_on_one_machine():
    cluster = Cluster.__new__(Cluster)
    cluster._gpus = [("10.0.0.1", 0, "0"), ("10.0.0.1", 1, "1"), ("10.0.0.2", 0, "0"), ("10.0.0.2", 3, "3")]
    assert cluster.names_of((2, 3)) == ("0", "3")
    with pytest.raises(ConfigError, match=r"GPUs are on 10\.0\.0\.1 and 10\.0\.0\.2"):
        cluster.names_of((1, 2))


def test_only_vllm_splits_an_engine(tmp_path: Path):
    scale = {"scale": {"backend": "ray", "gpus_per_node": 2, "tensor_parallel": 2}}
    with pytest.raises(ConfigError, match=r"scale\.tensor_parallel=2 .*rollout\.engine=torch cannot"):
        placement_of(toys.toy_config(tmp_path, scale))
    vllm = {"rollout": {"engine": {"kind": "vllm"}}}
    assert placement_of(toys.toy_config(tmp_path, scale, vllm)).engines == ((0, 1),)


def test_processes_share_the_cores_of_their_machines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert threads_of_each(ScaleConfig(nodes=2), 10**9, 16) == 8
    assert threads_of_each(ScaleConfig(), 10**9, 100) == 1
    assert threads_of_each(ScaleConfig(threads=5), 10**9, 16) == 5
    assert threads_of_each(ScaleConfig(), 10**6, 1) == 1  # a tiny model


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": 2, "training_ranks": 3, "rollout_workers": 1}, "asks for 3 GPUs and has 2"),
        ({"gpus": 4, "training_ranks": 3, "rollout_workers": 2, "placement": "split"}, "asks for 5 GPUs and has 4"),
        ({"gpus": 0, "training_ranks": 1, "rollout_workers": 1, "tensor_parallel": 2}, "scale.gpus_per_node is 0"),
        (
            {"gpus": 6, "training_ranks": 6, "rollout_workers": 3, "tensor_parallel": 2, "per_node": 3},
            "would split an engine over machines of 3 GPUs",
        ),
    ],
)
def test_more_processes_than_gpus_are_refused(asked: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        place(**asked)


def test_each_restart_is_an_alarm_and_the_budget_ends_in_an_error_that_names_the_process():
    alarms: list[str] = []
    budget = RestartBudget(1, alarms.append)
    budget.spend("rollout worker 2 (process 77)", "it ended", "16 responses are drawn again")
    assert alarms == [
        "The rollout worker 2 (process 77) was lost: it ended. It is started again, 1 of 1 restart; 16 responses are "
        "drawn again"
    ]
    with pytest.raises(EngineError, match=r"verifier worker 0 was lost: it hangs.*1 time \(scale.restarts=1\)"):
        budget.spend("verifier worker 0", "it hangs")


@pytest.mark.parametrize(("workers", "noted"), [(7, False), (8, True)])
def test_many_more_processes_than_cores_are_noted_before_ray_starts(workers, noted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(scaling, "Cluster", lambda wanted, on_alarm: wanted)
    observer = Mock()
    settings = {"scale": {"backend": "ray", "training_ranks": 1, "rollout_workers": workers, "verifier_workers": 0}}
    wanted = scaling.start_cluster(resolve([file_layer("a test", settings)]), observer)
    assert wanted.processes == workers + 1
    assert ("9 processes share 2 cores" in observer.note.call_args_list[0].args[0]) == noted
