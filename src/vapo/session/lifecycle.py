"""A run from its folder's first file to its last: begin, resume, finish.

Everything cheap is checked before any weights load.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vapo.algo.method import Gae
from vapo.durability import checkpoint
from vapo.durability.watch import Watchdog
from vapo.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    RankError,
    StoppedError,
    VerifierBrokenError,
    command,
    counted,
)
from vapo.json_text import flatten, json_text
from vapo.metrics import EventName, Phase
from vapo.models.matrix_rate import rate_words
from vapo.reports.curves import curves_png
from vapo.reports.diagnosis import VERIFIER_BROKEN
from vapo.reports.model_card import model_card
from vapo.reports.page import write_report
from vapo.reports.runfiles import read_jsonl
from vapo.rollout.vllm_environment import check_environment
from vapo.session.build import assemble, lambda_warning
from vapo.session.config import Config, resolve
from vapo.session.data_digests import data_digests, edited
from vapo.session.environment import environment
from vapo.session.foresight import foresee
from vapo.session.inputs import Inputs, close_task, read_inputs, report_notes, with_whole_paths
from vapo.session.layers import SOURCES, Layer, Origin, Source, file_layer, set_words
from vapo.session.old_files import todays
from vapo.session.planning.published import recipe_parameters
from vapo.session.precision import dtype_warning, with_dtype
from vapo.session.run_dirs import METHOD, check_folder, config_to_resume
from vapo.session.schema import TaskConfig
from vapo.session.sizing import Fit, fitted, rate_warnings
from vapo.tasks.catalog import check_task
from vapo.tasks.full_task import FullTask
from vapo.trackers.tracked import TrackingObserver
from vapo.trackers.tracker import check_trackers
from vapo.trainer import snapshot
from vapo.trainer.loop import run_loop
from vapo.trainer.network import Network
from vapo.trainer.observer import AlarmRecorder, Observer
from vapo.trainer.pretrain import pool_bytes
from vapo.trainer.profiling import StepProfiler
from vapo.trainer.record import EVENTS, RunFolder
from vapo.trainer.replay import remove_pool
from vapo.trainer.run import Run
from vapo.trainer.state import State
from vapo.types import Task


def check_disk(run: Run, path: Path, checkpoints: int, *, more: int = 0) -> None:
    """Raise ConfigError unless so many checkpoints, the finished models and `more` bytes have room where `path` is or
    will be."""
    needed = checkpoints * snapshot.size(run) + sum(network.published_bytes for network in run.learners) + more
    free = shutil.disk_usage(next(p for p in [path, *path.absolute().parents] if p.exists())).free
    if free < needed:
        raise ConfigError(
            f"The run needs about {needed / 1e9:.1f} GB for checkpoints and models, and {path} has {free / 1e9:.1f} GB "
            "free. Free space, lower checkpoint.keep, or choose another --run-dir."
        )


def with_task(config: Config, task: Task | None) -> Config:
    """The configuration under the name of the task that is really used."""
    if task is None:
        return config
    check_task(task)
    sections = config.sections.model_copy(update={"task": TaskConfig(name=task.name)})
    origins = {**config.origins, "task.name": Origin(Source.OPTION, "task object")}
    return replace(config, sections=sections, origins=origins)


def begin(config: Config, run_dir: Path, observer: Observer, task: Task | None = None) -> Run:
    """A new run, ready for `finish`; its folder begins once everything has loaded."""
    check_folder(run_dir)
    alarms = AlarmRecorder(observer)
    config, inputs = prepare(config, alarms, task)
    with _closing_task_on_error(inputs.task):
        observer = foresee(config, inputs, run_dir, alarms)
        run = assemble(config, inputs, observer, run_dir)
    with _closing_on_error(run, run_dir):
        check_disk(run, run_dir, run.saving.keep + 1, more=pool_bytes(run))
        run.folder = RunFolder(run_dir)
        check_folder(run_dir)  # loading takes a while; another process may have written into it
        run.folder.write_text("environment.json", json_text(environment_of(run, data_digests(config)), indent=1))
        _write_settings(run.folder, config)
        _record_alarms(run.folder, alarms)
    _begin_trackers(run, config)
    observer.note(f"run directory: {run_dir}")
    _report_rate(run)
    _report_engine(run)
    _report_critic(run)
    return run


def prepare(config: Config, observer: Observer, task: Task | None = None) -> tuple[Config, Inputs]:
    """The settings of a new run with its sizes filled in, and its inputs; close the inputs' task in the end.

    Raises ConfigError, DataError, ModelError before any weights load.
    """
    check_trackers(config.sections.trackers)
    config = with_whole_paths(config, task_too=task is None)
    inputs = read_inputs(config, task, on_progress=observer.progress)
    with _closing_task_on_error(inputs.task):
        limit = inputs.decoding.max_tokens
        config, about_dtype = with_dtype(config, inputs)
        of_recipe = recipe_parameters(config, offline=False)
        config, notes = fitted(config, Fit(inputs.task.name, inputs.parameters, limit, of_recipe))
        notes += [about_dtype] if about_dtype is not None else []
        wanted, there = config.sections.evaluation.prompts, len(inputs.heldout_prompts)
        chosen = config.origins.get("evaluation.prompts", Origin()).source is not Source.DEFAULT
        if chosen and wanted > there:
            notes.append(f"evaluation.prompts is {wanted}, and {inputs.task.name} holds out {there}: all are used")
        notes += check_environment(config.sections.rollout.engine)
        for note in [*config.notes, *notes]:
            observer.note(note)
        report_notes(inputs, observer)
        _warn_of_settings(config, inputs, observer)
    return config, inputs


def _warn_of_settings(config: Config, inputs: Inputs, observer: Observer) -> None:
    """Raise an alarm for a λ or a learning rate that does not suit the model and its responses, and for a precision
    that does not suit the machine."""
    for warning in [
        lambda_warning(config, inputs.decoding.max_tokens),
        *rate_warnings(config, inputs.parameters),
        dtype_warning(config, inputs),
    ]:
        if warning is not None:
            observer.alarm(warning)


def resume(
    run_dir: Path,
    observer: Observer,
    task: Task | None = None,
    *,
    changes: Sequence[Layer] = (),
    allow_change: bool = False,
) -> Run:
    """A run as it stood at its newest checkpoint (or at its start, if it has none), ready for `finish`.

    `changes` are laid over its settings. Raises ConfigError if the folder is no run, a run on another task than the one
    given, if settings that alter results have changed without `allow_change`, or if the run has ended and kept its
    weights only.
    """
    config = config_to_resume(run_dir, task, changes)
    run = _restored(config, run_dir, observer, task, changes, allow_change)
    _report_engine(run)
    _report_critic(run)
    return run


def _restored(
    config: Config,
    run_dir: Path,
    observer: Observer,
    task: Task | None,
    changes: Sequence[Layer],
    allow_change: bool,
) -> Run:
    """A run as its newest healthy checkpoint has it, or as it began if there is none."""
    folder = RunFolder(run_dir)
    alarms = AlarmRecorder(observer)
    try:
        saved = checkpoint.newest(folder.checkpoints, alarms.alarm)
        damaged = sorted(path.name for path in folder.checkpoints.glob("*.corrupt"))
        if saved is None and damaged:
            raise CheckpointError(
                f"No checkpoint of {run_dir} is healthy ({', '.join(damaged)}). Start a new run elsewhere, or remove "
                f"{folder.checkpoints} to start this one over, logs included."
            )
        then = effective_of(saved) if saved else None
        changed = snapshot.changes(config.effective(), then)
        data = data_digests(config)
        changed += edited(_data_of(run_dir), data) if saved else []
        if changed and not allow_change:
            raise ConfigError(
                f"This is not as it was at {saved}, and it alters results: {'; '.join(changed)}. "
                f"Set it back, or mean it: {command('resume', run_dir, *set_words(changes), '--allow-change')}"
            )
        if saved is not None and then is not None:
            _refuse_late_pretraining(config, changes, saved, then)
        inputs = read_inputs(config, task, saved, on_progress=observer.progress)
        with _closing_task_on_error(inputs.task):
            report_notes(inputs, alarms)
            _warn_of_settings(config, inputs, alarms)
            observer = foresee(config, inputs, run_dir, alarms)
            run = assemble(config, inputs, observer, run_dir)
    except BaseException:
        folder.close()
        raise
    run.folder = folder
    with _closing_on_error(run, run_dir):
        check_disk(run, run_dir, 1)
        snapshot.restore(run, saved)
        if run.state.step > run.settings.steps:
            raise ConfigError(
                f"{run_dir} has done {counted(run.state.step, 'step')}, so trainer.steps={run.settings.steps} is "
                f"behind it. Set trainer.steps to {run.state.step} or more."
            )
        # a rollback keeps them: they show what raised the alarm
        run.folder.cut_rollouts(run.state.step, run.state.pretrain_step)
        _write_settings(folder, config)
        _record_resume(folder, run, data, changed)
        _record_alarms(folder, alarms)
        if changed:
            remove_pool(run_dir)  # its targets are those of the old settings: the responses are sampled again
            snapshot.save(run)  # under the new settings, so that the next resume needs no --allow-change
            observer.alarm(f"Goes on under other settings: {'; '.join(changed)}")
    _begin_trackers(run, config)
    if run.state.phase == Phase.DONE:
        observer.note(f"this run has ended; to make it longer: {command('resume', run_dir)} --set trainer.steps=N")
    else:
        observer.note(f"resumed from {saved.name}" if saved else "no checkpoint found: starting over")
    return run


def _refuse_late_pretraining(config: Config, changes: Sequence[Layer], saved: Path, then: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of value pretraining that are changed after its end."""
    if State.from_json(checkpoint.read_json(saved, "state.json")).phase == Phase.PRETRAIN:
        return
    asked = {key for layer in changes for key, _ in flatten(layer.values) if key.startswith("trainer.pretraining_")}
    before, after = dict(flatten(then)), dict(flatten(config.effective()))
    if late := sorted(key for key in asked if after.get(key) != before.get(key)):
        raise ConfigError(
            f"{' and '.join(late)} would have no effect: value pretraining was over at {saved}. Leave out the change, "
            "or start a new run with it."
        )


