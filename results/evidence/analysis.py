"""Which of the study's predictions came true: python results/evidence/analysis.py results/evidence/far/results.json

Written before the first final run of the studies `evidence-*`. Differences, intervals and p-values are those of
`vapo compare`: pairs are runs of one base and seed, intervals cover seeds and prompts, p-values are corrected (Holm)
for the number of methods compared.
"""

import json
import sys
from pathlib import Path
from typing import Any

REFERENCE = "vapo2"
GROUP_METHODS = ("grpo", "dapo", "rloo")
WITH_CRITIC = ("vapo", "vapo, k .5", "vapo2", "sao", "bpco", "easyppo")
SHORT_SIGHTED = "vapo, alpha .05"
AXES = {"final": "steps", "equal_samples_with_pretraining": "samples", "equal_seconds": "seconds"}
LADDER = ("ppo", "grpo", "dapo", "vapo")
CONTROL = "vapo with a group baseline"
LEVEL, MARGIN = 0.05, 0.10


def lead(
    methods: dict[str, Any], other: str, axis: str, level: float = LEVEL
) -> tuple[float, float, float, bool] | None:
    """How far the reference is ahead of another method: mean, low, high, and whether that survives the correction
    at this level; None without pairs."""
    difference = methods.get(other, {}).get("difference")
    gap = difference and difference[axis]
    if not gap or gap["mean"] is None or gap["low"] is None:
        return None
    sure = gap["p_holm"] is not None and gap["p_holm"] <= level and gap["mean"] < 0
    return -gap["mean"], -gap["high"], -gap["low"], sure


def verdict(name: str, met: bool, detail: str = "") -> None:
    """Print one line."""
    print(f"{'met    ' if met else 'NOT met'} {name}{': ' if detail else ''}{detail}")


def main() -> None:
    """Print each prediction with what was found."""
    found = json.loads(Path(sys.argv[1]).read_text())
    methods = {method["method"]: method for method in found["methods"]}
    if found["reference"] != REFERENCE:
        raise SystemExit(f"The reference must be {REFERENCE}: vapo compare --reference {REFERENCE}")
    means = {name: method["final"]["mean"] for name, method in methods.items() if method["final"]["mean"] is not None}
    for axis, name in AXES.items():
        leads = {other: found for other in GROUP_METHODS if (found := lead(methods, other, axis))}
        for other, (mean, low, high, sure) in leads.items():
            verdict(f"vapo2 ahead of {other} at equal {name}", sure, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        if leads:
            least = min(mean for mean, *_ in leads.values())
            verdict(f"ahead of all of them by {MARGIN} at equal {name}", least >= MARGIN, f"least {least:+.3f}")
    groups = [means[name] for name in GROUP_METHODS if name in means]
    for name in WITH_CRITIC:
        if name in means and groups:
            ahead = means[name] - max(groups)
            verdict(f"{name} ends {MARGIN} above every group method", ahead >= MARGIN, f"{ahead:+.3f}")
    if SHORT_SIGHTED in means:
        best = max(means, key=lambda name: means[name])
        verdict(f"{SHORT_SIGHTED} does not lead", best != SHORT_SIGHTED, f"the best is {best}, {means[best]:.3f}")
    verdict("no run of vapo2 ends low", methods[REFERENCE]["ended_low"] == 0, str(methods[REFERENCE]["ended_low"]))
    last = min(means, key=lambda name: means[name])
    verdict("ppo is last", last == "ppo", f"{last}, {means[last]:.3f}")
    if all(name in means for name in LADDER):
        ladder = [means[name] for name in LADDER]
        verdict("the ladder is in order", ladder == sorted(ladder), " ".join(f"{n} {means[n]:.3f}" for n in LADDER))
    if CONTROL in means and "grpo" in means:
        nearer = abs(means[CONTROL] - means["grpo"]) < abs(means[CONTROL] - means["vapo"])
        verdict("the control is nearer to grpo than to vapo", nearer, f"{means[CONTROL]:.3f}")


if __name__ == "__main__":
    main()
