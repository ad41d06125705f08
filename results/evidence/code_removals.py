"""Which predictions of `evidence-code-removals` came true: python code_removals.py code-removals/results.json

Written before the study's first run.
"""

import json
import sys
from pathlib import Path

from analysis import LEVEL, verdict

SHORTEST, NEAR = "vapo2, alpha = .05", 0.03


def main() -> None:
    """Print each prediction with what was found."""
    found = json.loads(Path(sys.argv[1]).read_text())
    for method in found["methods"]:
        name, gap = method["method"], method["difference"] and method["difference"]["final"]
        if name == found["reference"] or not gap:
            continue
        sure, detail = gap["p_holm"] <= LEVEL, "{mean:+.3f} [{low:+.3f}, {high:+.3f}], p {p_holm:.3f}".format(**gap)
        if name == SHORTEST:
            verdict(f"{name} is {NEAR} or more below, told apart", sure and gap["mean"] <= -NEAR, detail)
        else:
            verdict(f"{name} is within {NEAR}, not told apart", not sure and abs(gap["mean"]) <= NEAR, detail)


if __name__ == "__main__":
    main()