def effective_of(saved: Path) -> dict[str, Any] | None:
    """What ran when a checkpoint was saved, under today's names; None for the first format, which did not keep it."""
    if not (saved / snapshot.SETTINGS).exists():
        return None
    content = checkpoint.read_json(saved, snapshot.SETTINGS)
    old = "optimization" in content.get("algorithm", {}) and "actor_lr" in content["algorithm"]["optimization"]
    if old:
        every = {"trainer": {"scoring": "all"}}  # nothing else was known
        return resolve([file_layer(saved.name, content), file_layer(saved.name, every)]).effective()
    return todays(content)


def _begin_trackers(run: Run, config: Config) -> None:
    """Tell the trackers that the settings name of everything that the observer is told of."""
    if names := config.sections.trackers:
        observer = TrackingObserver(run.observer, names, run.folder.path, run.config)
        observer.begin(run.state.step)
        run.on_end.append(lambda failed: observer.close(failed=failed))
        run.observer = observer


def _write_settings(folder: RunFolder, config: Config) -> None:
    folder.write_text(SOURCES, json_text(config.sources(), indent=1))
    folder.write_text(METHOD, config.method_yaml())
    folder.write_text("config.yaml", config.to_yaml())  # last: from here on it is a run


def profiled(run: Run, steps: int, show: Callable[[str], None]) -> Run:
    """The run, so that it measures where the time of `steps` steps goes (0: of none); `show` gets the table."""
    if steps:
        run.profiler = StepProfiler(run, steps, show)
    return run


