"""Techniques that can be taken away, each one field of a method: VAPO's seven, and the remedies of VAPO 2."""

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
"""Each technique of VAPO, and the field that holds it; without it, the field is plain PPO's."""

REMEDIES: dict[str, str] = {
    "group-baseline": "credit.baseline",
    "share-lambda": "credit.policy_lambda",
    "mean-head": "credit.head",
}
"""What VAPO 2 adds to VAPO, and the field that holds it; without it, the field is VAPO's."""


ALSO_CALLED = {"lm-loss": "positive-lm", "positive-lm-loss": "positive-lm", "pretraining": "value-pretraining"}
"""What people call a technique, for a hint."""


def put_back(algorithm: Algorithm, technique: str, *, ppo: Algorithm, vapo: Algorithm) -> Algorithm:
    """The algorithm with the technique's field as PPO has it, or for a remedy as VAPO has it.

    Raises ConfigError for a name that is in neither table, or a method that has no such field (GRPO has no λ to put
    back).
    """
    known = {**TECHNIQUES, **REMEDIES}
    if technique not in known:
        close = [ALSO_CALLED[technique]] if technique in ALSO_CALLED else get_close_matches(technique, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(
            f"Unknown technique {technique!r}{hint} VAPO's seven are: {', '.join(TECHNIQUES)}. VAPO 2 adds: "
            f"{', '.join(REMEDIES)}."
        )
    path = known[technique]
    if path.startswith("credit.") and not isinstance(algorithm.credit, Gae):
        raise ConfigError(f"{technique} needs a critic; this method has a group baseline. Use a preset with a critic.")
    if technique == "group-sampling":
        if isinstance(algorithm.credit, GroupBaseline):
            raise ConfigError("A group baseline needs group-sampling. Use a preset with a critic to remove it.")
        if algorithm.credit.baseline in ("group", "fitted"):
            raise ConfigError("The critic's group baseline needs group-sampling. Also remove group-baseline.")
    return _graft(algorithm, path, vapo if technique in REMEDIES else ppo)


def _graft(node: Any, path: str, donor: Any) -> Any:
    """`node` with the field at the dotted `path` copied from `donor`."""
    head, _, rest = path.partition(".")
    assert head in {f.name for f in fields(node)}
    value = getattr(donor, head)
    return replace(node, **{head: _graft(getattr(node, head), rest, value) if rest else value})
