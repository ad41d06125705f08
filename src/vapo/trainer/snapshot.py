"""Save a run's whole state to a checkpoint folder, restore it, and decide when to save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vapo.durability import checkpoint
from vapo.errors import DivergedError, StoppedError, command
from vapo.json_text import flatten, json_text, null_for_nan
from vapo.metrics import EventName, Phase
from vapo.trainer.network import Network
from vapo.trainer.record import BYTES_PER_TOKEN, read_rollout, write_rollout
from vapo.trainer.run import Run
from vapo.trainer.state import State

FAILURES_TO_STOP = 3
"""Saves in a row that the disk refused before a run gives up."""
SETTINGS = "config.json"
WAITING = "waiting_rollout.jsonl"
"""The responses that were made ahead for the next step; only where there are some."""
FREE_TO_CHANGE = (
    "trainer.steps",
    "trainer.save_rollouts_every",
    "trainer.save_rollouts_in_full",
    "evaluation.every",
    "checkpoint.keep",
    "checkpoint.every",
    "checkpoint.final",
    "rollout.engine.slots",
    "rollout.engine.python",
    "rollout.engine.memory_share",
    "rollout.engine.cache_gb",
    "rollout.engine.sleep",
    "rollout.engine.restarts",
    "rollout.engine.start_limit_s",
    "rollout.engine.answer_limit_s",
    "scale.address",
    "scale.restarts",
    "scale.answer_limit_s",
    "scale.offload",
    "scale.rollout_workers",
    "scale.verifier_workers",
    "guards.watchdog",
    "trackers",
    "trainer.pretraining_ready",
    "guards.stuck_",
)
"""Settings that do not alter what a step does, by the beginnings of their names."""
LIMITS = "guards."
"""The beginning of the names of settings that only decide when to warn, while `guards.action` is and was to warn."""


def save(run: Run, *, at_the_end: bool = False) -> bool:
    """Write everything that changed since the start: weights, optimizers, reference, counters, log lengths.

    If the disk refuses, the checkpoints before stay, the run goes on and tries again after the next step; False.
    Raises StoppedError after several refusals in a row, or after one at the end.
    """
    state, waiting = run.state, run.source.waiting()

    def write(folder: Path) -> checkpoint.Entries:
        state.log_bytes = run.folder.log_bytes()
        (folder / "state.json").write_text(json_text(state.to_json(), indent=1))
        (folder / SETTINGS).write_text(json_text(run.config, indent=1))
        if waiting is not None:
            write_rollout(folder / WAITING, waiting)
        known: checkpoint.Entries = {}
        for network in run.networks:
            known |= network.save(folder)
        return known

    name = f"pretrain_{state.pretrain_step:06d}" if state.step == 0 else f"step_{state.step:06d}"
    run.watch.beat("saving")
    try:
        with run.spans.time("save"):
            checkpoint.save(run.folder.checkpoints, name, write, serial=state.serial, keep=run.saving.keep)
    except (OSError, SafetensorError) as error:
        if not checkpoint.refused(error):
            raise
        run.failed_saves += 1
        kept = checkpoint.names(run.folder.checkpoints)
        run.alarm(
            f"Could not save {name}: {error}. "
            + (f"{kept[0]} stays the newest checkpoint. " if kept else "There is no checkpoint yet. ")
            + f"Free space on the disk of {run.folder.path}."
        )
        if at_the_end or run.failed_saves >= FAILURES_TO_STOP:
            raise StoppedError(
                f"The disk refused {run.failed_saves} saves in a row ({error}). Free space, then go on from the newest "
                f"checkpoint with: {command('resume', run.folder.path)}"
            ) from error
        return False
    run.failed_saves = 0
    run.watch.beat("saving")
    for saved in run.on_save:
        saved()
    return True


def save_if_due(run: Run, step: int) -> None:
    """Save every `checkpoint.every` steps, after a save that failed, and before a stop. Raises StoppedError to stop."""
    due = run.saving.every > 0 and step % run.saving.every == 0
    if due or run.failed_saves or run.stop_requested:
        save(run)
    if run.stop_requested:
        raise_stopped(run)


def size(run: Run) -> int:
    """About the most bytes that one checkpoint takes."""
    tokens = run.source.max_age * run.algorithm.sampling.samples * run.decoding.max_tokens
    return BYTES_PER_TOKEN * tokens + sum(network.checkpoint_bytes for network in run.networks)


def raise_stopped(run: Run) -> None:
    """Raise StoppedError with the command that resumes the run; call it after a save."""
    saved = "saved" if not run.failed_saves else "but the last save failed, so it goes on from the one before"
    raise StoppedError(f"Stopped in order, {saved}. Go on with: {command('resume', run.folder.path)}")


def roll_back(run: Run, reason: str, alarms: Mapping[str, str] | None = None) -> None:
    """Back to the newest healthy checkpoint, from where other responses are drawn.

    The `alarms` that are the reason, messages by name, are logged again: the logs are cut to the checkpoint. Raises
    DivergedError if there is none.
    """
    count, failed_at = run.state.rollbacks + 1, run.state.step
    newest = checkpoint.newest(run.folder.checkpoints, run.alarm)
    if newest is None:
        raise DivergedError(
            f"The run cannot roll back after an alarm ({reason}): there is no checkpoint yet. Lower checkpoint.every."
        )
    restore(run, newest)
    run.source.restart(None)  # the rollout in the checkpoint led to the alarm
    run.state.rollbacks = count
    run.state.streaks.clear()  # else the bad steps in the checkpoint would raise the alarm again at once
    run.hand_over()
    for name, message in (alarms or {}).items():
        run.folder.event(EventName.ALARM, message=message, name=name)
    run.folder.event(EventName.ROLLED_BACK, reason=reason, from_step=failed_at, to_step=run.state.step, rollbacks=count)
    run.observer.alarm(f"Rolled back from step {failed_at} to {newest.name}; other responses are drawn from here.")
    save(run)


def restore(run: Run, folder: Path | None) -> None:
    """Put a checkpoint into the run and take back later log lines.

    None starts the run over: the logs are emptied.
    """
    if folder is None:
        run.folder.cut_logs({})
        run.source.restart(None)
        return
    run.state = State.from_json(checkpoint.read_json(folder, "state.json"))
    if run.state.phase == Phase.DONE and run.state.step < run.settings.steps:
        run.state.phase = Phase.TRAIN  # the run was given more steps
    elif run.state.phase != Phase.DONE and run.state.step == run.settings.steps:
        # nothing is saved between the last evaluation and the end; format 1 did not count evaluations
        run.state.evaluated = min(run.state.evaluated, run.state.step - 1)
    for network in run.learners:
        network.load(folder)
    if run.reference is not None:
        _restore_reference(run, run.reference, folder)
    run.source.restart(read_rollout(folder / WAITING) if (folder / WAITING).exists() else None)
    run.folder.cut_logs(run.state.log_bytes)


def _restore_reference(run: Run, reference: Network, folder: Path) -> None:
    """The reference as it was saved; the policy as it is now where the run had none before."""
    if (folder / reference.name).exists():
        reference.load(folder)
        return
    reference.copy_weights(run.policy.weights(merged=False))
    run.state.reference_age = 0
    run.observer.note(f"the KL reference is the policy of {folder.name}, because the run had no reference until then")


def changes(now: dict[str, Any], then: dict[str, Any] | None) -> list[str]:
    """What alters results and is not as it was when the checkpoint was saved: `key: old -> new`.

    Both are effective settings, nested; None for a checkpoint that did not keep them.
    """
    if then is None:
        return []
    # as JSON holds them: an option of a task may be infinite, and null in the file
    old, new = dict(flatten(null_for_nan(then))), dict(flatten(null_for_nan(now)))
    # a task's options are kept as they were given, so a new one is a change; of the other sections all settings are
    # kept, and one that is new was not known to the checkpoint's version
    found = [key for key in sorted(old) if old[key] != new.get(key)]
    found += [key for key in sorted(new) if key not in old and key.startswith("task.")]
    warns = old.get("guards.action") == new.get("guards.action") == "warn"
    free = (*FREE_TO_CHANGE, LIMITS) if warns else FREE_TO_CHANGE
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in found if not key.startswith(free)]
