"""Faults in a run's process, files, disk and numbers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vapo.trainer.batch import Batch
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.network import Gradient
from vapo.trainer.objectives import Part
from vapo.trainer.run import Run

MUTATING = (
    *("write", "pwrite64", "writev", "openat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink"),
    *("unlinkat", "rmdir", "fsync", "fdatasync", "ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile"),
)


def strace_works() -> bool:
    """Whether strace is installed and may trace processes on this machine."""
    if not shutil.which("strace"):
        return False
    command = ["strace", "-o", os.devnull, "true"]
    tried = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - fixed arguments
    return tried.returncode == 0


def record_syscalls(child: int, log: Path) -> subprocess.Popen[str]:
    """Log every system call of a process that changes files, in order."""
    return _trace(child, ["-o", str(log), "-e", f"trace={','.join(MUTATING)}"])


def kill_at_syscall(child: int, name: str, number: int) -> subprocess.Popen[str]:
    """Kill a process when it enters its `number`-th system call with this name; strace counts each name separately."""
    return _trace(child, ["-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={number}"])


def _trace(child: int, options: list[str]) -> subprocess.Popen[str]:
    command = ["strace", "-f", *options, "-p", str(child)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - numbers and fixed arguments
    assert tracer.stderr is not None
    message = tracer.stderr.readline()
    if "attached" not in message:
        raise RuntimeError(f"strace did not attach: {message}")
    return tracer


def syscalls_in(log: Path) -> list[tuple[str, int]]:
    """(name, count of this name so far) of each call in a log of `record_syscalls`, in order."""
    seen: Counter[str] = Counter()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        found = re.match(r"(?:\d+ +)?([a-z0-9_]+)\(", line)
        if found and found[1] in MUTATING:
            seen[found[1]] += 1
            if "O_RDONLY" not in line:  # strace also counts files opened for reading, which change nothing
                calls.append((found[1], seen[found[1]]))
    return calls


def kill_at_operation(number: int) -> None:
    """Kill this process at its `number`-th file operation, for machines without tracing.

    It does not count the operations inside safetensors.
    """
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}:
            count()

    real = os.fsync

    def fsync(descriptor: int) -> None:
        count()
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def damage(checkpoint: Path, rng: random.Random) -> str:
    """Damage one file of a checkpoint. Returns a description of the damage."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)
    victim, other = rng.sample(files, 2)
    name, size = victim.relative_to(checkpoint), victim.stat().st_size
    match rng.choice(["flip", "flip", "flip", "truncate", "delete", "swap", "append"]):
        case "flip":
            data = bytearray(victim.read_bytes())
            at, bit = rng.randrange(size), rng.randrange(8)
            data[at] ^= 1 << bit
            victim.write_bytes(data)
            return f"bit {bit} of byte {at} of {name} flipped"
        case "truncate":
            left = rng.randrange(size)
            os.truncate(victim, left)
            return f"{name} cut from {size} to {left} bytes"
        case "delete":
            victim.unlink()
            return f"{name} deleted"
        case "swap":
            if victim.read_bytes() == other.read_bytes():
                victim.write_bytes(b"")
                return f"{name} emptied"
            one, two = victim.read_bytes(), other.read_bytes()
            victim.write_bytes(two)
            other.write_bytes(one)
            return f"{name} and {other.relative_to(checkpoint)} swapped"
        case _:
            with victim.open("ab") as file:
                file.write(b"\0")
            return f"a byte added to {name}"


def fill_disk(folder: Path, leave: int, mounted: bool) -> Callable[[], None]:
    """Simulate a full disk, and return a function that undoes it.

    If `folder` is `mounted` as a separate file system, fill it up to `leave` bytes. Otherwise limit the files of this
    process to `leave` bytes.
    """
    if not mounted:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (leave, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))
    return lambda: ballast.unlink(missing_ok=True)


def spoil_gradient_step(run: Run, name: str, number: int, what: str, value: float, times: int = 1) -> None:
    """Put a non-finite number into `times` gradient steps of a network, starting with the `number`-th.

    `what` is `loss` (the gradient stays finite), `gradient`, or a per-token field of the batch.
    """
    network = next(x for x in run.learners if x.name == name)
    assert isinstance(network, LocalNetwork)
    real, loss, seen = network.accumulate, network.objective.loss, 0

    def accumulate(minibatch: Batch, **options: Any) -> Gradient:
        nonlocal seen
        seen += 1
        if not number <= seen < number + times:
            return real(minibatch, **options)
        if what == "loss":
            object.__setattr__(network.objective, "loss", spoiled_loss)
            try:
                return real(minibatch, **options)
            finally:
                object.__delattr__(network.objective, "loss")
        if what == "gradient":
            found = real(minibatch, **options)
            _first_gradient(network).view(-1)[0] = value
            return found
        return real(_with(minibatch, what, value), **options)

    def spoiled_loss(micro: Batch, weights: dict[str, torch.Tensor]) -> Part:
        part = loss(micro, weights)
        return replace(part, loss=part.loss + value)

    network.accumulate = accumulate


def _with(minibatch: Batch, what: str, value: float) -> Batch:
    """The minibatch with one trainable token's number replaced."""
    tensors = minibatch.tensors()
    row, column = minibatch.mask.nonzero()[0].tolist()
    tensors[what] = tensors[what].clone()
    tensors[what][row, column] = value
    return Batch.from_tensors(tensors)


def _first_gradient(network: LocalNetwork) -> torch.Tensor:
    return next(p.grad for p in network.parameters if p.grad is not None)
