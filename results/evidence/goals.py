"""Which goals of the far maze do runs reach? Runs that end low have given up two of the four.

    python goals.py far/results.json far-confirm/results.json

Prints a row for each method: how many of its runs ended with a goal that fewer than one try of ten reaches, the mean
score of these and of the others, and the held-out accuracy by goal.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from vapo.tasks.maze import Maze, MazeOptions

GIVEN_UP = 0.1
FAR = MazeOptions(min_distance=10, max_distance=30)


def by_goal(goals: list[str], run: dict[str, Any], evaluation: int) -> dict[str, float]:
    """The share of right answers by goal in one of the run's evaluations."""
    right = [int(digit, 16) for digit in run["record"]["right"][evaluation]]
    samples = run["evaluations"]["k"][evaluation]
    found = defaultdict[str, list[float]](list)
    for goal, count in zip(goals, right, strict=True):
        found[goal].append(count / samples)
    return {goal: mean(shares) for goal, shares in found.items()}


def row(goals: list[str], runs: list[dict[str, Any]]) -> str:
    """One method's line of the table."""
    ends = [by_goal(goals, run, -1) for run in runs]
    low = [run["score"] for run, end in zip(runs, ends, strict=True) if min(end.values()) < GIVEN_UP]
    kept = [run["score"] for run, end in zip(runs, ends, strict=True) if min(end.values()) >= GIVEN_UP]
    shares = " | ".join(f"{mean(end[goal] for end in ends):.2f}" for goal in sorted(set(goals)))
    scores = " | ".join(f"{mean(some):.3f}" if some else "" for some in (low, kept))
    return f"{len(low)} of {len(runs)} | {scores} | {shares} |"


def main() -> None:
    """Print a table for each file."""
    goals = [str(prompt.answer["goal"]) for prompt in Maze(FAR).heldout]
    for path in sys.argv[1:]:
        found = json.loads(Path(path).read_text())
        runs = defaultdict[str, list[dict[str, Any]]](list)
        for run in found["runs"]:
            runs[run["method"]].append(run)
        print(f"\n{path}\n\n| method | gave a goal up | their score | the others' | {' | '.join(sorted(set(goals)))} |")
        print("|---|--:|--:|--:|" + "--:|" * len(set(goals)))
        start = [by_goal(goals, run, 0) for some in runs.values() for run in some]
        print("| the base | | | | " + " | ".join(f"{mean(s[g] for s in start):.2f}" for g in sorted(set(goals))) + " |")
        for method, some in sorted(runs.items(), key=lambda entry: -mean(run["score"] for run in entry[1])):
            print(f"| {method} | {row(goals, some)}")


if __name__ == "__main__":
    main()
