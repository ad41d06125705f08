"""The state that the live view shows: steps done, time left, the last metrics.

The calls from the trainer update it; the panel and the plain lines read it.
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
SPEED, SAMPLER_SPEED = "throughput/tokens_per_s", "throughput/rollout_tokens_per_s"
_BARS = "▁▂▃▄▅▆▇█"
_PHASES = {phase.value: phase for phase in Phase}


class Progress:
    """The state of one run, updated by its observer. `clock` returns seconds from a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.name = ""
        self.done = 0
        self.total = 0
        self.metrics: Record = {}
        self.activity: tuple[str, int, int | None] | None = None
        """What runs within the step, how much of it is done, and the total (None if unknown)."""
        self.first_evaluation: Record | None = None
        self.last_evaluation: Record | None = None
        self.num_alarms = 0
        self.last_alarm = ""
        self.accuracy: list[float] = []
        self.explained_variance: list[float] = []
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._last_step_at: float | None = None
        self._warms_up = True

    def enter(self, name: str, done: int, total: int) -> None:
        """Record that a phase begins, or continues at `done` of `total` steps. Step times start anew in each phase."""
        if name != self.name:
            self._step_seconds.clear()
            self.explained_variance.clear()
            self.accuracy.clear()
            self.metrics = {}
            self._last_step_at = self._clock()
            self._warms_up = True
        self.name, self.done, self.total = name, done, total
        self.activity = None

    def step(self, metrics: Record) -> None:
        """Record the metrics of a step that ended."""
        now = self._clock()
        seconds = now - self._last_step_at if self._last_step_at is not None else math.nan
        step_time = number(metrics.get("step_time"))
        if self._warms_up and self._step_seconds:
            # the first step of a phase compiles, fills caches and asks for memory: it says little of the others
            self._step_seconds.clear()
            self._warms_up = False
        # the clock also measures evaluations and saves; step_time is the fallback if the clock has no earlier step
        self._step_seconds.append(step_time if math.isnan(seconds) or seconds <= 0 else seconds)
        self._last_step_at = now
        self.metrics = metrics
        step = number(metrics.get("step"))
        self.done = self.done + 1 if math.isnan(step) else int(step)
        self.activity = None
        self._append(self.accuracy, "accuracy")
        self._append(self.explained_variance, self._explained_key)

    def evaluate(self, result: Record) -> None:
        """Record the result of an evaluation."""
        self.first_evaluation = self.first_evaluation or result
        self.last_evaluation = result
        self.activity = None
        if not self._step_seconds:  # before the first step of a resumed run; not a part of it
            self._last_step_at = self._clock()

    def alarm(self, message: str) -> None:
        """Record an alarm."""
        self.num_alarms += 1
        self.last_alarm = one_line(message)

    @property
    def title(self) -> str:
        """The phase's name for people."""
        return _PHASES[self.name].words if self.name in _PHASES else one_line(self.name)

    @property
    def elapsed(self) -> float:
        """Seconds since the view started."""
        return self._clock() - self._started

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds over the phase's ten most recent steps, without its first one unless it is alone; nan before
        that ends."""
        seconds = [s for s in self._step_seconds if math.isfinite(s)]
        return fmean(seconds) if seconds else math.nan

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the phase ends, from the recent steps; nan if unknown or if the phase is done."""
        if self.done >= self.total:
            return math.nan
        since = self._clock() - self._last_step_at if self._last_step_at is not None else 0.0
        each = self._step_seconds[-1] if self._gets_slower else self.seconds_per_step
        return math.nan if math.isnan(each) else max(0.0, (self.total - self.done) * each - min(since, each))

    @property
    def _gets_slower(self) -> bool:
        """Whether each recent step took longer than the one before, as in value pretraining while its replay fills."""
        return len(self._step_seconds) > 2 and all(a < b for a, b in pairwise(self._step_seconds))

    @property
    def value_figures(self) -> tuple[float, float]:
        """Explained variance and value loss of the current phase; nan without a critic."""
        return number(self.metrics.get(self._explained_key)), number(self.metrics.get(self._value_loss_key))

    def figures(self) -> list[tuple[str, str]]:
        """(label, formatted value) of the last step's metrics, without the missing ones, for a plain line."""
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
            SAMPLER_SPEED: short_count(number(m.get(SAMPLER_SPEED))),
        }
        return [(metric_called(key).short, text) for key, text in texts.items() if text != NOTHING]

    @property
    def tokens_per_second(self) -> float:
        """Response tokens of the last step, per second of all of it."""
        return number(self.metrics.get(SPEED))

    def activity_text(self) -> str:
        """What runs within the step, with its progress; empty between steps."""
        if self.activity is None:
            return ""
        what, done, total = self.activity
        return f"{what} {done}" if total is None else f"{what} {done}/{total}"

    def step_line(self) -> str:
        """One plain line about the last step."""
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

    def _append(self, series: list[float], key: str) -> None:
        value = number(self.metrics.get(key))
        if math.isfinite(value):
            series.append(value)


def evaluation_line(result: Record) -> str:
    """One plain line about an evaluation."""
    when = one_line(result.get("label", "evaluation"))
    parts = [f"avg@{result.get('k', 'k')} {figure(number(result.get('avg')))}"]
    if bounds := interval(number(result.get("low")), number(result.get("high"))):
        parts[0] += f" {bounds}"
    parts += [f"pass@{k} {figure(number(v))}" for k, v in (result.get("pass") or {}).items() if k != "1"]
    if not math.isnan(number(result.get("maj"))):
        parts.append(f"maj@{result.get('k', 'k')} {figure(number(result.get('maj')))}")
    return f"evaluation {when}, step {result.get('step', '?')}: {'  '.join(parts)}"


def sparkline(values: list[float], width: int, low: float = 0.0, high: float = 1.0) -> str:
    """The series as up to `width` bars, each the mean of an equal part; the scale widens to hold all means.

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
