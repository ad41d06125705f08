"""transformers' `TrainerCallback`s as an observer of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from vapo.api.trainer_config import in_arguments
from vapo.errors import ConfigError
from vapo.json_text import flatten
from vapo.metrics import Phase
from vapo.reports.live import SilentView
from vapo.reports.runfiles import read_jsonl
from vapo.trackers.tracker import PACKAGES
from vapo.trainer.observer import Observer


class CallbackObserver:
    """Forwards everything to `view`, another observer, and tells the callbacks of it; keeps `state.log_history`.

    Callbacks get `on_train_begin`, for each step `on_step_begin`, `on_step_end`, `on_log` (with `logs`), where they are
    due `on_save` and `on_evaluate` (with `metrics`), and at last `on_train_end`; with `args`, `state`, `control`,
    `processing_class` and `model`, the policy that learns (None where it is spread over processes). That is the order
    of transformers, but for `on_save`: a checkpoint is written before an evaluation of the same step. A step is a
    rollout step. `state.best_metric` is the best value of args.metric_for_best_model so far. Notes and alarms name
    arguments, not settings. Where a callback sets `control.should_training_stop`, `stop` is called: the run saves and
    ends after the step.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], arguments: Any, steps: int, **context: Any) -> None:
        self.view: Observer = SilentView()
        self._callbacks, self._arguments, self._context = callbacks, arguments, context
        self.state = TrainerState(max_steps=steps, is_local_process_zero=True, is_world_process_zero=True)
        self.control = TrainerControl()
        self.stop: Callable[[], None] = lambda: None
        self._begun = False

    def begin(self, step: int, model: Any, stop: Callable[[], None]) -> None:
        """Training begins, or goes on from this rollout step; `stop` ends it. A run that takes the place of one that
        lost processes is no new beginning for callbacks. What the run has logged before is read from its folder."""
        self.stop, self._context = stop, {**self._context, "model": model}
        self._recall(Path(self._arguments.output_dir))
        self.state.global_step = step
        if not self._begun:
            self._begun, self.control = True, TrainerControl()
            self.tell("on_train_begin")

    def end(self) -> None:
        """Training has ended, however it did; where it could not begin, nobody is told."""
        if self._begun:
            self._begun, self.stop = False, lambda: None
            self.tell("on_train_end")

    def step_begins(self, step: int) -> None:
        """A rollout step begins, after `step` of them."""
        self.state.global_step = step
        self.tell("on_step_begin")

    def tell(self, event: str, **more: Any) -> None:
        """Call one method of every callback."""
        for callback in self._callbacks:
            told = getattr(callback, event)(self._arguments, self.state, self.control, **self._context, **more)
            self.control = told if isinstance(told, TrainerControl) else self.control
        if self.control.should_training_stop:
            self.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`."""
        self.view.phase(name, done, total)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self.view.progress(what, done, total)

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`; steps of value pretraining are logged under step 0."""
        self.view.step(metrics)
        if metrics["phase"] == Phase.TRAIN:
            self.state.global_step = _step_of(metrics)
            self.tell("on_step_end")
        logs = _numbers(metrics)
        self._log(logs)
        self.tell("on_log", logs=logs)

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`."""
        self.view.evaluation(result)
        metrics = evaluation_metrics(result)
        self.evaluated(metrics)

    def evaluated(self, metrics: dict[str, float]) -> None:
        """The run or `evaluate()` has measured the policy."""
        self._log(metrics)
        self.tell("on_evaluate", metrics=metrics)
        self._keep_best(metrics)

    def _recall(self, run: Path) -> None:
        """Take history and best metric from the logs of a run that goes on; a new one has none yet.

        They replace what the state held, also of evaluations that the user asked for: those are in no log.
        """
        steps = [(_step_of(line), _numbers(line)) for line in read_jsonl(run / "metrics.jsonl")]
        judged = [(line["step"], evaluation_metrics(line)) for line in read_jsonl(run / "evaluations.jsonl")]
        # an evaluation ends its step; that of step 0 comes first
        lines = [line for line in judged if line[0] == 0] + steps + [line for line in judged if line[0] > 0]
        if lines:
            self.state.log_history, self.state.best_metric = [], None
        for step, figures in sorted(lines, key=lambda line: line[0]):
            self.state.global_step = step
            self._log(figures)
            self._keep_best(figures)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        name = self._arguments.metric_for_best_model
        value = None if name is None else metrics.get(f"eval_{name.removeprefix('eval_')}")
        if value is not None:
            pick = max if self._arguments.greater_is_better else min
            self.state.best_metric = value if self.state.best_metric is None else pick(value, self.state.best_metric)

    def note(self, message: str) -> None:
        """See `Observer`."""
        self.view.note(in_arguments(message))

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self.view.alarm(in_arguments(message))

    def _log(self, figures: Mapping[str, float]) -> None:
        self.state.log_history.append({**figures, "step": self.state.global_step})


def usable_callback(given: TrainerCallback | type[TrainerCallback]) -> TrainerCallback:
    """The callback, made of its class if that is given, as in transformers.

    Raises ConfigError for one that needs the arguments or the control of transformers' own trainer.
    """
    kind = given if isinstance(given, type) else type(given)
    name = kind.__name__
    if not issubclass(kind, TrainerCallback):
        raise ConfigError(f"callbacks holds a {name}; give objects or classes of transformers.TrainerCallback.")
    if issubclass(kind, DefaultFlowCallback):
        raise ConfigError(
            f"callbacks holds {name}, which decides when transformers saves and evaluates. Leave it out: save_steps, "
            "eval_steps and max_steps decide here."
        )
    for tracker, other in INTEGRATION_TO_CALLBACK.items():
        if issubclass(kind, other):
            own = "Log from on_log of a callback of your own."
            instead = f"Set report_to='{tracker}' in place of it." if tracker in PACKAGES else own
            raise ConfigError(f"callbacks holds {name}, which reads arguments of transformers' own trainer. {instead}")
    try:
        return given() if isinstance(given, type) else given
    except TypeError as error:
        raise ConfigError(f"callbacks holds the class {name}, and {error}. Give an object of it.") from error


def _step_of(metrics: Mapping[str, Any]) -> int:
    """The rollout step that a line of metrics is logged under; value pretraining comes before the first."""
    return int(metrics["step"]) if metrics["phase"] == Phase.TRAIN else 0


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics, by dotted key."""
    return {name: value for name, value in flatten(metrics) if isinstance(value, int | float)}


def evaluation_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation with transformers' prefix: `eval_avg`, `eval_pass/4`, `eval_mean_length`, …"""
    return {
        f"eval_{name}": value
        for name, value in flatten({key: value for key, value in result.items() if key not in ("step", "k", "prompts")})
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
