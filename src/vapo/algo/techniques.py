"""VAPO's seven techniques. Each is one field of the method; removing one copies its field from PPO."""

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
"""The method field of each technique."""


def put_back(algorithm: Algorithm, technique: str, donor: Algorithm) -> Algorithm:
    """The algorithm with the technique's field copied from the donor.

    Raises ConfigError for a name that is not in `TECHNIQUES`, or a method without the field (GRPO has no λ).
    """
    if technique not in TECHNIQUES:
        close = get_close_matches(technique, TECHNIQUES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"Unknown technique {technique!r}{hint} VAPO's seven are: {', '.join(TECHNIQUES)}.")
    path = TECHNIQUES[technique]
    if path.startswith("credit.") and not isinstance(algorithm.credit, Gae):
        raise ConfigError(f"{technique} needs a critic; this method has a group baseline. Use a preset with a critic.")
    if technique == "group-sampling" and isinstance(algorithm.credit, GroupBaseline):
        raise ConfigError("A group baseline needs group-sampling. Use a preset with a critic to remove it.")
    return _graft(algorithm, path, donor)


def _graft(node: Any, path: str, donor: Any) -> Any:
    """`node` with the field at the dotted `path` copied from `donor`."""
    head, _, rest = path.partition(".")
    assert head in {f.name for f in fields(node)}
    value = getattr(donor, head)
    return replace(node, **{head: _graft(getattr(node, head), rest, value) if rest else value})
