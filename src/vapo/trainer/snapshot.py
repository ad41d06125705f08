"""A run's whole state to a checkpoint folder and back."""

from __future__ import annotations

import json
from pathlib import Path

from vapo.models.saving import load_optimizer, load_trained, load_weights, save_model, save_optimizer, save_trained
from vapo.trainer import checkpoint
from vapo.trainer.run import Run
from vapo.trainer.state import State


def save(run: Run) -> Path:
    """Write everything that changed since the start: weights, optimizers, reference, counters, log lengths."""
    state = run.state
    state.log_bytes = run.folder.log_bytes()

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(state.to_json(), indent=1))
        save_trained(run.policy.model, run.tokenizer, folder / "policy")
        save_optimizer(run.policy_learner.optimizer, folder / "policy_optimizer.safetensors")
        if run.critic is not None and run.critic_learner is not None:
            save_trained(run.critic.model, run.tokenizer, folder / "critic")
            save_optimizer(run.critic_learner.optimizer, folder / "critic_optimizer.safetensors")
        if run.reference is not None:
            save_model(run.reference.model, None, folder / "reference")

    name = f"pretrain_{state.pretrain_step:06d}" if state.step == 0 else f"step_{state.step:06d}"
    return checkpoint.save(run.folder.checkpoints, name, write, serial=state.serial, keep=run.saving.keep)


def restore(run: Run, folder: Path | None) -> None:
    """Put a checkpoint into the run and take back later log lines.

    None starts the run over: the logs are emptied.
    """
    if folder is None:
        run.folder.cut_logs({})
        return
    run.state = State.from_json(checkpoint.read_json(folder, "state.json"))
    load_trained(run.policy.model, folder / "policy")
    load_optimizer(run.policy_learner.optimizer, folder / "policy_optimizer.safetensors")
    if run.critic is not None and run.critic_learner is not None:
        load_trained(run.critic.model, folder / "critic")
        load_optimizer(run.critic_learner.optimizer, folder / "critic_optimizer.safetensors")
    if run.reference is not None:
        load_weights(run.reference.model, folder / "reference")
    run.folder.cut_logs(run.state.log_bytes)
