"""Scores between right and wrong: rewards are outcomes, so a user whose function gives partial credit is told."""

from __future__ import annotations

from collections.abc import Sequence

from vapo.errors import ConfigError
from vapo.types import Verdict

GRADED = "graded score "
"""How the reason begins of a wrong verdict whose score was not 0."""
FEWEST = 8
"""So many scores without a 0 or a 1 among them are no chance."""


def graded_score(verdict: Verdict) -> str | None:
    """The score that a wrong verdict stands for if it was not 0, else None."""
    wrong = verdict.status == "wrong" and verdict.reason.startswith(GRADED)
    return verdict.reason.removeprefix(GRADED) if wrong else None


def about_graded(verifier: str, verdicts: Sequence[Verdict], right_at: float) -> list[str]:
    """A note that names the first graded score; none if there is none."""
    first = next((score for verdict in verdicts if (score := graded_score(verdict)) is not None), None)
    if first is None:
        return []
    return [
        f"{verifier} gave the score {first}, which counts as wrong: a response is right from task.right_at = "
        f"{right_at:g} on, or wrong; there is no partial reward"
    ]


class FirstScores:
    """Watches the first scores of a verifier, until one is 0 or right."""

    def __init__(self, verifier: str, right_at: float) -> None:
        self.verifier, self.right_at = verifier, right_at
        self.scores: list[str] = []
        self.passed = False

    def check(self, verdicts: Sequence[Verdict]) -> None:
        """Nothing. ConfigError once `FEWEST` scores came and none was 0 or counted as right."""
        if self.passed:
            return
        scores = [graded_score(verdict) for verdict in verdicts if verdict.valid]
        self.passed = None in scores
        self.scores += [score for score in scores if score is not None]
        if not self.passed and len(self.scores) >= FEWEST:
            raise ConfigError(
                f"The verifier {self.verifier} gave none of the first {len(self.scores)} responses a score of 0 or 1; "
                f"the first was {self.scores[0]}. They all count as wrong. Give 1 or True for a right answer and 0 "
                f"or False for a wrong one, or set task.right_at (now {self.right_at:g}) to the score that is right."
            )
