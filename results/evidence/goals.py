"""Which goals of the maze do runs reach? Most runs of the far maze that end low have given up two of the four.

    python goals.py far/results.json far-confirm/results.json far-rare/results.json far-removals/results.json …

Prints two tables for each file. By method: how many of its runs gave up a goal, which is to end with it right in fewer
than GIVEN_UP of the tries; the mean score of these and of the others; the share of right answers by goal; and what the
goal's name alone explains of the outcomes' variance. Then the share of right answers by pair of goals along training.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import correlation, mean
from typing import Any

from vapo.tasks.maze import Maze, MazeOptions
from vapo.types import stable_hash

GIVEN_UP, LOW = 0.1, 0.55
MAZES = {
    "74ad1dd9807ae47e": (MazeOptions(min_distance=10, max_distance=30), 2401407767233505713),
    "524f215dbbed1319": (MazeOptions(), 7545058918519358432),
}
"""By the set of an evaluation: its maze, and a hash of the prompts in order."""
PAIRS = (("cave", "tower"), ("lake", "mill"))

Run = dict[str, Any]
"""An entry of `runs` in a results.json."""


def heldout_goals(run: Run) -> list[str]:
    """The goal of each held-out prompt, in order. Ends the program if the task's prompts are no longer the run's."""
    options, held_out = MAZES[run["record"]["sets"][-1]]
    prompts = Maze(options).heldout
    if stable_hash([prompt.id for prompt in prompts]) != held_out:
        raise SystemExit("The held-out prompts of the maze have changed since these runs.")
    return [str(prompt.answer["goal"]) for prompt in prompts]


def right_shares(run: Run, evaluation: int) -> list[float]:
    """The share of right answers to each held-out prompt in one of the run's evaluations."""
    samples = run["evaluations"]["k"][evaluation]
    return [int(digit, 36) / samples for digit in run["record"]["right"][evaluation]]


def by_goal(goals: list[str], run: Run, evaluation: int) -> dict[str, float]:
    """The share of right answers by goal in one of the run's evaluations."""
    found = defaultdict[str, list[float]](list)
    for goal, share in zip(goals, right_shares(run, evaluation), strict=True):
        found[goal].append(share)
    return {goal: mean(found[goal]) for goal in sorted(found)}


def by_pair(goals: list[str], run: Run, evaluation: int) -> list[float]:
    """The share of right answers to prompts of each pair of goals."""
    shares = right_shares(run, evaluation)
    return [mean(share for share, goal in zip(shares, goals, strict=True) if goal in pair) for pair in PAIRS]


def goal_explains(goals: list[str], run: Run) -> float:
    """The share of the outcomes' variance after training that the goal's name explains."""
    end, shares = by_goal(goals, run, -1), right_shares(run, -1)
    accuracy = mean(shares)
    return mean((end[goal] - accuracy) ** 2 for goal in goals) / (accuracy * (1 - accuracy))


def ends(goals: list[str], runs: list[Run]) -> str:
    """One method's cells in the table of ends."""
    last = [by_goal(goals, run, -1) for run in runs]
    gave_up = [run["score"] for run, end in zip(runs, last, strict=True) if min(end.values()) < GIVEN_UP]
    others = [run["score"] for run, end in zip(runs, last, strict=True) if min(end.values()) >= GIVEN_UP]
    cells = [f"{len(gave_up)} of {len(runs)}", *(f"{mean(some):.3f}" if some else "" for some in (gave_up, others))]
    cells += [f"{mean(end[goal] for end in last):.2f}" for goal in last[0]]
    return " | ".join([*cells, f"{mean(goal_explains(goals, run) for run in runs):.2f}"])


def along(goals: list[str], runs: list[Run]) -> str:
    """One method's cells in the table along training."""
    pairs = [
        [mean(by_pair(goals, run, place)[pair] for run in runs) for pair in range(len(PAIRS))]
        for place in range(len(runs[0]["evaluations"]["step"]))
    ]
    return " | ".join(", ".join(f"{share:.2f}" for share in shares) for shares in pairs)


def low_runs(goals: list[str], runs: list[Run]) -> str:
    """What the runs below LOW have in common."""
    lost = [sum(share < GIVEN_UP for share in by_goal(goals, run, -1).values()) for run in runs if run["score"] < LOW]
    last = [by_pair(goals, run, -1)[1] for run in runs]
    # where no run answers lake or mill, they tell nothing of the scores
    explained = correlation([run["score"] for run in runs], last) ** 2 if len(set(last)) > 1 else 0.0
    return (
        f"{sum(count >= 2 for count in lost)} of the {len(lost)} runs below {LOW} gave up two goals or more, "
        f"{lost.count(1)} one, {lost.count(0)} none. The accuracy on lake and mill explains {explained:.2f} of the "
        f"variance of the {len(runs)} scores."
    )


def main() -> None:
    """Print the tables of each file."""
    for path in sys.argv[1:]:
        runs = defaultdict[str, list[Run]](list)
        for run in json.loads(Path(path).read_text())["runs"]:
            if run["score"] is not None:
                runs[run["method"]].append(run)
        goals = heldout_goals(next(iter(runs.values()))[0])
        methods = sorted(runs, key=lambda method: -mean(run["score"] for run in runs[method]))
        names = sorted(set(goals))
        columns = ["method", "gave a goal up", "score of these", "of the others", *names, "goal explains"]
        print(f"\n{path}\n\n| {' | '.join(columns)} |")
        print("|---" + "|--:" * (len(names) + 4) + "|")
        for method in methods:
            print(f"| {method} | {ends(goals, runs[method])} |")
        steps = [str(step) for step in runs[methods[0]][0]["evaluations"]["step"]]
        pairs = "; ".join(" and ".join(pair) for pair in PAIRS)
        print(f"\n| {pairs}, at step | {' | '.join(steps)} |\n|---" + "|--:" * len(steps) + "|")
        for method in methods:
            print(f"| {method} | {along(goals, runs[method])} |")
        print(f"\n{low_runs(goals, [run for method in methods for run in runs[method]])}")


if __name__ == "__main__":
    main()
