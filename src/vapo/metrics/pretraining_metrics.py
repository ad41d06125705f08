"""The rows of the metrics table under the heading 'Value pretraining'."""

from __future__ import annotations

from vapo.metrics.metric import PRETRAIN, RESIDUAL, Metric

PRETRAINING_ROWS = (
    Metric(
        "pretrain/value_loss", "`value/loss` of the pretraining step", "", "falls", title="Value loss",
        short="value loss", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/explained_variance", "explained variance on responses to held-out prompts, after the step's update",
        "", "above `trainer.pretraining_ready`",
        "more steps or passes, a higher `trainer.pretraining_lr`, or prompts whose outcome can be predicted",
        title="Explained variance", short="explained var", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/residual_explained_variance", "`value/residual_explained_variance` on them", "", "above 0",
        phases=PRETRAIN, where=RESIDUAL,
    ),
    Metric("pretrain/mean", "mean V on them", "reward", phases=PRETRAIN),
    Metric("pretrain/std", "standard deviation of the critic's answers on them", "reward", "above 0", phases=PRETRAIN),
    Metric("pretrain/bias", "mean V - R on them", "reward", "near 0", phases=PRETRAIN),
    Metric(
        "pretrain/explained_variance_by_position/*", "explained variance on them by tenths of the response", "",
        "rises with position", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/bias_by_position/*", "mean V - R on them by tenths of the response", "reward", "near 0",
        phases=PRETRAIN,
    ),
    Metric(
        "pretrain/end_explained_variance", "explained variance of the value after the last token", "", "near 1",
        "more steps: a reward model must judge finished text before a critic starts from it", phases=PRETRAIN,
        where="reward models: `trainer.pretraining_at: end`",
    ),
    Metric(
        "pretrain/gradient_steps", "critic gradient steps of this pretraining step", "gradient steps",
        "grows until replays fill `trainer.pretraining_passes`", phases=PRETRAIN,
    ),
    Metric(
        "skipped", "critic gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)", phases=PRETRAIN,
    ),
)  # fmt: skip