def environment_of(run: Run, data: Mapping[str, str]) -> dict[str, Any]:
    """Versions, commit and machine, the digests of the data, and the rate that `mfu/*` are shares of."""
    rate = {"dtype": run.config["model"]["dtype"], "flops_per_s": run.matrix_rate}
    return {**environment(), "data": data, "matrix_rate": rate}


def _report_rate(run: Run) -> None:
    where = "this GPU" if torch.cuda.is_available() else f"this machine ({counted(torch.get_num_threads(), 'thread')})"
    run.observer.note(
        f"{where} multiplies {run.config['model']['dtype']} matrices at {rate_words(run.matrix_rate)}: mfu/* are "
        "shares of it"
    )


def _data_of(run_dir: Path) -> dict[str, str]:
    """The digests of the run's data at its start or its last resume; empty where an earlier version began it."""
    path = run_dir / "environment.json"
    first = json.loads(path.read_text()) if path.exists() else {}
    return [first, *first.get("resumed", [])][-1].get("data", {})


def _record_resume(folder: RunFolder, run: Run, data: Mapping[str, str], changed: Sequence[str]) -> None:
    """A resume goes into events.jsonl, and what it ran on into environment.json."""
    now = environment_of(run, data)
    state = run.state
    folder.event(
        EventName.RESUMED,
        lasting=True,
        step=state.step,
        phase=state.phase,
        commit=now["commit"],
        changes=list(changed),
    )
    path = folder.path / "environment.json"
    first = json.loads(path.read_text()) if path.exists() else now
    resumed = [*first.pop("resumed", []), {"step": run.state.step, **now}]
    folder.write_text("environment.json", json_text({**first, "resumed": resumed}, indent=1))


