"""The functions for people who would rather write Python than type commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vapo.api.trained_run import TrainedRun
from vapo.errors import UnguardedError
from vapo.evals.evaluate import EvaluationResult
from vapo.evals.judgement import CriticJudgement
from vapo.evals.statistics import RANKS
from vapo.reports.live import LiveView, SilentView
from vapo.session import lifecycle
from vapo.session.config import Config, resolve
from vapo.session.evaluated_run import evaluation_config, find_model
from vapo.session.evaluation import evaluate_model
from vapo.session.judge_options import FRACTIONS, JudgeOptions
from vapo.session.judged_critic import judge_models, judged_models
from vapo.session.judged_training import judge_training as judge_critics
from vapo.session.layers import DEFAULT_RECIPE, Layer, Source, file_layer, recipe_layer, source_layers
from vapo.session.run_dirs import default_run_dir
from vapo.session.signals import carry_out, end_in_one_line
from vapo.tasks.verifiers.functions import name_of, refuse_while_importing
from vapo.trainer.observer import Observer, Observers
from vapo.trainer.run import Run
from vapo.types import Task

P = ParamSpec("P")
R = TypeVar("R")


def _entry(call: Callable[P, R]) -> Callable[P, R]:
    """A function for scripts, which refuses to run where such a script is only imported for its verifier. A script
    without a guard ends with that one line."""

    @wraps(call)
    def entry(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_while_importing(f"vapo.{call.__name__}()")
        try:
            return call(*args, **kwargs)
        except UnguardedError as error:
            end_in_one_line(error)
            raise

    return entry


@contextmanager
def _told(observer: Observer | None, silent: bool) -> Iterator[Observer]:
    """Who is told of what happens: the view, unless `silent`, and the user's observer."""
    with SilentView() if silent else LiveView() as view:
        yield view if observer is None else Observers(view, [observer])


@_entry
def train(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    run_dir: str | Path | None = None,
    *,
    task: Task | None = None,
    observer: Observer | None = None,
    silent: bool = False,
) -> TrainedRun:
    """Train a policy and return its run: figures, samples, models, and its directory as a path (see `TrainedRun`).

    `config` is a recipe's name, a YAML file, a mapping of settings laid over the default recipe, a resolved
    `Config`, or None for the default recipe. `task` is a task of your own, in place of the configured one;
    then name its model in `config` (`{"model": {"policy": ...}}`). `{"task": {"verifier": function}}` takes a plain
    function at the top of a file; keep what the file runs under `if __name__ == "__main__":`, since the workers
    import it.

    Progress is shown as `vapo train` shows it, in a notebook under the cell, unless `silent`; `observer` is told, too.
    In the main thread Ctrl-C (a notebook's interrupt) and SIGTERM save the state and end with StoppedError: go on with
    `vapo.resume`. In other threads signals are left alone.

    Raises ConfigError, DataError, ModelError before weights load; DivergedError, VerifierBrokenError,
    StoppedError from the loop.
    """
    if not isinstance(config, Config):
        if isinstance(config, Mapping):
            task_options = {"task": _named(config["task"])} if isinstance(config.get("task"), Mapping) else {}
            layers = [recipe_layer(DEFAULT_RECIPE), file_layer("argument", {**config, **task_options})]
        else:
            layers = source_layers(None if config is None else str(config))
        config = resolve(layers)
    config = lifecycle.with_task(config, task)
    path = Path(run_dir) if run_dir is not None else default_run_dir(config)
    with _told(observer, silent) as told:
        return _carried_out(lambda: lifecycle.begin(config, path, told, task), path, told, task)


@_entry
def resume(
    run_dir: str | PathLike[str],
    *,
    task: Task | None = None,
    observer: Observer | None = None,
    silent: bool = False,
    changes: Mapping[str, Any] | None = None,
    allow_change: bool = False,
) -> TrainedRun:
    """Go on where a run stopped, exactly, and return it. Give `task` if the run had one of its own.

    `changes` are settings laid over the run's, like `{"trainer": {"steps": 200}}`; those that alter what a step does
    need `allow_change`. Progress and signals are as for `train`.
    """
    layers, path = [Layer(Source.OPTION, "resume", changes)] if changes else [], Path(run_dir)
    with _told(observer, silent) as told:
        again = partial(lifecycle.resume, path, told, task, changes=layers, allow_change=allow_change)
        return _carried_out(again, path, told, task)


def _carried_out(prepare: Callable[[], Run], path: Path, told: Observer, task: Task | None) -> TrainedRun:
    """The run that `prepare` makes in `path`, carried out to its end."""
    again = partial(lifecycle.resume, path, told, task)
    carry_out(prepare, lambda run, on_new: lifecycle.finish_through(run, again, on_new, task=task))
    return TrainedRun(path)


