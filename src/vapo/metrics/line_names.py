"""The phases of a run, and the kinds of its evaluations and events, as the files of a run name them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The phase of a run, and the value of `phase` in each line of metrics.jsonl (which has no line for DONE)."""

    PRETRAIN = "pretrain"
    TRAIN = "train"
    DONE = "done"

    @property
    def words(self) -> str:
        """The phase's name for people.

        >>> Phase.PRETRAIN.words
        'value pretraining'
        """
        return {Phase.PRETRAIN: "value pretraining", Phase.TRAIN: "training", Phase.DONE: "done"}[self]


class EvaluationLabel(StrEnum):
    """The kind of an evaluation in evaluations.jsonl."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class EventName(StrEnum):
    """The kind of an event in events.jsonl."""

    ALARM = "alarm"
    CRITIC_LOADED = "critic loaded"
    PRETRAINING_FINISHED = "pretraining finished"
    RESUMED = "resumed"
    ROLLED_BACK = "rolled back"
    DIVERGED = "diverged"