def _record_alarms(folder: RunFolder, alarms: AlarmRecorder) -> None:
    """Alarms from before the run's first step go into events.jsonl; one that an earlier start wrote is left out."""
    written = {
        event.get("message") for event in read_jsonl(folder.path / EVENTS) if event.get("event") == EventName.ALARM
    }
    for message in dict.fromkeys(alarms.messages):
        if message not in written:
            folder.event(EventName.ALARM, lasting=True, message=message)


def _report_engine(run: Run) -> None:
    if not run.engine.exact:
        run.observer.note(
            "the rollout engine is not exact: a run that is resumed or repeated samples from the same distribution, "
            "and gets other samples"
        )


def _report_critic(run: Run) -> None:
    if run.critic is not None:
        run.folder.event(EventName.CRITIC_LOADED, origin=run.critic.origin)
        run.observer.note(f"critic: {run.critic.origin}")
        credit = run.algorithm.credit
        if isinstance(credit, Gae) and credit.baseline != "none" and not run.algorithm.pretrains:
            run.observer.note(
                f"the critic needs no value pretraining: beside the group's mean (algorithm.credit.baseline="
                f"{credit.baseline}) one that knows nothing does no harm"
            )


@contextmanager
def _closing_task_on_error(task: FullTask) -> Iterator[None]:
    """End the task's processes if the run cannot begin."""
    try:
        yield
    except BaseException:
        close_task(task)
        raise


@contextmanager
def _closing_on_error(run: Run, run_dir: Path) -> Iterator[None]:
    """Close what the run holds if it cannot begin; a disk that refuses becomes a ConfigError."""
    try:
        yield
    except BaseException as error:
        with ExitStack() as last:
            last.callback(close_task, run.task)
            if hasattr(run, "folder"):
                last.callback(run.folder.close)
            _end_processes(run)
        if isinstance(error, OSError) and checkpoint.refused(error):
            raise ConfigError(f"Cannot write to {run_dir}: {error}. Free space, or mend its permissions.") from error
        raise


