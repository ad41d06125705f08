"""Which predictions of `evidence-far-1m` and `evidence-sums` came true.

    python larger.py far-1m/results.json sums/results.json

Each file is the results.json of its study; one of them alone will do. Written before the first run of either.
"""

import json
import sys
from pathlib import Path
from typing import Any

from analysis import CONTROL, lead, verdict

REFERENCE = "vapo without value-pretraining"
GAIN, WITHIN, LOW, LOW_SHARE, LEAST_GAIN, ABOVE = 0.05, 0.06, 0.55, 0.25, 0.15, 0.1

Gap = tuple[float, float, float, bool]
"""A lead with its interval, and whether it remains after the correction."""


def text_of(gap: Gap | None) -> str:
    """The reference's lead with its interval."""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap[:3]) if gap else "no pairs"


def level(gap: Gap | None) -> bool:
    """Whether two methods end close to each other and are not told apart in either direction."""
    return gap is not None and gap[1] <= 0 <= gap[2] and abs(gap[0]) <= WITHIN


def far(methods: dict[str, Any], scores: dict[str, list[float]]) -> None:
    """The predictions of `evidence-far-1m`."""
    means = {name: methods[name]["final"]["mean"] for name in (REFERENCE, "grpo", CONTROL)}
    for axis, name in (("final", "steps"), ("equal_samples_with_pretraining", "samples")):
        for other in ("grpo", CONTROL):
            gap = lead(methods, other, axis)
            verdict(f"ahead of {other} at equal {name}", bool(gap and gap[3]), text_of(gap))
    gain = means[REFERENCE] - means["grpo"]
    verdict(f"ahead of grpo by {GAIN} or more", gain >= GAIN, f"{gain:+.3f}")
    nearer = abs(means[CONTROL] - means["grpo"]) < abs(means[CONTROL] - means[REFERENCE])
    verdict("the control is nearer to grpo", nearer, f"{means[CONTROL]:.3f}")
    low, runs = sum(score < LOW for score in scores[REFERENCE]), len(scores[REFERENCE])
    verdict(f"at most {LOW_SHARE} of its runs end below {LOW}", low <= LOW_SHARE * runs, f"{low} of {runs}")


def sums(methods: dict[str, Any], scores: dict[str, list[float]]) -> None:
    """The predictions of `evidence-sums`."""
    gap = lead(methods, CONTROL, "final")
    verdict(f"within {WITHIN} of {CONTROL}, not told apart", level(gap), text_of(gap))
    for name in (REFERENCE, CONTROL):
        above = methods[name]["final"]["mean"] - methods["grpo"]["final"]["mean"]
        verdict(f"{name} ends {ABOVE} or more above grpo", above >= ABOVE, f"{above:+.3f}")
    print(f"        {REFERENCE} ahead of grpo: {text_of(lead(methods, 'grpo', 'final'))}")
    for name, found in scores.items():
        gain = methods[name]["final"]["mean"] - methods[name]["curves"]["gradient_steps"]["mean"][0]
        verdict(f"{name} gains {LEAST_GAIN} or more", gain >= LEAST_GAIN, f"{gain:+.3f} in {len(found)} runs")


def main() -> None:
    """Print each prediction with what was found."""
    for path in sys.argv[1:]:
        found = json.loads(Path(path).read_text())
        if found["reference"] != REFERENCE:
            raise SystemExit(f"{path}: the reference must be {REFERENCE}: vapo compare --reference {REFERENCE!r}")
        scores: dict[str, list[float]] = {}
        for run in found["runs"]:
            if run["score"] is not None:
                scores.setdefault(run["method"], []).append(run["score"])
        if missing := {REFERENCE, "grpo", CONTROL} - scores.keys():
            raise SystemExit(f"{path} has no finished run of {', '.join(sorted(missing))}.")
        predictions = far if found["runs"][0]["record"]["task"] == "maze" else sums
        predictions({method["method"]: method for method in found["methods"]}, scores)


if __name__ == "__main__":
    main()
