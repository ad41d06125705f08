"""The sections of the table, and a metric's row by its name."""

from __future__ import annotations

import re
from dataclasses import replace

from vapo.metrics.critic_metrics import CRITIC_ROWS
from vapo.metrics.metric import Metric, Section
from vapo.metrics.policy_metrics import POLICY_ROWS
from vapo.metrics.pretraining_metrics import PRETRAINING_ROWS
from vapo.metrics.sampled_metrics import SAMPLED_ROWS
from vapo.metrics.time_metrics import TIME_ROWS

SECTIONS = (
    Section(
        "What was sampled",
        SAMPLED_ROWS,
        "With dynamic sampling, these numbers include the dropped groups. Responses with an invalid verdict\n"
        "count in `verdict/invalid_ratio` only.",
    ),
    Section(
        "Policy",
        POLICY_ROWS,
        "Token means are over the trainable tokens. A diagnostic that overflows is `null`\n"
        "and does not cancel the gradient step.",
    ),
    Section(
        "Critic",
        CRITIC_ROWS,
        "Always measured against the Monte-Carlo outcome R, before the step's update, and not\n"
        "against the critic's bootstrap target, so that methods with different λ can be compared.",
    ),
    Section(
        "Value pretraining", PRETRAINING_ROWS, "The critic is never trained on the held-out prompts of its evaluation."
    ),
    Section(
        "Time",
        TIME_ROWS,
        "Time, throughput, MFU and memory are the only metrics that differ between a run and its exact repetition.\n"
        "The rate behind `mfu/*` is that of the fastest square product found in a tenth of a second at the start, in\n"
        "the precision of `model.dtype` and on the threads of the run; it is no data sheet's peak. Other work on the\n"
        "machine in that moment makes it small, and the shares large. See [where the time goes](speed.md).",
    ),
)

METRICS: dict[str, Metric] = {row.name: row for section in SECTIONS for row in section.rows}
"""All metrics by name."""


def family_of(name: str) -> str:
    """The name of the family that a metric belongs to, or its own.

    >>> family_of("value/bias_by_position/3"), family_of("rewards/format/std"), family_of("kl")
    ('value/bias_by_position/*', 'rewards/*/std', 'kl')
    """
    return re.sub(r"^rewards/.+/", "rewards/*/", re.sub(r"/\d+$", "/*", name))


def metric_called(name: str) -> Metric:
    """The row of a metric or of a member of a family, with the given name. Raises KeyError for an unknown name.

    >>> metric_called("value/bias_by_position/3").unit
    'reward'
    >>> metric_called("rewards/format/mean").unit
    'reward'
    """
    family = family_of(name)
    if family not in METRICS:
        raise KeyError(f"{name} is not in the table of vapo.metrics.")
    return replace(METRICS[family], name=name)
