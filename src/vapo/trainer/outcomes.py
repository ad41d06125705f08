"""Outcomes that are all the same, in words: where every response is wrong, or every one right, nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vapo.types import KINDS

NOTHING_RIGHT, NOTHING_WRONG = "nothing right", "nothing wrong"
WHY = (*KINDS, "cut_off")
"""Why responses are wrong, as they are counted; one that was cut off at the limit has a kind besides."""
_WORDS = {
    "no_answer": "without a marked answer",
    "unreadable": "with an answer that could not be read",
    "wrong_answer": "with another answer",
    "cut_off": "cut off at the length limit",
}
_ADVICE = {
    "cut_off": "raise rollout.max_response_tokens",
    "no_answer": "show the model the form of an answer (in the prompt: task.template, or by fine-tuning on examples)",
    "unreadable": "show the model the form of an answer (in the prompt: task.template, or by fine-tuning on examples)",
    "unspecified": "look in the rollouts whether the verifier can say right at all",
}
"""What to do where half of the responses are wrong for that reason."""


def figures_of(tally: Mapping[str, int]) -> dict[str, float]:
    """`verdict/judged`, how many responses have a valid verdict, and `verdict/reason/*`, shares of them that are
    wrong and why."""
    judged = tally["responses"]
    shares = {f"verdict/reason/{why}": tally[why] / judged if judged else float("nan") for why in WHY}
    return {"verdict/judged": judged, **shares}


def tally_of(figures: Mapping[str, Any]) -> dict[str, int]:
    """The counts behind a step's figures, as `vapo.rollout.collect.tally` made them; all 0 if nothing was judged."""
    judged = int(figures.get("verdict/judged") or 0)
    shares = {"right": figures.get("accuracy"), **{why: figures.get(f"verdict/reason/{why}") for why in WHY}}
    return {
        "responses": judged,
        **{name: round((share or 0) * judged) if judged else 0 for name, share in shares.items()},
    }


def sameness(tally: Mapping[str, int]) -> str | None:
    """NOTHING_RIGHT, NOTHING_WRONG, or None where there are both, or no responses."""
    if not tally["responses"]:
        return None
    return {0: NOTHING_RIGHT, tally["responses"]: NOTHING_WRONG}.get(tally["right"])


def lesson(tally: Mapping[str, int], where: str) -> str:
    """What equal outcomes mean and what to do; `where` says which responses they are: "in 5 steps"."""
    count = tally["responses"]
    if sameness(tally) == NOTHING_WRONG:
        return f"All {count} responses {where} are right: nothing is left to learn. Take harder problems, or stop here."
    why = ", ".join(f"{tally[kind]} {words}" for kind, words in _WORDS.items() if tally[kind])
    advice = dict.fromkeys(text for kind, text in _ADVICE.items() if 2 * tally[kind] >= count)
    what_to_do = "; ".join([*advice, "take easier problems, or another model"])
    because = f" ({why})" if why else ""
    return (
        f"0 of {count} responses {where} are right: nothing to learn{because}. {what_to_do[0].upper()}{what_to_do[1:]}."
    )