def _end_processes(run: Run) -> None:
    """End the threads that sample, then the engine that they sample from, then all other processes; each, also where
    the end of one before raises."""
    with ExitStack() as last:
        for close in reversed([run.source.close, run.pretraining_source.close, run.engine.close, *run.closing]):
            last.callback(close)


def finish(run: Run, *, report: bool = True, close: bool = True) -> Run:
    """Train to the end; write policy/ and critic/ and, with `report`, curves.png and report.html.

    Of a network with adapters, policy_adapter/ or critic_adapter/ lies beside the merged model. The task is closed in
    the end, too, unless `close` is false.
    """
    guards, path, failed = run.guards, run.folder.path, True
    try:
        if guards.watchdog:
            run.watch = Watchdog(path, factor=guards.stuck_factor, floor_s=guards.stuck_floor_s)
        run_loop(run)
        run.watch.beat("writing the models and the report")
        for network in run.learners:
            _publish(partial(_publish_with_card, run, network), path / network.name)
            _publish(network.publish_adapters, path / f"{network.name}_adapter")
        if report:
            curves_png(path, path / "curves.png")
            write_report(path)
        if run.saving.final == "weights":
            _drop_checkpoints(run)
        failed = False
    except DivergedError as error:
        run.folder.event(EventName.DIVERGED, message=str(error))  # a comparison counts it
        raise
    except VerifierBrokenError as error:
        run.folder.event(EventName.ALARM, message=str(error), name=VERIFIER_BROKEN)
        raise
    except (OSError, SafetensorError) as error:
        if not checkpoint.refused(error):
            raise
        raise StoppedError(
            f"Cannot write to {path}: {error}. Free space or mend its permissions, then: {command('resume', path)}"
        ) from error
    finally:
        with ExitStack() as last:  # each is called, from the last line to the first, also where one raises
            if close:
                last.callback(close_task, run.task)
            last.callback(run.folder.close)
            for end in reversed(run.on_end):
                last.callback(end, failed)
            last.callback(run.watch.close)
            last.callback(run.profiler.close)
            last.callback(_end_processes, run)
    return run


def finish_through(
    run: Run,
    again: Callable[[], Run],
    on_new: Callable[[Run], None] = lambda _: None,
    *,
    task: Task | None = None,
) -> Run:
    """`finish`; where training ranks die or hang, `again` makes the run anew from its last checkpoint, scale.restarts
    times at most. `on_new` is told of every run that takes the place of the one before.

    `task` is the object that all of these runs share, if there is one: it is closed after the last of them.
    """
    left = run.config["scale"]["restarts"]
    with ExitStack() as last:
        if task is not None:
            last.callback(close_task, task)
        while True:
            try:
                return finish(run, close=task is None)
            except RankError as error:
                if not left or error.would_repeat or run.stop_requested:
                    raise
                left -= 1
                run.observer.alarm(
                    f"{error} The run goes on from its last checkpoint; it may do so {counted(left, 'more time')}."
                )
            run = again()
            on_new(run)


def _publish_with_card(run: Run, network: Network, folder: Path) -> None:
    network.publish(folder)
    (folder / "README.md").write_text(model_card(run, network.name, folder))


def _publish(write: Callable[[Path], bool | None], folder: Path) -> None:
    """Let `write` fill a folder and put it in place, whole or not at all; if it returns False, there is none."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    written = write(temporary)
    checkpoint.remove(folder)
    if written is False:
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.rename(folder)


def _drop_checkpoints(run: Run) -> None:
    """Delete all checkpoints of a run that has ended, once its models are on the disk.

    They go in one rename, so after a kill either all are there, and a resume ends the run again, or none.
    """
    path = run.folder.path
    for network in run.learners:
        checkpoint.sync(path / network.name)
        checkpoint.sync(path / f"{network.name}_adapter")
    checkpoint.sync(path, deep=False)
    checkpoint.remove(run.folder.checkpoints)
    run.observer.note("checkpoints deleted (checkpoint.final=weights): this run cannot be made longer")
