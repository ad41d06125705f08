"""Which predictions of `evidence-far-confirm` came true: its table, then the same runs with VAPO 2 as reference.

    cd results/evidence && python confirm.py far-confirm/results.json far-confirm/vapo2-as-reference.json

Written before the study's first run. The second file is that of `vapo compare RUNS --reference "vapo2 without ..."`.
"""

import json
import sys
from pathlib import Path

from analysis import AXES, CONTROL, GROUP_METHODS, lead, verdict

LEVEL, LOW_ENDS, GAIN = 0.025, 2, (0.05, 0.15)


def main() -> None:
    """Print each prediction with what was found, for each of the two references."""
    for path in sys.argv[1:]:
        found = json.loads(Path(path).read_text())
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
