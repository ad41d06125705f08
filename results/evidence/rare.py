"""Which predictions of `evidence-far-rare` came true.

    cd results/evidence && python rare.py far-rare/results.json

Written before the study's first run.
"""

import sys

from analysis import CONTROL, lead, verdict

from vapo.study.comparison import read_results, with_reference

REFERENCE = "vapo without value-pretraining"


def main() -> None:
    """Print each prediction with what was found."""
    path = sys.argv[1]
    table = read_results(path)

    def methods_of(reference: str) -> dict[str, dict]:
        return {method["method"]: method for method in with_reference(table, reference, path=path)["methods"]}

    methods = methods_of(REFERENCE)
    for other in ("grpo", CONTROL, "ppo"):
        gap = lead(methods, other, "final")
        detail = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap[:3]) if gap else "no pairs"
        verdict(f"{REFERENCE} ahead of {other} at equal steps", bool(gap and gap[3]), detail)
    means = {name: method["final"]["mean"] for name, method in methods.items()}
    nearer = abs(means[CONTROL] - means["grpo"]) < abs(means[CONTROL] - means[REFERENCE])
    verdict("the control is nearer to grpo", nearer, f"{means[CONTROL]:.3f}")
    for axis, name, ahead in (("final", "steps", True), ("equal_samples_with_pretraining", "samples", False)):
        gap = lead(methods_of("dapo"), "grpo", axis)
        detail = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap[:3]) if gap else "no pairs"
        told = bool(gap and gap[3])
        verdict(f"dapo {'ahead' if ahead else 'not ahead'} of grpo at equal {name}", told == ahead, detail)


if __name__ == "__main__":
    main()
