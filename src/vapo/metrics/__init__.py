"""The table of all metrics: name, meaning, unit, healthy range, and advice.

Curves, the live view, comparisons and alarms use its titles, units and advice. A row stands in the file of its heading:
`sampled_metrics`, `policy_metrics`, `critic_metrics`, `pretraining_metrics`, `time_metrics`. `docs/metrics.md` is
printed from them:

    python -m vapo.metrics docs/metrics.md
"""

from vapo.metrics.line_names import EvaluationLabel, EventName, Phase
from vapo.metrics.metric import SHARE, Metric, Section
from vapo.metrics.metric_table import METRICS, SECTIONS, metric_called
from vapo.metrics.other_lines import EVALUATION, EVENTS, PLACE

__all__ = [
    "EVALUATION",
    "EVENTS",
    "METRICS",
    "PLACE",
    "SECTIONS",
    "SHARE",
    "EvaluationLabel",
    "EventName",
    "Metric",
    "Phase",
    "Section",
    "metric_called",
]
