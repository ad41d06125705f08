"""Where a run's time goes, by named parts, one inside another.

The seconds of an inner part are not its outer part's, so that all parts together are the time that was measured. Parts
are also spans of `torch.profiler` where one is running.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import record_function


@dataclass(frozen=True)
class Part:
    """What was done in a part so far."""

    seconds: float = 0.0
    """Without the parts inside it."""
    tokens: int = 0
    """Tokens of prompts and responses that a network computed, each pass once."""
    flops: float = 0.0
    """Multiplications and additions of a network (`vapo.models.model_flops`)."""

    def __add__(self, other: Part) -> Part:
        return Part(self.seconds + other.seconds, self.tokens + other.tokens, self.flops + other.flops)

    def __sub__(self, other: Part) -> Part:
        return Part(self.seconds - other.seconds, self.tokens - other.tokens, self.flops - other.flops)


class Trace:
    """Is told of every part as it begins and ends; this one does nothing."""

    def begin(self, what: str) -> None:
        """A part is about to begin."""

    def begun(self) -> None:
        """It has begun."""

    def tick(self) -> None:
        """It goes on; called from time to time."""

    def end(self) -> None:
        """It is about to end."""

    def ended(self) -> None:
        """It has ended, and the part around it goes on."""


class Spans:
    """The parts of one run's time since it began, as the thread sees them that made this object.

    Other threads' parts are left out: they run beside these, and would not add up with them. `memory` measures peaks,
    which the process has once: for one object at a time.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.parts: dict[str, Part] = {}
        self.peaks: dict[str, int] = {}
        """Most bytes of GPU memory that tensors took in each part, since `clear_peaks`; empty without a GPU."""
        self.trace = Trace()
        self.synchronize = False
        """Wait for the GPU at the borders of parts: its work is counted where it was asked for."""
        self._open: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()
        self._memory = memory and torch.cuda.is_available()

    @contextmanager
    def time(self, what: str, *, tokens: int = 0, flops: float = 0.0) -> Iterator[None]:
        """Count the block's seconds as `what`, and its work if it ends well."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._border()
        self._open.append(what)
        self.trace.begin(what)
        try:
            with record_function(what):
                self.trace.begun()
                try:
                    yield
                finally:
                    self.trace.end()
            self._add(what, Part(0.0, tokens, flops))
        finally:
            self._border()
            self._open.pop()
            self.trace.ended()

    def tick(self) -> None:
        """The open part goes on."""
        if threading.get_ident() == self._thread:
            self.trace.tick()

    def mark(self) -> dict[str, Part]:
        """All parts so far, for `since`."""
        return dict(self.parts)

    def since(self, mark: Mapping[str, Part]) -> dict[str, Part]:
        """What was added since `mark`, of parts that went on."""
        grown = {what: part - mark.get(what, Part()) for what, part in self.parts.items()}
        return {what: part for what, part in grown.items() if part.seconds > 0}

    def clear_peaks(self) -> None:
        """Begin to measure memory anew."""
        self.peaks.clear()

    def _border(self) -> None:
        """Account for what was done since the last border to the innermost part."""
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._memory:
            if self._open:
                peak = torch.cuda.max_memory_allocated()
                self.peaks[self._open[-1]] = max(peak, self.peaks.get(self._open[-1], 0))
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter()
        if self._open:
            self._add(self._open[-1], Part(now - self._since))
        self._since = now

    def _add(self, what: str, part: Part) -> None:
        self.parts[what] = self.parts.get(what, Part()) + part
