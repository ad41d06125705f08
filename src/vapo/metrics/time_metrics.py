"""The rows of the metrics table under the heading 'Time'."""

from __future__ import annotations

from vapo.metrics.metric import BOTH, PRETRAIN, Metric

TIME_ROWS = (
    Metric("step_time", "duration of the step", "s", title="Time per step", phases=BOTH),
    Metric("time/rollout", "sampling", "s", short="rollout", phases=BOTH),
    Metric("time/verify", "judging", "s", short="verify", phases=BOTH),
    Metric(
        "time/score", "log-probabilities, values and credit; also the gradient of the critic's first minibatch, where "
        "that gives its values", "s", short="score",
    ),
    Metric("time/update", "gradient steps", "s", short="update", phases=BOTH),
    Metric(
        "time/evaluate", "the held-out check of value pretraining. The time of other evaluations is in "
        "`evaluations.jsonl`, and not in the time of a step", "s", phases=PRETRAIN,
    ),
    Metric(
        "throughput/rollout_tokens_per_s", "response tokens sampled per second of sampling", "tokens/s",
        short="tok/s", phases=BOTH,
    ),
    Metric(
        "throughput/update_tokens_per_s", "response tokens learned from per second of gradient steps", "tokens/s",
        phases=BOTH,
    ),
)  # fmt: skip
