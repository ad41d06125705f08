"""A trace of one step by torch's profiler, for Perfetto: our parts as spans, and torch's operations in them.

A step has millions of operations, and they repeat. So a part records its operations for half a second in all; its
spans are complete.
"""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vapo.trainer.spans import Trace

PART_S = 0.5
"""Seconds of each part whose operations are recorded."""
STDERR = 2


class StepTrace(Trace):
    """Records from `start` to `stop`; as the run's trace it is told of the parts."""

    def __init__(self) -> None:
        self._activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            self._activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=self._activities)
        self._recorded: defaultdict[str, float] = defaultdict(float)
        """Seconds of each part."""
        self._open: list[str] = []
        self._recording = False
        self._since = 0.0

    def start(self) -> None:
        """Begin; raises RuntimeError where torch's profiler cannot."""
        with _quiet():
            self._profile.start()
        self._recording, self._since = True, time.perf_counter()

    def stop(self) -> None:
        """End; what was recorded stays."""
        with _quiet():
            self._profile.stop()

    def export(self, path: Path) -> None:
        """Write it as JSON."""
        with _quiet():
            self._profile.export_chrome_trace(str(path))

    def begin(self, what: str) -> None:
        """See `Trace`: a span is recorded if its begin and its end are."""
        self._account()
        self._open.append(what)
        self._record(True)

    def begun(self) -> None:
        """See `Trace`."""
        self.tick()

    def tick(self) -> None:
        """See `Trace`: stop recording operations of a part that had its time."""
        self._account()
        self._record(not self._open or self._recorded[self._open[-1]] < PART_S)

    def end(self) -> None:
        """See `Trace`."""
        self._account()
        self._record(True)

    def ended(self) -> None:
        """See `Trace`."""
        self._open.pop()
        self.tick()

    def _account(self) -> None:
        now = time.perf_counter()
        if self._recording:
            self._recorded[self._open[-1] if self._open else ""] += now - self._since
        self._since = now

    def _record(self, wanted: bool) -> None:
        if wanted != self._recording:
            with _quiet():
                self._profile.toggle_collection_dynamic(wanted, self._activities)
            self._recording = wanted


def write_trace(trace: StepTrace, path: Path) -> None:
    """Write the trace as .json.gz, whole or not at all; raises OSError."""
    plain, packed = path.with_name(".trace.json"), path.with_name(".trace.json.gz")
    try:
        trace.export(plain)
        if not _is_whole(plain):  # torch does not say that the disk was full
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(plain))
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=5) as target:
            shutil.copyfileobj(source, target)
        packed.rename(path)
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16))
        return file.read().rstrip().endswith(b"}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch's profiler writes to stderr by itself: notes on each start, stop and pause."""
    with suppress(OSError):
        before, null = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, STDERR)
            os.close(null)
            yield
        finally:
            os.dup2(before, STDERR)
            os.close(before)
