"""The rows of the metrics table under the heading 'Policy'."""

from __future__ import annotations

from vapo.metrics.metric import KL, SHARE, Metric

POLICY_ROWS = (
    Metric(
        "entropy", "mean entropy of the sampled distribution: before the update where every response was scored, else "
        "over its gradient steps", "nats per token", "falls slowly",
        "near 0 the policy writes almost the same response every time: raise `algorithm.clip.high` or "
        "lower `trainer.actor_lr`", title="Entropy", short="entropy",
    ),
    Metric("loss/policy", "the clipped surrogate, reduced as the method says", "", "around 0, noisy"),
    Metric(
        "loss/positive_lm", "mean -log π over the tokens of right responses (VAPO eq. 9), before μ; 0 if none is "
        "right. Written for every method, also where μ is 0", "nats per token", "falls", title="Positive LM loss",
    ),
    Metric("loss/kl", "the KL term to the reference, before its coefficient", "nats per token", "small", where=KL),
    Metric(
        "kl", "mean log π - log π_ref on the samples (k1)", "nats per token", "grows slowly",
        title="KL to the reference", where=KL,
    ),
    Metric(
        "kl/update", "how far the step's updates moved π: KL[before | after] (k3) on the tokens of one response "
        "in 16, 4 at least", "nats per token", "below 0.05; above `guards.kl_update_above` an alarm at once",
        "a few steps of this size can destroy the model: lower `trainer.actor_lr` or "
        "use fewer minibatches",
    ),
    Metric(
        "clip_ratio/high_mean", "weight of the tokens whose gradient the trust region's upper bound stops: above 1 + "
        "ε_high with A > 0", SHARE, "below 0.05",
        "lower `trainer.actor_lr`, take fewer minibatches", title="Clipped tokens", short="above 1 + ε high",
    ),
    Metric(
        "clip_ratio/low_mean", "weight of the tokens whose gradient the lower bound stops: below 1 - ε_low with A < 0; "
        "a dual clip also stops those above c with A < 0", SHARE, "below 0.05",
        "lower `trainer.actor_lr`, take fewer minibatches", title="Clipped tokens", short="below 1 − ε low",
    ),
    Metric(
        "grad_norm/policy", "gradient norm before clipping, mean over the step's gradient steps", "", "steady",
        "a spike comes from one bad batch or from too high a learning rate: lower `trainer.actor_lr`",
        title="Policy gradient norm",
    ),
    Metric("lr/actor", "the policy's learning rate in this step"),
    Metric("gradient_steps", "policy gradient steps so far: the paper's x axis", "gradient steps"),
    Metric(
        "skipped/policy", "gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)",
    ),
    Metric(
        "sampler/logp_gap_max", "largest difference of the sampler's and the trainer's log-probability of a token, "
        "over the responses that were scored (`trainer.scoring`)", "nats", "below 1e-4 in float32",
        "the engine runs other weights or another precision",
    ),
    Metric(
        "sampler/logp_gap_mean", "the mean of that difference", "nats", "below 1e-4 in float32",
        "the engine runs other weights or another precision than the trainer: its samples are not the policy's",
    ),
    Metric(
        "sampler/removed_ratio", "share of the tokens whose weight the sampler correction cut or set to 0", SHARE,
        "below 0.01", "engine and trainer disagree about many tokens: compare their precision, or the "
        "staleness of its rollouts", where="`algorithm.sampler` other than none",
    ),
)  # fmt: skip
