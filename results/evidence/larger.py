"""Which predictions of `evidence-far-1m` and `evidence-sums` came true.

    python larger.py far-1m/results.json sums/results.json

Written before the first run of either.
"""

import json
import sys
from pathlib import Path
from typing import Any

from analysis import AXES, CONTROL, lead, verdict

REFERENCE = "vapo without value-pretraining"
GAIN, LEVEL_WITHIN, LOW_SHARE = 0.05, 0.06, 0.25


def gap_text(gap: tuple[float, float, float, bool] | None) -> str:
    """The reference's lead with its interval."""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap[:3]) if gap else "no pairs"


def far(methods: dict[str, Any], means: dict[str, float], runs: int) -> None:
    """The predictions of `evidence-far-1m`; `runs` of the reference have ended."""
    for axis, name in AXES.items():
        if axis == "equal_seconds":
            continue  # the runs shared a GPU
        for other in ("grpo", CONTROL):
            gap = lead(methods, other, axis)
            verdict(f"ahead of {other} at equal {name}", bool(gap and gap[3]), gap_text(gap))
    gain = means[REFERENCE] - means["grpo"]
    verdict(f"ahead of grpo by {GAIN} or more", gain >= GAIN, f"{gain:+.3f}")
    nearer = abs(means[CONTROL] - means["grpo"]) < abs(means[CONTROL] - means[REFERENCE])
    verdict("the control is nearer to grpo", nearer, f"{means[CONTROL]:.3f}")
    low = methods[REFERENCE]["ended_low"]
    verdict(f"at most {LOW_SHARE} of its runs end low", low <= LOW_SHARE * runs, f"{low} of {runs}")


def sums(methods: dict[str, Any], means: dict[str, float], _: int) -> None:
    """The predictions of `evidence-sums`."""
    for other in ("grpo", CONTROL, "dapo", "ppo"):
        gap = lead(methods, other, "final")
        print(f"        ahead of {other} at equal steps: {gap_text(gap)}{', certain' if gap and gap[3] else ''}")
    gap = lead(methods, "grpo", "final")
    level = gap is not None and not gap[3] and abs(gap[0]) <= LEVEL_WITHIN
    verdict(f"within {LEVEL_WITHIN} of grpo, not told apart", level, gap_text(gap))
    nearer = abs(means[CONTROL] - means[REFERENCE]) < abs(means[CONTROL] - means["grpo"])
    verdict("the control is nearer to it than to grpo", nearer, f"{means[CONTROL]:.3f}")
    last = min(means, key=lambda name: means[name])
    verdict("ppo is last", last == "ppo", f"{last}, {means[last]:.3f}")


def main() -> None:
    """Print each prediction with what was found."""
    for path, predictions in zip(sys.argv[1:], (far, sums), strict=True):
        found = json.loads(Path(path).read_text())
        if found["reference"] != REFERENCE:
            raise SystemExit(f"{path}: the reference must be {REFERENCE}: vapo compare --reference {REFERENCE!r}")
        methods = {method["method"]: method for method in found["methods"]}
        means = {name: m["final"]["mean"] for name, m in methods.items() if m["final"]["mean"] is not None}
        predictions(methods, means, sum(run["method"] == REFERENCE for run in found["runs"]))


if __name__ == "__main__":
    main()
