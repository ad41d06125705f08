"""VAPO's seven techniques, each one field of the method, and how one is taken away: its field is copied from PPO."""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from vapo.algo.method import Algorithm, Gae, GroupBaseline
from vapo.errors import ConfigError

TECHNIQUES: dict[str, str] = {
    "value-pretraining": "credit.pretraining_steps",
    "decoupled-gae": "credit.critic_lambda",
    "length-adaptive-gae": "credit.policy_lambda",
    "token-level-loss": "reduction",
    "clip-higher": "clip",
    "positive-lm": "positive_lm",
    "group-sampling": "sampling",
}
"""Each technique, and the field that holds it."""


def put_back(algorithm: Algorithm, technique: str, donor: Algorithm) -> Algorithm:
    """The algorithm with the technique's field as the donor has it.

    Raises ConfigError for a name that is not in `TECHNIQUES`, or a method that has no such field (GRPO has
    no λ to put back).
    """
    if technique not in TECHNIQUES:
        close = get_close_matches(technique, TECHNIQUES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"Unknown technique {technique!r}{hint} VAPO's seven are: {', '.join(TECHNIQUES)}.")
    path = TECHNIQUES[technique]
    if path.startswith("credit.") and not isinstance(algorithm.credit, Gae):
        raise ConfigError(f"{technique} belongs to methods with a critic; this one has a group baseline.")
    if technique == "group-sampling" and isinstance(algorithm.credit, GroupBaseline):
        raise ConfigError("Without group-sampling a group baseline has nothing to compare; use a preset with a critic.")
    return _graft(algorithm, path, donor)


def _graft(node: Any, path: str, donor: Any) -> Any:
    """`node` with the field at the dotted `path` copied from `donor`."""
    head, _, rest = path.partition(".")
    assert head in {f.name for f in fields(node)}
    value = getattr(donor, head)
    return replace(node, **{head: _graft(getattr(node, head), rest, value) if rest else value})
