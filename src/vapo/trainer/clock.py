"""The time of one step by its parts, and what the networks did in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from vapo.trainer.spans import Part, Spans

GB = 1e9


class Clock:
    """Measures the seconds of a step's parts; `on_start` is called with the name of each part as it begins.

    Each part is a part of the run's `spans` as well.
    """

    def __init__(self, on_start: Callable[[str], None] = lambda _: None, spans: Spans | None = None) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """Of each part, with the parts inside it."""
        self._on_start = on_start
        self._spans = spans or Spans()
        self._mark = self._spans.mark()

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Add the block's seconds to `what`."""
        self._on_start(what)
        start = time.perf_counter()
        try:
            with self._spans.time(what):
                yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for what, amount in seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + amount

    def figures(self, *, sampled_tokens: int, learned_tokens: int, matrix_rate: float) -> dict[str, float]:
        """`time/*`, `step_time` in seconds; `throughput/*` in tokens per second; `mfu/*`; `memory/*` on a GPU."""
        figures = {f"time/{what}": seconds for what, seconds in self.seconds.items()}
        figures["step_time"] = whole = time.perf_counter() - self.started
        figures["throughput/tokens_per_s"] = sampled_tokens / whole
        if seconds := self.seconds.get("rollout"):
            figures["throughput/rollout_tokens_per_s"] = sampled_tokens / seconds
        if seconds := self.seconds.get("update"):
            figures["throughput/update_tokens_per_s"] = learned_tokens / seconds
        figures |= network_figures(self._spans.since(self._mark), matrix_rate)
        figures |= memory_figures(self._spans.peaks)
        self._spans.clear_peaks()
        return figures


def network_figures(parts: Mapping[str, Part], matrix_rate: float) -> dict[str, float]:
    """Tokens per second of policy and critic, scored and learned from, and their share of the machine's matrix rate."""
    figures: dict[str, float] = {}
    for name in ("policy", "critic"):
        works = {kind: parts.get(f"{kind}/{name}", Part()) for kind in ("score", "update")}
        for kind, work in works.items():
            if work.tokens:
                figures[f"throughput/{name}_{kind}_tokens_per_s"] = work.tokens / work.seconds
        both = works["score"] + works["update"]
        if both.tokens:
            figures[f"mfu/{name}"] = both.flops / both.seconds / matrix_rate
    return figures


def memory_figures(peaks: Mapping[str, int]) -> dict[str, float]:
    """The peak of each phase in GB, the work of its networks included."""
    found: dict[str, float] = {}
    for what, peak in peaks.items():
        phase = what.partition("/")[0]
        if phase in ("rollout", "score", "update"):
            name = f"memory/{phase}_gb"
            found[name] = max(found.get(name, 0.0), peak / GB)
    return found
