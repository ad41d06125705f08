"""Which predictions of `evidence-far-confirm` came true: for its reference, then for VAPO 2 in its place.

    cd results/evidence && python confirm.py far-confirm/results.json

Written before the study's first run.
"""

import sys

from analysis import AXES, CONTROL, GROUP_METHODS, lead, verdict

from vapo.study.comparison import read_results, with_reference

SECOND_REFERENCE = "vapo2 without value-pretraining"
LEVEL, LOW_ENDS, GAIN = 0.025, 2, (0.05, 0.15)


def main() -> None:
    """Print each prediction with what was found, for each of the two references."""
    table = read_results(sys.argv[1])
    for found in (table, with_reference(table, SECOND_REFERENCE, path=sys.argv[1])):
        methods = {method["method"]: method for method in found["methods"]}
        reference = found["reference"]
        for axis, name in AXES.items():
            for other in GROUP_METHODS:
                gap = lead(methods, other, axis, LEVEL)
                detail = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap[:3]) if gap else "no pairs"
                verdict(f"{reference} ahead of {other} at equal {name}", bool(gap and gap[3]), detail)
        means = {name: method["final"]["mean"] for name, method in methods.items()}
        gain = means[reference] - means["grpo"]
        verdict(f"{reference} above grpo by {GAIN[0]} to {GAIN[1]}", GAIN[0] <= gain <= GAIN[1], f"{gain:+.3f}")
        ends = methods[reference]["ended_low"]
        verdict(f"at most {LOW_ENDS} runs of {reference} end low", ends <= LOW_ENDS, str(ends))
        above, beside = means[reference] - means[CONTROL], abs(means[CONTROL] - means["grpo"])
        verdict(f"the control is below {reference}, nearer to grpo", above > 0 and beside < above, f"{-above:+.3f}")


if __name__ == "__main__":
    main()
