"""Counts of verdicts as metrics, and the message for steps in which no outcome differs from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from vapo.algo.method import Algorithm
from vapo.errors import command, counted
from vapo.metrics import METRICS
from vapo.tasks.registry import BUILTIN
from vapo.types import KINDS, Episode

NOTHING_RIGHT, NOTHING_WRONG, EQUAL_SCORES = "nothing right", "nothing wrong", "equal scores"
SAMENESS = (NOTHING_RIGHT, NOTHING_WRONG, EQUAL_SCORES)
EQUAL = 1e-6
"""Outcomes of no larger standard deviation are equal: it is rounding."""
WHY = (*KINDS, "cut_off")
"""Why responses are wrong. A response has one of the kinds, and may be cut off besides."""
_FIGURES = {"mean": fmean, "std": pstdev}
_WORDS = {
    "no_answer": "without a marked answer",
    "unreadable": "with an answer that could not be read",
    "wrong_answer": "with another answer",
    "cut_off": "cut off at the length limit",
}
_ADVISED = ("cut_off", "no_answer", "unreadable", "unspecified")
"""Reasons whose advice is given where half of the responses are wrong for them; the table of metrics has it."""
_FORMLESS = ("no_answer", "unreadable")
"""Reasons that say that the model does not know the form of an answer."""


def figures_of(tally: Mapping[str, int]) -> dict[str, float]:
    """`verdict/judged`, the number of valid verdicts, and `verdict/reason/*`, the share wrong for each reason."""
    judged = tally["responses"]
    shares = {f"verdict/reason/{why}": tally[why] / judged if judged else float("nan") for why in WHY}
    return {"verdict/judged": judged, **shares}


def reward_figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """`rewards/NAME/mean` and `/std`: the parts of the verdicts, over the responses that have them."""
    parts: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.verdict.parts.items():
            parts.setdefault(name, []).append(value)
    return {
        f"rewards/{name}/{what}": figure(values) for name, values in parts.items() for what, figure in _FIGURES.items()
    }


def turn_figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """`turns/mean`, turns of the policy in an episode, and `turns/environment_ratio`, the environment's share of the
    tokens."""
    written = [own for episode in episodes for own in episode.written]
    return {
        "turns/mean": fmean(episode.num_turns for episode in episodes),
        "turns/environment_ratio": 1 - fmean(written) if written else float("nan"),
    }


def tally_of(figures: Mapping[str, Any]) -> dict[str, int]:
    """The counts of `vapo.rollout.collect.tally`, from the step's metrics; all 0 if nothing was judged."""
    judged = int(figures.get("verdict/judged") or 0)
    shares = {"right": figures.get("accuracy"), **{why: figures.get(f"verdict/reason/{why}") for why in WHY}}
    return {
        "responses": judged,
        **{name: round((share or 0) * judged) if judged else 0 for name, share in shares.items()},
    }


def sameness(tally: Mapping[str, int]) -> str | None:
    """NOTHING_RIGHT, NOTHING_WRONG, or None for a step with right and wrong responses, or with none."""
    if not tally["responses"]:
        return None
    return {0: NOTHING_RIGHT, tally["responses"]: NOTHING_WRONG}.get(tally["right"])


def sameness_of_scores(figures: Mapping[str, Any], tally: Mapping[str, int], algorithm: Algorithm) -> str | None:
    """`sameness` of a step whose outcomes are scores: EQUAL_SCORES; or NOTHING_RIGHT and NOTHING_WRONG where the method
    also asks what is right, for the LM loss or dynamic sampling."""
    if not tally["responses"]:
        return None
    if (figures.get("reward_std") or 0.0) <= EQUAL:
        return EQUAL_SCORES
    asks = algorithm.positive_lm > 0 or algorithm.sampling.refill_rounds > 0
    return sameness(tally) if asks else None


def lesson_of_scores(same: str, tally: Mapping[str, int], where: str, mean: float) -> str:
    """`lesson` where outcomes are scores; `mean` is that of the last responses."""
    count = tally["responses"]
    if same == EQUAL_SCORES:
        return (
            f"The {counted(count, 'response')} {where} have equal outcomes (mean {mean:.3g}): nothing to learn. "
            "Look in the rollouts at what the reward functions (task.verifier) are given; take other problems, or "
            "another model."
        )
    share, change = ("0 of", "Lower") if same == NOTHING_RIGHT else ("All", "Raise")
    return (
        f"{share} {counted(count, 'response')} {where} count as right, though their scores differ (mean {mean:.3g}). "
        "The policy learns from the scores; the LM loss on right responses and dynamic sampling need some that are "
        f"right and some that are not. {change} task.right_at, the score from which a response is right."
    )


def lesson(tally: Mapping[str, int], where: str, task: str = "") -> str:
    """The alarm for equal outcomes: why, and what to do. `where` says which responses, such as "in 5 steps"; `task` is
    the task's name, since the prompts of a built-in one cannot be changed."""
    count = tally["responses"]
    if sameness(tally) == NOTHING_WRONG:
        all_right = f"All {count:,} responses {where} are" if count > 1 else f"The only response {where} is"
        return f"{all_right} right: nothing is left to learn. Take harder problems, or stop here."
    reasons = ", ".join(f"{tally[why]} {words}" for why, words in _WORDS.items() if tally[why])
    often = [why for why in _ADVISED if 2 * tally[why] >= count]
    advice = dict.fromkeys(_advice(why, task) for why in often)
    what_to_do = "; ".join([*advice, "take easier problems, or another model"])
    because = f" ({reasons})" if reasons else ""
    advised = f"{what_to_do[0].upper()}{what_to_do[1:]}."
    are = "is" if count == 1 else "are"
    return f"0 of {counted(count, 'response')} {where} {are} right: nothing to learn{because}. {advised}"


def _advice(why: str, task: str) -> str:
    """What to do about responses that are wrong for this reason."""
    if task in BUILTIN and why in _FORMLESS:
        return f"take a base model that was trained for longer ({command('make-base', task, '--recipe', 'steps=N')})"
    return METRICS[f"verdict/reason/{why}"].plain_advice
