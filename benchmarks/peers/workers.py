"""Starts workers, asks them for rounds in turn, and stops them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_TOKENS = 24
"""Response tokens of the first round, which no figure comes from: it allocates memory and chooses kernels."""


class WorkerError(Exception):
    """A worker that ended or gave no answer in time; the message has the end of what it said."""


@dataclass(frozen=True)
class Options:
    """What all workers run under."""

    core: int | None
    threads: int
    cache: Path
    given: Mapping[str, Path]
    patience_s: float
    """A worker that takes longer than this for one answer is stopped."""


class Worker:
    """One process."""

    def __init__(self, python: str, variables: dict[str, str], script: Path, job: dict[str, Any], options: Options):
        folder = options.cache / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{script.stem}-{time.time_ns()}"
        path, self._log = folder / f"{name}.json", folder / f"{name}.log"
        path.write_text(json.dumps({**job, "threads": options.threads}), encoding="utf-8")
        self._patience_s = options.patience_s
        variables |= {
            "OMP_NUM_THREADS": str(options.threads),
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own script, under a pinned environment
                [python, str(script), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                preexec_fn=None if options.core is None else lambda: os.sched_setaffinity(0, {options.core}),
            )
        self._unread = b""
        self.facts = self._answer()

    def round(self, variant: str, at_most: int | None = None) -> dict[str, Any]:
        """The figures of one round; raises WorkerError."""
        assert self._process.stdin is not None
        line = json.dumps({"variant": variant, "at_most": at_most}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._last_words()) from error
        return self._answer()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._patience_s
        while b"\n" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                self.stop()
                raise WorkerError(f"no answer in {self._patience_s:.0f} s")
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                self.stop()
                raise WorkerError(self._last_words())
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended: {lines[-1] if lines else 'without a word'} ({self._log})"
