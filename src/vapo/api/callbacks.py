"""transformers' `TrainerCallback`s as an observer of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from vapo.json_text import flatten
from vapo.metrics import Phase
from vapo.reports.live import SilentView
from vapo.trainer.observer import Observer


class CallbackObserver:
    """Forwards everything to `view`, another observer, and tells the callbacks of it; keeps `state.log_history`.

    Callbacks get `on_train_begin`, `on_step_begin`, `on_step_end`, `on_log` (with `logs`), `on_evaluate` (with
    `metrics`) and `on_train_end`, with `args`, `state`, `control` and `processing_class`. A step is a rollout step.
    Where one sets `control.should_training_stop`, `stop` is called: the run saves and ends after the step.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], arguments: Any, steps: int, **context: Any) -> None:
        self.view: Observer = SilentView()
        self._callbacks, self._arguments, self._context = callbacks, arguments, context
        self.state = TrainerState(max_steps=steps, is_local_process_zero=True, is_world_process_zero=True)
        self.control = TrainerControl()
        self.stop: Callable[[], None] = lambda: None

    def begin(self, step: int) -> None:
        """Training begins, or goes on from this rollout step."""
        self.control, self.stop = TrainerControl(), lambda: None
        self.state.global_step = step
        self.tell("on_train_begin")

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
            self.tell("on_step_begin")
            self.state.global_step = int(metrics["step"])
            self.tell("on_step_end")
        logs = {name: value for name, value in flatten(metrics) if isinstance(value, int | float)}
        self._log(logs)
        self.tell("on_log", logs=logs)

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`."""
        self.view.evaluation(result)
        metrics = evaluation_metrics(result)
        self._log(metrics)
        self.tell("on_evaluate", metrics=metrics)

    def note(self, message: str) -> None:
        """See `Observer`."""
        self.view.note(message)

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self.view.alarm(message)

    def _log(self, figures: Mapping[str, float]) -> None:
        self.state.log_history.append({**figures, "step": self.state.global_step})


def evaluation_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation with transformers' prefix: `eval_avg`, `eval_pass/4`, `eval_mean_length`, …"""
    return {
        f"eval_{name}": value
        for name, value in flatten({key: value for key, value in result.items() if key not in ("step", "k", "prompts")})
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
