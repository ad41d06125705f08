"""`Metric`, a row of the table, and the words that many rows share."""

from __future__ import annotations

from dataclasses import dataclass

from vapo.metrics.line_names import Phase

BOTH = (Phase.PRETRAIN, Phase.TRAIN)
TRAIN = (Phase.TRAIN,)
PRETRAIN = (Phase.PRETRAIN,)


@dataclass(frozen=True)
class Metric:
    """One number of metrics.jsonl. A name that ends in `/*` is a family, numbered from 0; in
    `rewards/*/mean` the names of reward functions take the place of `*`."""

    name: str
    meaning: str
    unit: str = ""
    healthy: str = ""
    advice: str = ""
    """What to do outside the healthy range."""
    title: str = ""
    """The title of its figure."""
    short: str = ""
    """A short name, for example for the terminal."""
    phases: tuple[Phase, ...] = TRAIN
    where: str = ""
    """The methods or settings that write it; empty for all."""

    @property
    def heading(self) -> str:
        """Title and unit.

        >>> Metric("kl", "", "nats per token", title="KL").heading, Metric("accuracy", "", SHARE).heading
        ('KL (nats per token)', 'accuracy')
        """
        title = self.title or self.name
        return f"{title} ({self.unit})" if self.unit and self.unit != SHARE else title

    @property
    def plain_advice(self) -> str:
        """The advice without Markdown, for messages.

        >>> Metric("kl", "", advice="lower `trainer.actor_lr`").plain_advice
        'lower trainer.actor_lr'
        """
        return self.advice.replace("`", "")


@dataclass(frozen=True)
class Section:
    """The rows under one heading of the page."""

    heading: str
    rows: tuple[Metric, ...]
    about: str = ""


SHARE = "share"
"""The unit of a number from 0 to 1 that figures show in percent."""
CRITIC = "methods with a critic"
RESIDUAL = "`algorithm.credit.baseline: group`"
GROUPED_CRITIC = "methods with a critic and several responses to a prompt"
KL = "runs with a reference: `algorithm.kl.coef` > 0"
ON_GPU = "on a GPU"
SHOW_THE_FORM = "show the model the form of an answer (in the prompt: `task.template`, or by fine-tuning on examples)"
