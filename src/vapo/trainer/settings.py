"""How a run is carried out: sizes, limits and schedules that are not part of the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError
from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class TrainerSettings:
    """Everything the loop needs besides the algorithm; units in the names or the docstrings."""

    steps: int = number(100, ge=0, unit="rollout steps")
    """Rollout steps of joint training (each makes several gradient steps); 0 pretrains the critic only."""
    micro_batch_tokens: int = number(16384, ge=1, unit="tokens")
    """Most tokens (prompt and response) in one forward-backward pass; changes memory and speed, not results. On a CPU a
    pass has at most 4096."""
    scoring: Literal["needed", "all"] = "needed"
    """Which tokens are scored once more before the update. `needed` leaves out what is known without: the policy's
    log-probabilities where the sampler's are the same (within 1e-4 nats on a sixteenth of the responses, measured each
    step), and the values of the critic's first minibatch, which its own update computes. `all` scores every token."""
    max_staleness: Literal[0, 1] = 0
    """How many updates older than the policy the responses of a step may be. 0 samples, then trains. 1 samples the next
    step's responses while this step's are trained on: less time a step where both have cores or a GPU of their own, and
    another course of training (docs/overlap.md)."""
    layout: Literal["packed", "padded"] | None = None
    """How ragged sequences are laid out; null takes packed where the architecture allows it."""
    weight_decay: float = number(0.0, ge=0)
    """AdamW's decoupled weight decay, of every trained parameter: biases and the weights of norms, too."""
    max_grad_norm: float = number(1.0, gt=0)
    """Gradients are clipped to this norm."""
    pretraining_lr: float | None = number(None, ge=0, unit="per gradient step")
    """Critic learning rate during value pretraining; null takes the critic's."""
    pretraining_passes: int = number(1, ge=1, unit="passes")
    """How much the critic learns per pretraining step: as many responses as so many steps sample, drawn from all
    that pretraining has sampled so far (the policy is fixed, so none is stale), the new ones always among them."""
    pretraining_at: Literal["tokens", "end"] = "tokens"
    """Where the outcome is learned: at every response token, a value model; or after the last one only, which
    makes a reward model: what the papers' critics start from. It needs steps: 0."""
    pretraining_patience: int = number(0, ge=0, unit="rollout steps")
    """Stop pretraining when held-out explained variance has not improved for this many steps; 0 runs all of
    them, exactly."""
    pretraining_ready: float = number(0.1, le=1)
    """Warn when pretraining ends with less held-out explained variance than this."""
    pretraining_heldout: int = number(256, ge=1, unit="responses")
    """Responses to held-out prompts on which value pretraining is judged."""
    max_invalid_ratio: float = number(0.2, ge=0, le=1, unit="share of verdicts")
    """Stop with exit code 4 when more than this share of a step's verdicts is invalid."""
    save_rollouts_every: int = number(10, ge=0, unit="rollout steps")
    """Write the step's responses every so many steps (and the first and last); 0 never."""
    save_rollouts_in_full: int = number(512, ge=0, unit="responses")
    """Of the responses of such a step, write at most so many token by token, whole groups of them; of the others the
    text and the verdict. In full a token takes about 12 bytes on disk, else 1."""

    def __post_init__(self) -> None:
        check_ranges(self, "trainer")
        if self.pretraining_at == "end" and self.steps > 0:
            raise ConfigError(
                "trainer.pretraining_at=end makes a reward model, which judges whole responses only; a policy trained "
                "by it at once would get noise for advantages. Set trainer.steps=0, then start from it: --critic."
            )


@dataclass(frozen=True)
class GuardSettings:
    """When a run raises an alarm, and the action that follows."""

    action: Literal["warn", "stop", "rollback"] = "warn"
    """On an alarm: warn and go on, stop with exit code 3, or roll back to the newest checkpoint and sample other
    responses from there."""
    max_rollbacks: int = number(3, ge=0, unit="rollbacks")
    """Stop with exit code 3 at the next alarm after this many rollbacks."""
    patience: int = number(5, ge=1, unit="rollout steps")
    """Steps in a row that a figure must be bad to raise an alarm; a gradient spike and a step that went too far raise
    one at once."""
    entropy_below: float = number(0.005, ge=0, unit="nats per token")
    """Entropy of the policy, in nats a token."""
    explained_variance_below: float = number(0.0, le=1)
    """Explained variance of the critic."""
    value_std_below: float = number(1e-4, ge=0, unit="reward")
    """Spread of the critic's values, in units of reward."""
    variance_ratio_above: float = number(1.2, ge=0, unit="times")
    """Variance of the advantages with the critic, as a multiple of that with the group's mean alone."""
    clipped_ratio_above: float = number(0.5, ge=0, le=1, unit="share of responses")
    """Share of responses cut off at the length limit."""
    grad_norm_above: float = number(20.0, gt=1, unit="medians")
    """Alarm when a step's gradient norm exceeds this multiple of the median of the last 20 steps with one."""
    kl_update_above: float = number(0.2, gt=0, unit="nats per token")
    """How far one step's updates moved the policy (`kl/update`), in nats a token; raises an alarm at once. Steps that
    train are near 0.001, and one of 0.7 was seen to destroy a model."""
    logp_gap_above: float | None = number(None, gt=0, unit="nats")
    """Mean difference of the sampler's and the trainer's log-probabilities (`sampler/logp_gap_mean`); null takes the
    engine's: 1e-3 in float32, 0.1 in bfloat16, or rollout.engine.logp_gap. With trainer.max_staleness=1 null is no
    limit."""
    same_outcome_steps: int = number(5, ge=0, unit="rollout steps")
    """Alarm after this many steps in a row in which no response is right, or every one; 0 never."""
    watchdog: bool = True
    """Run a watchdog process that logs what hangs, with stack traces."""
    stuck_factor: float = number(10.0, gt=1)
    """A pause is too long when it exceeds the longest earlier one in the same work by this factor."""
    stuck_floor_s: float = number(300.0, gt=0, unit="seconds")
    """A pause is never too long before this many seconds."""

    def __post_init__(self) -> None:
        check_ranges(self, "guards")


@dataclass(frozen=True)
class CheckpointSettings:
    """When the run's state is saved, and how many saves are kept."""

    every: int = number(20, ge=0, unit="rollout steps")
    """Save after every so many steps (pretraining steps count too), and at the end; 0 saves at the end only."""
    keep: int = number(2, ge=1, unit="checkpoints")
    """How many of the newest checkpoints stay on disk."""
    final: Literal["state", "weights"] = "state"
    """What stays of a run that has ended: its checkpoints, so that it can be made longer; or policy/ and critic/ only,
    and all checkpoints are deleted once those are written."""

    def __post_init__(self) -> None:
        check_ranges(self, "checkpoint")


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation during a run: before it, every so many steps, and after it."""

    every: int = number(25, ge=0, unit="rollout steps")
    """Evaluate after every so many steps; 0 only before and after."""
    prompts: int = number(200, ge=1, unit="prompts")
    """At most how many held-out prompts."""
    samples_per_prompt: int = number(4, ge=1, unit="responses")
    """k of avg@k and pass@k."""
    final_samples_per_prompt: int | None = number(None, ge=1, unit="responses")
    """k of the evaluation after training, the one to report; null takes the same as before and during."""
    temperature: float = number(1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = number(1.0, gt=0, le=1, unit="probability")
    """Nucleus sampling: the smallest set of tokens with this much probability; 1 is the plain policy."""

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation")
