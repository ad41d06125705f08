"""How a run is carried out: sizes, limits and schedules that are not part of the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError


@dataclass(frozen=True)
class TrainerSettings:
    """Everything the loop needs besides the algorithm; units in the names or the docstrings."""

    steps: int = 100
    """Rollout steps of joint training (each makes several gradient steps); 0 pretrains the critic only."""
    micro_batch_tokens: int = 16384
    """Most tokens (prompt and response) in one forward-backward pass; changes memory and speed, not results."""
    layout: Literal["packed", "padded"] | None = None
    """How ragged sequences are laid out; null takes packed where the architecture allows it."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    pretraining_lr: float | None = None
    """Critic learning rate during value pretraining; null takes the critic's."""
    pretraining_passes: int = 1
    """How much the critic learns per pretraining step: as many responses as so many steps sample, drawn from all
    that pretraining has sampled so far (the policy is fixed, so none is stale), the new ones always among them."""
    pretraining_at: Literal["tokens", "end"] = "tokens"
    """Where the outcome is learned: at every response token, a value model; or after the last one only, which
    makes a reward model: what the papers' critics start from. It needs steps: 0."""
    pretraining_patience: int = 0
    """Stop pretraining when held-out explained variance has not improved for this many steps; 0 runs all of
    them, exactly."""
    pretraining_ready: float = 0.1
    """Warn when pretraining ends with less held-out explained variance than this."""
    pretraining_heldout: int = 256
    """Responses to held-out prompts on which value pretraining is judged."""
    max_invalid_ratio: float = 0.2
    """Stop with exit code 4 when more than this share of a step's verdicts is invalid."""
    save_rollouts_every: int = 10
    """Write the step's responses, token by token, every so many steps (and the first and last); 0 never."""

    def __post_init__(self) -> None:
        positive = ["micro_batch_tokens", "pretraining_passes", "pretraining_heldout"]
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("steps", "weight_decay", "pretraining_patience", "save_rollouts_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name} must not be negative, got {getattr(self, name)}.")
        if self.pretraining_lr is not None and not self.pretraining_lr >= 0:
            raise ConfigError(f"trainer.pretraining_lr must not be negative, got {self.pretraining_lr}.")
        if self.pretraining_at == "end" and self.steps > 0:
            raise ConfigError(
                "trainer.pretraining_at=end makes a reward model, which judges whole responses only; a policy trained "
                "by it at once would get noise for advantages. Set trainer.steps=0, then start from it: --critic."
            )
        if not self.max_grad_norm > 0:
            raise ConfigError(f"trainer.max_grad_norm must be positive, got {self.max_grad_norm}.")
        if not 0 <= self.max_invalid_ratio <= 1:
            raise ConfigError(f"trainer.max_invalid_ratio must lie in [0, 1], got {self.max_invalid_ratio}.")


@dataclass(frozen=True)
class GuardSettings:
    """What counts as going wrong, and what to do then."""

    action: Literal["warn", "stop", "rollback"] = "warn"
    """On an alarm: warn and go on, stop with exit code 3, or roll back to the newest checkpoint and sample other
    responses from there."""
    max_rollbacks: int = 3
    """Stop with exit code 3 at the next alarm after this many rollbacks."""
    patience: int = 5
    """Steps in a row that a figure must be bad to raise an alarm; a gradient spike and a step that went too far raise
    one at once."""
    entropy_below: float = 0.005
    """Entropy of the policy, in nats a token."""
    explained_variance_below: float = 0.0
    """Explained variance of the critic."""
    clipped_ratio_above: float = 0.5
    """Share of responses cut off at the length limit."""
    grad_norm_above: float = 20.0
    """Alarm when a step's gradient norm exceeds this multiple of the median of the last 20 steps."""
    kl_update_above: float = 0.2
    """How far one step's updates moved the policy (`kl/update`), in nats a token; raises an alarm at once. Steps that
    train are near 0.001, and one of 0.7 was seen to destroy a model."""
    same_outcome_steps: int = 5
    """Alarm after this many steps in a row in which no response is right, or every one; 0 never."""
    watchdog: bool = True
    """Run a watchdog process that logs what hangs, with stack traces."""
    stuck_factor: float = 10.0
    """A pause is too long when it exceeds the longest earlier one in the same work by this factor."""
    stuck_floor_s: float = 300.0
    """A pause is never too long before this many seconds."""

    def __post_init__(self) -> None:
        for name in ("max_rollbacks", "entropy_below", "same_outcome_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"guards.{name} must not be negative, got {getattr(self, name)}.")
        if self.patience < 1:
            raise ConfigError(f"guards.patience must be at least 1, got {self.patience}.")
        if not 0 <= self.clipped_ratio_above <= 1:
            raise ConfigError(f"guards.clipped_ratio_above must lie in [0, 1], got {self.clipped_ratio_above}.")
        for name in ("grad_norm_above", "stuck_factor"):
            if not getattr(self, name) > 1:
                raise ConfigError(f"guards.{name} must be above 1, got {getattr(self, name)}.")
        for name in ("kl_update_above", "stuck_floor_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"guards.{name} must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True)
class CheckpointSettings:
    """When the run's state is saved, and how many saves are kept."""

    every: int = 20
    """Save after every so many steps (pretraining steps count too), and at the end; 0 saves at the end only."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"checkpoint.every must not be negative, got {self.every}.")
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep must be at least 1, got {self.keep}: a run needs one to resume from.")


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation during a run: before it, every so many steps, and after it."""

    every: int = 25
    """Evaluate after every so many steps; 0 only before and after."""
    prompts: int = 200
    """How many held-out prompts."""
    samples_per_prompt: int = 4
    """k of avg@k and pass@k."""
    final_samples_per_prompt: int | None = None
    """k of the evaluation after training, the one to report; null takes the same as before and during."""
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"evaluation.every must not be negative, got {self.every}.")
        for name in ("prompts", "samples_per_prompt"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}.")
        if self.final_samples_per_prompt is not None and self.final_samples_per_prompt < 1:
            raise ConfigError(
                f"evaluation.final_samples_per_prompt must be at least 1, got {self.final_samples_per_prompt}."
            )
        check_decoding("evaluation", self.temperature, self.top_p)


def check_decoding(section: str, temperature: float, top_p: float) -> None:
    """Raise ConfigError unless temperature >= 0 and 0 < top_p <= 1."""
    if not temperature >= 0:
        raise ConfigError(f"{section}.temperature must not be negative, got {temperature} (0 is greedy).")
    if not 0 < top_p <= 1:
        raise ConfigError(f"{section}.top_p must lie in (0, 1], got {top_p}.")
