"""A Ray cluster for the length of a run: one of its own on this machine, or one that runs already.

What is started here ends here, also when this process is killed: a small process of its own (`reaper`) waits for that,
and our actors die with Ray's processes (`supervised`). On a cluster that was joined, Ray ends the actors of a driver
that is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, counted
from vapo.scale import reaper
from vapo.scale.nodes import check_software, software, software_of_nodes
from vapo.scale.ray_signals import group_of_their_own, held_signals, raised_by_signals
from vapo.scale.restarts import RestartBudget
from vapo.scale.supervised import SupervisedActor, Whereabouts, kill_process

START_LIMIT_S = 30.0
"""Seconds in which a cluster must answer, and its machines and GPUs be there."""
PREFIX = "vapo-ray-"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning for each actor without GPUs
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a call after the end starts another Ray
}
_LONGEST_FOLDER = 40
"""Characters of the temporary folder at most: paths of sockets below it have 107."""


@dataclass(frozen=True)
class Wanted:
    """What a run wants of a cluster."""

    processes: int
    """Actors at the same time, each on one CPU."""
    nodes: int = 1
    gpus_per_node: int = 0
    address: str | None = None
    """None starts a cluster on this machine; `auto`, `HOST:PORT` or `ray://HOST:PORT` joins one."""
    restarts: int = 3

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


class RemoteProcess:
    """A running actor. It is never restarted by Ray: who uses it decides what a new one has to get first."""

    def __init__(self, name: str, actor: Any, ray: Any) -> None:
        self.name = name
        self._actor, self._ray = actor, ray
        self._asked = actor.whereabouts.remote()
        self._place: Whereabouts | None = None
        self.killed = False
        """Whether `kill` was called."""

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Begin a call; a reference to its result, for `ray.wait` and `ray.get`."""
        return getattr(self._actor, method).remote(*arguments, **options)

    def place(self, limit_s: float = START_LIMIT_S) -> Whereabouts:
        """Where it runs. Raises what Ray raises if it died, or did not start within `limit_s` seconds."""
        if self._place is None:
            with raised_by_signals():
                self._place = self._ray.get(self._asked, timeout=limit_s)
        assert self._place is not None
        return self._place

    def describe(self) -> str:
        """Its name, with the process id where it is known: for messages."""
        with contextlib.suppress(Exception):
            return f"{self.name} (process {self.place(0).pid})"
        return self.name

    def kill(self) -> None:
        """End it for good, at once, also if it hangs or is stopped. A second call does nothing."""
        if self.killed:
            return
        self.killed = True
        with contextlib.suppress(Exception):  # it may be dead, and so may the cluster
            self.place(0)
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor, no_restart=True)
        if self._place is not None:
            with contextlib.suppress(Exception):
                self._kill_there(self._place)

    def _kill_there(self, place: Whereabouts) -> None:
        """A stopped process takes no message of Ray's; a signal ends it."""
        if place.node == self._ray.get_runtime_context().get_node_id() and _is_actor(place.pid):
            kill_process(place.pid)
        elif place.node != self._ray.get_runtime_context().get_node_id():
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            there = NodeAffinitySchedulingStrategy(place.node, soft=False)
            self._ray.remote(num_cpus=0, max_retries=0)(_kill_actor).options(scheduling_strategy=there).remote(
                place.pid
            )


