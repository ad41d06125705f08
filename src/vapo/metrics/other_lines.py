"""The entries of a run's other lines: what identifies a step, evaluations.jsonl, events.jsonl."""

from __future__ import annotations

from vapo.metrics.line_names import EventName

PLACE = {
    "phase": "`pretrain` (value pretraining) or `train` (the joint loop)",
    "step": "counts from 1 within the phase",
}
"""The entries of a line of metrics.jsonl that identify the step."""

EVALUATION = {
    "step": "the joint step after which it was made",
    "label": "`before`, `during` or `after` training",
    "k": "samples per prompt",
    "prompts": "how many held-out prompts",
    "set": "a hash of prompts, answers, verifier and decoding; scores with different ones cannot be compared",
    "avg": "avg@k: mean over prompts of the share of right samples",
    "low": "lower end of its 95 % interval over prompts",
    "high": "upper end",
    "pass": "unbiased pass@j by j",
    "maj": (
        "accuracy of the majority vote; null if at most half of the right responses have a final answer, or if none "
        "is right and none has one"
    ),
    "intervals": "95 % intervals over prompts of `pass@j` and `maj`",
    "mean_length": "mean response tokens",
    "clipped_ratio": "share cut off at the length limit",
    "invalid_ratio": "share with an invalid verdict",
    "verdicts": "valid responses, right ones, and wrong ones by reason",
    "right": "right samples of each prompt, in order",
    "valid": "valid samples of each prompt, in order",
    "time/evaluate": "seconds it took",
}
"""The entries of a line of evaluations.jsonl."""

EVENTS = {
    EventName.ALARM: "`message`: the problem; `name` for alarms of `guards` and of equal outcomes",
    EventName.CRITIC_LOADED: "`origin`: the source of the critic's weights",
    EventName.PRETRAINING_FINISHED: "`steps`, and the held-out `explained_variance` reached",
    EventName.RESUMED: "resumed after `step`; `changes` lists the changed settings: `key: old -> new`",
    EventName.ROLLED_BACK: "an alarm (`reason`) rolled the run back: `from_step`, `to_step`, `rollbacks` so far",
    EventName.DIVERGED: "`message`: the run stopped with exit code 3",
}
"""The entries of events.jsonl by kind."""
