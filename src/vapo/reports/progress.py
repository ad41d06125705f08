"""The state that the live view shows: steps done, time left, the last metrics.

The trainer's calls fill it; the panel and the plain lines read it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean

from vapo.metrics import Phase, metric_called
from vapo.reports.formatting import NOTHING, duration, figure, interval, one_line, percent, short_count
from vapo.reports.runfiles import Record, number

_RECENT_STEPS = 10
SPEED = "throughput/rollout_tokens_per_s"
_BARS = "▁▂▃▄▅▆▇█"
_PHASES = {phase.value: phase for phase in Phase}


class Progress:
    """The state of one run, from the calls of its observer. `clock` counts seconds and only moves forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.name = ""
        self.done = 0
        self.total = 0
        self.metrics: Record = {}
        self.doing: tuple[str, int, int | None] | None = None
        self.first_evaluation: Record | None = None
        self.last_evaluation: Record | None = None
        self.num_alarms = 0
        self.last_alarm = ""
        self.accuracy: list[float] = []
        self.explained_variance: list[float] = []
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._last_step_at: float | None = None

    def enter(self, name: str, done: int, total: int) -> None:
        """A phase begins, or goes on at `done` of `total` steps; other phases' step times do not count."""
        if name != self.name:
            self._step_seconds.clear()
            self.explained_variance.clear()
            self.accuracy.clear()
            self.metrics = {}
            self._last_step_at = self._clock()
        self.name, self.done, self.total = name, done, total
        self.doing = None

    def step(self, metrics: Record) -> None:
        """A step ended."""
        now = self._clock()
        seconds = now - self._last_step_at if self._last_step_at is not None else math.nan
        own = number(metrics.get("step_time"))
        # The clock sees evaluations and saves too; a step's own time serves where the clock cannot.
        self._step_seconds.append(own if math.isnan(seconds) or seconds <= 0 else seconds)
        self._last_step_at = now
        self.metrics = metrics
        step = number(metrics.get("step"))
        self.done = self.done + 1 if math.isnan(step) else int(step)
        self.doing = None
        self._remember(self.accuracy, "accuracy")
        self._remember(self.explained_variance, self._explained_key)

    def evaluate(self, result: Record) -> None:
        """An evaluation ended."""
        self.first_evaluation = self.first_evaluation or result
        self.last_evaluation = result
        self.doing = None

    def alarm(self, message: str) -> None:
        """An alarm was raised."""
        self.num_alarms += 1
        self.last_alarm = one_line(message)

    @property
    def title(self) -> str:
        """The phase in words."""
        return _PHASES[self.name].words if self.name in _PHASES else one_line(self.name)

    @property
    def elapsed(self) -> float:
        """Seconds since the view began."""
        return self._clock() - self._started

    @property
    def seconds_per_step(self) -> float:
        """The mean over the phase's most recent steps; nan before the first."""
        seconds = [s for s in self._step_seconds if math.isfinite(s)]
        return fmean(seconds) if seconds else math.nan

    @property
    def seconds_left(self) -> float:
        """Of this phase, if it goes on as it went lately; nan where unknown, and once it is done."""
        if self.done >= self.total:
            return math.nan
        since = self._clock() - self._last_step_at if self._last_step_at is not None else 0.0
        each = self.seconds_per_step
        return max(0.0, (self.total - self.done) * each - min(since, each)) if each == each else math.nan

    @property
    def value_figures(self) -> tuple[float, float]:
        """Explained variance and value loss of the phase at hand; nan without a critic."""
        return number(self.metrics.get(self._explained_key)), number(self.metrics.get(self._value_loss_key))

    def figures(self) -> list[tuple[str, str]]:
        """The last step's figures in words, those it has: what a plain line says."""
        m = self.metrics
        texts = {
            "reward": figure(number(m.get("reward"))),
            "accuracy": figure(number(m.get("accuracy"))),
            "completions/mean_length": figure(number(m.get("completions/mean_length"))),
            "completions/clipped_ratio": percent(number(m.get("completions/clipped_ratio"))),
            "entropy": figure(number(m.get("entropy"))),
            self._explained_key: figure(self.value_figures[0]),
            self._value_loss_key: figure(self.value_figures[1]),
            SPEED: short_count(self.tokens_per_second),
        }
        return [(metric_called(key).short, text) for key, text in texts.items() if text != NOTHING]

    @property
    def tokens_per_second(self) -> float:
        """Sampling speed of the last step."""
        return number(self.metrics.get(SPEED))

    def doing_text(self) -> str:
        """What is being done within the step."""
        if self.doing is None:
            return ""
        what, done, total = self.doing
        return f"{what} {done}" if total is None else f"{what} {done}/{total}"

    def step_line(self) -> str:
        """The last step in one plain line."""
        figures = "  ".join(f"{label} {text}" for label, text in self.figures())
        timing = f"{duration(self.seconds_per_step)}/step"
        if not math.isnan(self.seconds_left):
            timing += f"  left {duration(self.seconds_left)}"
        return f"{self.title} {self.done}/{self.total}  {figures}  {timing}"

    @property
    def _explained_key(self) -> str:
        return "pretrain/explained_variance" if self.name == Phase.PRETRAIN else "value/explained_variance"

    @property
    def _value_loss_key(self) -> str:
        return "pretrain/value_loss" if self.name == Phase.PRETRAIN else "value/loss"

    def _remember(self, series: list[float], key: str) -> None:
        value = number(self.metrics.get(key))
        if math.isfinite(value):
            series.append(value)


def evaluation_line(result: Record) -> str:
    """An evaluation in one plain line."""
    when = one_line(result.get("label", "evaluation"))
    parts = [f"avg@{result.get('k', 'k')} {figure(number(result.get('avg')))}"]
    if bounds := interval(number(result.get("low")), number(result.get("high"))):
        parts[0] += f" {bounds}"
    parts += [f"pass@{k} {figure(number(v))}" for k, v in (result.get("pass") or {}).items() if k != "1"]
    if not math.isnan(number(result.get("maj"))):
        parts.append(f"maj@{result.get('k', 'k')} {figure(number(result.get('maj')))}")
    return f"evaluation {when}, step {result.get('step', '?')}: {'  '.join(parts)}"


def sparkline(values: list[float], width: int, low: float = 0.0, high: float = 1.0) -> str:
    """The whole series in `width` small bars, each the mean of its share; the scale widens if it must.

    >>> sparkline([0.0, 0.5, 1.0], 8), sparkline([], 8)
    ('▁▅█', '')
    """
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(low, *means), max(high, *means)
    return "".join(_BARS[min(7, int(8 * (m - low) / (high - low)))] for m in means)