@_entry
def evaluate(
    model: str | PathLike[str],
    task: str | None = None,
    *,
    k: int = 32,
    temperature: float = 1.0,
    top_p: float = 0.7,
    prompts: int | None = None,
    seed: int = 0,
    max_response_tokens: int | None = None,
    task_options: Mapping[str, Any] | None = None,
    critic: str | PathLike[str] | None = None,
    ranks: Sequence[str] = RANKS,
    out: str | Path | None = None,
    observer: Observer | None = None,
    silent: bool = False,
) -> EvaluationResult:
    """avg@k, pass@k and maj@k of a run or a model (folder, hub id, .gguf, or "builtin") on held-out prompts.

    `task` is a task's name, or a .yaml file that sets it up. None takes the task of the run that `model` is, or
    belongs to, with its options and its response limit; a model of no run needs a `task` (ConfigError), but for
    "builtin", which is the maze's.
    The defaults are the paper's protocol: 32 samples a problem at temperature 1.0, top-p 0.7 (VAPO §5.1).
    `prompts` limits how many are used; None takes all. `task_options` are those of the task: {"eval_data": FILE}.
    With a `critic`, the result's `ranking` says what its choice among the samples adds. `out` is a folder that keeps
    the samples, and from which an evaluation that was stopped goes on.
    """
    found = find_model(str(model))
    settings: dict[str, Any] = {
        "seed": seed,
        "model": {"policy": found.folder, "critic": None if critic is None else str(critic)},
        "task": _named(task_options or {}),
        "evaluation": {"samples_per_prompt": k, "temperature": temperature, "top_p": top_p},
    }
    if max_response_tokens is not None:
        settings["rollout"] = {"max_response_tokens": max_response_tokens}
    config = evaluation_config(found, task, settings)
    with _told(observer, silent) as told:
        for note in found.notes:
            told.note(note)
        return evaluate_model(
            config,
            prompts,
            told,
            out=None if out is None else Path(out),
            ranks=ranks if critic is not None else (),
        )


@_entry
def judge_critic(
    run: str | PathLike[str] | None = None,
    *,
    policy: str | Path | None = None,
    critic: str | Path | None = None,
    task: str | None = None,
    prompts: int | None = None,
    responses: int | None = None,
    continuations: int = 8,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    silent: bool = False,
) -> CriticJudgement:
    """A critic against Monte-Carlo values, and the ceiling of any critic: what `vapo critic` prints.

    `run` is a run directory or one of its checkpoints; `policy` takes its place for a model of no run, and needs a
    `task` unless it is "builtin". `critic` is a critic's folder; None takes the run's own, and without one there is the
    ceiling alone. `responses` (None: 4, or as many as a residual critic's group had) to each of the first `prompts`
    held-out prompts (None: 64, or all) are cut at `fractions` of their length, and every prefix is continued
    `continuations` times. `settings` are laid over the run's. `out` keeps continuations, results, picture and page, and
    stopped work resumes from it; None is critic_judgement/ in the run.
    Raises ConfigError, ModelError, VerifierBrokenError.
    """
    options = JudgeOptions(prompts, responses, continuations, tuple(fractions))
    layers = [Layer(Source.OPTION, "settings", settings)] if settings else []
    models = judged_models(
        None if run is None else str(run),
        None if policy is None else str(policy),
        None if critic is None else str(critic),
        task,
        {"seed": seed},
        layers,
        None if out is None else Path(out),
    )
    with _told(observer, silent) as told:
        for note in models.policy.notes:
            told.note(note)
        return judge_models(models, options, told)[0]


@_entry
def judge_training(
    run: str | PathLike[str],
    every: int = 1,
    *,
    task: str | None = None,
    prompts: int | None = None,
    responses: int | None = None,
    continuations: int = 8,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    silent: bool = False,
) -> dict[str, Any]:
    """`judge_critic` at each kept checkpoint of a run whose step is a multiple of `every`, at its start and its end:
    what `vapo critic RUN --every N` prints, the content of training.json.

    A run keeps the checkpoints that checkpoint.every and checkpoint.keep say. Raises what `judge_critic` raises, and
    ConfigError where fewer than two are kept, and for `every` below 1.
    """
    with _told(observer, silent) as told:
        return judge_critics(
            Path(run),
            every,
            JudgeOptions(prompts, responses, continuations, tuple(fractions)),
            told,
            task=task,
            settings={"seed": seed},
            changes=[Layer(Source.OPTION, "settings", settings)] if settings else [],
            out=None if out is None else Path(out),
        )


def _named(task: Mapping[str, Any]) -> dict[str, Any]:
    """Task options with a verifier that is a function by its file and name: settings are plain data."""
    verifier = task.get("verifier")
    return {**task, "verifier": name_of(verifier)} if callable(verifier) else dict(task)