class Cluster:
    """A connected Ray cluster; close it in the end. Make it in the main thread: see the module.

    Raises ConfigError if Ray is missing, the address does not answer, machines have other software, or there are fewer
    machines, CPUs or GPUs than wanted; nothing is left running then.
    """

    def __init__(self, wanted: Wanted, on_alarm: Callable[[str], None] | None = None) -> None:
        self.wanted = wanted
        self.restarts = RestartBudget(wanted.restarts, on_alarm or _silent)
        self._ray = import_ray()
        self._reaper: subprocess.Popen[bytes] | None = None
        self._processes: list[RemoteProcess] = []
        self._group: Any = None
        self._order: list[int] = []
        self._gpus: list[tuple[str, int, str]] = []
        """(machine, number, name for CUDA) of each GPU, in the run's order."""
        self.owned = not self._ray.is_initialized()
        """Whether this object connected, and disconnects in the end."""
        try:
            with held_signals(self._ray):
                if not self.owned:
                    pass
                elif wanted.address is None:
                    self._start()
                else:
                    self._join(wanted.address)
            self._check()
            if wanted.gpus:
                self._reserve_gpus()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ actors

    def spawn(
        self,
        actor: type[SupervisedActor],
        *arguments: Any,
        name: str,
        gpu: int | None = None,
        share: float = 1.0,
        concurrency: int = 1,
        **options: Any,
    ) -> RemoteProcess:
        """Start an actor in a process of its own; the call does not wait for it.

        `name` is for messages. `gpu` is the place of a GPU in the run's order (`Placement`), of which the actor takes a
        `share`. `concurrency` calls run at the same time, in threads.
        """
        how: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": concurrency}
        if gpu is None:
            how |= {"num_cpus": 1, "scheduling_strategy": "SPREAD" if self.wanted.nodes > 1 else "DEFAULT"}
        else:
            how |= {"num_cpus": 0, "num_gpus": share, "scheduling_strategy": self._bundle(self._order[gpu])}
        made = self._ray.remote(actor).options(**how).remote(*arguments, **options)
        process = RemoteProcess(name, made, self._ray)
        self._processes = [*(one for one in self._processes if not one.killed), process]
        return process

    def names_of(self, gpus: Sequence[int]) -> tuple[str, ...]:
        """What CUDA_VISIBLE_DEVICES calls these GPUs on their machine. Raises ConfigError if they are on several."""
        machines = {self._gpus[gpu][0] for gpu in gpus}
        if len(machines) > 1:
            raise ConfigError(
                f"One engine's GPUs are on {' and '.join(sorted(machines))}, and vLLM splits an engine over one "
                "machine's. Lower scale.tensor_parallel, or give the run whole machines."
            )
        return tuple(self._gpus[gpu][2] for gpu in gpus)

    def close(self) -> None:
        """End all actors, and the cluster if it was started here. May be called twice."""
        for process in self._processes:
            process.kill()
        self._processes.clear()
        if self._group is not None:
            from ray.util.placement_group import remove_placement_group

            with contextlib.suppress(Exception):  # the cluster may be gone
                remove_placement_group(self._group)
            self._group = None
        if self.owned and self._ray.is_initialized():
            with held_signals(self._ray):
                self._ray.shutdown()
        if self._reaper is not None:
            self._reaper.communicate()  # closes its stdin, and waits until nothing is left
            self._reaper = None

    # ------------------------------------------------------------------ starting

    def _start(self) -> None:
        """Start Ray on this machine, for this process alone."""
        if self.wanted.nodes > 1:
            raise ConfigError(
                f"scale.nodes={self.wanted.nodes} needs a cluster that runs already: set scale.address to auto, "
                "HOST:PORT or ray://HOST:PORT (docs/scale.md)."
            )
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_folder()))
        self._reaper = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-S", reaper.__file__, str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        os.environ.update(_QUIET)
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"} & os.environ.keys():
            # else Ray writes one into the home folder. It stays: Ray reads it once for all clusters of the process
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        try:
            with group_of_their_own():
                self._ray.init(
                    address="local",
                    num_cpus=max(self.wanted.processes, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                )
        except Exception as error:
            raise ConfigError(f"Ray did not start on this machine: {_line(error)}.") from error
        _silence_messages(self._ray)

    def _join(self, address: str) -> None:
        """Connect to a running cluster within the time limit."""
        os.environ.update(_QUIET)
        deadline = time.monotonic() + START_LIMIT_S
        if address != "auto":
            _knock(address)
        failed: list[BaseException] = []

        def connect() -> None:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except BaseException as error:
                failed.append(error)

        # a thread, because some addresses let Ray wait for minutes; it starts no processes, so it may end
        thread = threading.Thread(target=connect, daemon=True, name="ray-connect")
        thread.start()
        thread.join(deadline - time.monotonic())
        if thread.is_alive():
            raise ConfigError(f"scale.address={address} did not answer within {START_LIMIT_S:g} s. {_ADVICE}")
        if failed:
            raise ConfigError(f"scale.address={address}: {_line(failed[0])}. {_ADVICE}") from failed[0]

    def _check(self) -> None:
        """Whether the cluster has what is wanted."""
        ray, wanted = self._ray, self.wanted
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) < wanted.nodes:
            raise ConfigError(f"scale.nodes={wanted.nodes}, and the cluster has {counted(len(nodes), 'machine')}.")
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        if gpus < wanted.gpus:
            raise ConfigError(
                f"The run asks for {counted(wanted.gpus, 'GPU')} (scale.nodes x scale.gpus_per_node), and the cluster "
                f"has {gpus}."
            )
        if not wanted.gpus and cpus < wanted.processes:
            raise ConfigError(
                f"Each process of the run takes a CPU: {wanted.processes} in all (scale.training_ranks, "
                f"rollout_workers and verifier_workers), and the cluster has {counted(cpus, 'CPU')}. Lower one of them."
            )
        if wanted.address is not None:
            check_software(software(), software_of_nodes(ray, START_LIMIT_S))

    def _reserve_gpus(self) -> None:
        """Take the GPUs, close together, and order them by machine and number: Ray's own order is any."""
        from ray.util.placement_group import placement_group

        self._group = placement_group([{"GPU": 1, "CPU": 1}] * self.wanted.gpus, strategy="PACK")
        if not self._group.wait(START_LIMIT_S):
            raise ConfigError(
                f"The cluster did not give {counted(self.wanted.gpus, 'GPU')} within {START_LIMIT_S:g} s: other runs "
                "use them. End those, or lower scale.gpus_per_node."
            )
        probe = self._ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(_gpu_here)
        asked = [probe.options(scheduling_strategy=self._bundle(at)).remote() for at in range(self.wanted.gpus)]
        try:
            found = self._ray.get(asked, timeout=START_LIMIT_S)
        except Exception as error:
            raise ConfigError(f"The cluster's GPUs did not answer: {_line(error)}.") from error
        self._order = sorted(range(len(found)), key=lambda at: found[at])
        self._gpus = sorted(found)

    def _bundle(self, at: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=at)


