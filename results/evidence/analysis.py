"""Which of the study's predictions came true: python results/evidence/analysis.py results/evidence/far/results.json

Written before the first run of the studies `evidence-*`. Differences, intervals and p-values are those of
`vapo compare`: pairs are runs of one base and seed, intervals cover seeds and prompts, p-values are corrected (Holm)
for the number of methods compared.
"""

import json
import sys
from pathlib import Path
from typing import Any

REFERENCE = "vapo2"
GROUP_METHODS = ("grpo", "dapo", "rloo")
AXES = {"final": "steps", "equal_samples_with_pretraining": "samples", "equal_seconds": "seconds"}
LADDER = ("ppo", "grpo", "dapo", "vapo")
CONTROL = "vapo with a group baseline"
LEVEL, MARGIN = 0.05, 0.10


def lead(methods: dict[str, Any], other: str, axis: str) -> tuple[float, float, float, bool]:
    """How far the reference is ahead of another method: mean, low, high, and whether that survives the correction."""
    gap = methods[other]["difference"][axis]
    sure = gap["p_holm"] is not None and gap["p_holm"] < LEVEL and gap["mean"] < 0
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
    leads = {(other, axis): lead(methods, other, axis) for other in GROUP_METHODS if other in means for axis in AXES}
    for (other, axis), (mean, low, high, sure) in leads.items():
        verdict(f"vapo2 ahead of {other} at equal {AXES[axis]}", sure, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    for axis, name in AXES.items():
        ahead = [found_lead[0] for (_, one), found_lead in leads.items() if one == axis]
        verdict(f"ahead of all three by {MARGIN} at equal {name}", min(ahead) >= MARGIN, f"least {min(ahead):+.3f}")
    verdict("no run of vapo2 ends low", methods[REFERENCE]["ended_low"] == 0, str(methods[REFERENCE]["ended_low"]))
    verdict("ppo is last", min(means, key=lambda name: means[name]) == "ppo", min(means, key=lambda name: means[name]))
    ladder = [means[name] for name in LADDER]
    verdict("the ladder is in order", ladder == sorted(ladder), " ".join(f"{n} {means[n]:.3f}" for n in LADDER))
    if CONTROL in means:
        nearer = abs(means[CONTROL] - means["grpo"]) < abs(means[CONTROL] - means[REFERENCE])
        verdict("the control is nearer to grpo than to vapo2", nearer, f"{means[CONTROL]:.3f}")


if __name__ == "__main__":
    main()
