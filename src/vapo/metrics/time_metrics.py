"""The rows of the metrics table under the heading 'Time'."""

from __future__ import annotations

from vapo.metrics.metric import BOTH, CRITIC, ON_GPU, PRETRAIN, SHARE, Metric

_PER_S = "tokens/s"
_SCORED = "prompt and response tokens that the {} scored, per second of its scoring"
_UPDATED = "prompt and response tokens of the {}'s gradient steps, per second of them"
_MFU = (
    "model FLOPs utilisation of the policy: the operations that its scoring and its gradient steps need, per second of "
    "them, as a share of the rate of matrix products that was measured at the start (`matrix_rate` of "
    "`environment.json`). [Counted](../src/vapo/models/model_flops.py) are 2 operations a weight and token for "
    "scoring, 6 for an update, and 2·L·d·T² for causal attention, thrice that in an update"
)
_HEALTHY_MFU = "depends on the model's size; steady"
_MFU_ADVICE = "look for the time with `vapo train --profile`: [speed](speed.md)"
_MEMORY = "peak of the GPU memory that tensors took during {}, weights and optimizers included"

TIME_ROWS = (
    Metric("step_time", "duration of the step", "s", title="Time per step", phases=BOTH),
    Metric(
        "time/rollout", "sampling; with `trainer.max_staleness: 1` it ran beside the step before", "s",
        short="rollout", phases=BOTH,
    ),
    Metric("time/verify", "judging", "s", short="verify", phases=BOTH),
    Metric(
        "time/rollout_wait", "waiting for the next step's responses after the update; 0 with "
        "`trainer.max_staleness: 0`", "s", "well below `time/rollout`",
        "sampling takes longer than training: give it more threads or a faster engine",
    ),
    Metric(
        "time/score", "log-probabilities, values and credit; also the gradient of the critic's first minibatch, where "
        "that gives its values", "s", short="score",
    ),
    Metric("time/update", "gradient steps", "s", short="update", phases=BOTH),
    Metric("time/hand_over", "the new weights to the rollout engine", "s"),
    Metric(
        "time/evaluate", "the held-out check of value pretraining. The time of other evaluations is in "
        "`evaluations.jsonl`, and not in the time of a step", "s", phases=PRETRAIN,
    ),
    Metric(
        "throughput/tokens_per_s", "response tokens sampled per second of the whole step", "tokens/s", short="tok/s",
        phases=BOTH,
    ),
    Metric(
        "throughput/rollout_tokens_per_s", "response tokens sampled per second of sampling", "tokens/s",
        short="sampler tok/s", phases=BOTH,
    ),
    Metric(
        "throughput/update_tokens_per_s", "response tokens learned from per second of gradient steps", "tokens/s",
        phases=BOTH,
    ),
    Metric("throughput/policy_score_tokens_per_s", _SCORED.format("policy"), _PER_S),
    Metric("throughput/policy_update_tokens_per_s", _UPDATED.format("policy"), _PER_S),
    Metric("throughput/critic_score_tokens_per_s", _SCORED.format("critic"), _PER_S, phases=BOTH, where=CRITIC),
    Metric("throughput/critic_update_tokens_per_s", _UPDATED.format("critic"), _PER_S, phases=BOTH, where=CRITIC),
    Metric("mfu/policy", _MFU, SHARE, _HEALTHY_MFU, _MFU_ADVICE, title="Model FLOPs utilisation", short="policy"),
    Metric(
        "mfu/critic", "the critic's", SHARE, _HEALTHY_MFU, "see `mfu/policy`", title="Model FLOPs utilisation",
        short="critic", phases=BOTH, where=CRITIC,
    ),
    Metric("memory/rollout_gb", _MEMORY.format("sampling"), "GB", phases=BOTH, where=ON_GPU),
    Metric("memory/score_gb", _MEMORY.format("scoring"), "GB", phases=BOTH, where=ON_GPU),
    Metric("memory/update_gb", _MEMORY.format("gradient steps"), "GB", phases=BOTH, where=ON_GPU),
)  # fmt: skip
