"""The base of all our actors. Its start is quick, so that one that hangs later can always be found and ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, see prctl(2)


@dataclass(frozen=True)
class Whereabouts:
    """Where an actor runs."""

    pid: int
    node: str
    """Ray's id of the machine."""
    gpus: tuple[str, ...] = ()
    """The GPUs that Ray gave it, by their names for CUDA_VISIBLE_DEVICES."""


class SupervisedActor:
    """An actor that dies with the process that started it, Ray's raylet, whatever it does at that time.

    Subclasses do what takes long in a method, not in `__init__`.
    """

    def __init__(self) -> None:
        die_with_parent()

    def whereabouts(self) -> Whereabouts:
        """Where this process is."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Whereabouts(os.getpid(), context.get_node_id(), tuple(map(str, gpus)))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends: also a stopped process, which no message reaches."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def kill_process(pid: int) -> None:
    """End a process of this machine at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
