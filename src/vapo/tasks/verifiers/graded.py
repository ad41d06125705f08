"""Detects graded scores where a reward is 0 or 1: a score in between counts as wrong there, and the user is informed.

A verdict is graded if it is wrong and `Verdict.score` is a number other than 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from vapo.errors import ConfigError
from vapo.types import Verdict

FEWEST_SCORES = 8
"""The verifier is refused after this many scores if none of them was 0 or right."""


def graded_score(verdict: Verdict) -> float | None:
    """The score of a wrong verdict if it is not 0, else None."""
    return verdict.score or None if verdict.status == "wrong" else None


def graded_notes(verifier: str, verdicts: Sequence[Verdict], right_at: float) -> list[str]:
    """One note with the first graded score among the verdicts; empty if no score is graded."""
    first = next((score for verdict in verdicts if (score := graded_score(verdict)) is not None), None)
    if first is None:
        return []
    return [
        f"{verifier} gave the score {first:g}, which counts as wrong: a response is right if its score is at least "
        f"task.right_at={right_at:g}, and wrong otherwise. For partial reward set algorithm.reward.by=score"
    ]


class FirstScores:
    """Checks the first scores of a verifier until one of them is 0 or right.

    Set `passed` for a verifier that has judged a gold answer right: with scores of -1 and 1 all responses of a policy
    that begins at 0 are -1.
    """

    def __init__(self, verifier: str, right_at: float) -> None:
        self.verifier, self.right_at = verifier, right_at
        self.scores: list[float] = []
        self.passed = False

    def check(self, verdicts: Sequence[Verdict]) -> None:
        """Add the scores of these verdicts; ConfigError if `FEWEST_SCORES` came and none was 0 or right."""
        if self.passed:
            return
        scores = [graded_score(verdict) for verdict in verdicts if verdict.valid]
        self.passed = None in scores
        self.scores += [score for score in scores if score is not None]
        if not self.passed and len(self.scores) >= FEWEST_SCORES:
            raise ConfigError(
                f"The verifier {self.verifier} gave none of the first {len(self.scores)} responses a score of 0 or 1; "
                f"the first was {self.scores[0]:g}. All of them count as wrong. Return 1 or True for a right answer "
                f"and 0 or False for a wrong one, set task.right_at (now {self.right_at:g}) to the lowest score that "
                "is right, or let scores count with algorithm.reward.by=score."
            )