_ADVICE = "Start the cluster first (docs/scale.md), or leave scale.address out: then one starts on this machine."


def import_ray() -> Any:
    """The package; ConfigError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("scale.backend=ray needs Ray: pip install 'vapo[ray]'") from error
    return ray


def _knock(address: str) -> None:
    """Raise ConfigError if nothing listens at the address `[ray://]HOST:PORT`."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"scale.address={address} must be auto, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=START_LIMIT_S / 3).close()
    except OSError as error:
        raise ConfigError(f"scale.address={address} does not answer: {error.strerror or error}. {_ADVICE}") from error


def _short_folder() -> str:
    given = tempfile.gettempdir()
    return given if len(given) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108  # nosec B108 - mkdtemp makes a private one


def _silence_messages(ray: Any) -> None:
    """Keep Ray from printing the deaths of processes on our stdout: whoever called them gets an error, and tells.

    Ray 2.60 has no setting for it (`log_to_driver` is about what the processes print). Remove it once there is one.
    """
    ray._private.worker._worker_logs_enabled = False


def _gpu_here() -> tuple[str, int, str]:
    """(machine, GPU's number, its name for CUDA) of the process that this runs in."""
    import ray

    context = ray.get_runtime_context()
    name = str(context.get_accelerator_ids().get("GPU", ["0"])[0])
    return ray.util.get_node_ip_address(), int(name) if name.isdecimal() else 0, name


def _is_actor(pid: int) -> bool:
    """Whether the process is one of Ray's: the number may belong to another process by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _kill_actor(pid: int) -> None:
    if _is_actor(pid):
        kill_process(pid)


def _line(error: BaseException) -> str:
    """The last line of an error's text, which is where Ray's name the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _silent(_: str) -> None:
    return None
