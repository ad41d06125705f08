"""Which predictions of `evidence-far-critics` came true: python critics.py far-critics/results.json

Written before the study's first run.
"""

import json
import sys
from pathlib import Path

from analysis import LEVEL, verdict

FROM_REWARD_MODEL = ("vapo, reward model", "vapo, reward model, 2,048 responses")
NEAR, COST = 0.05, 0.1


def main() -> None:
    """Print each prediction with what was found."""
    found = json.loads(Path(sys.argv[1]).read_text())
    differences = {method["method"]: method["difference"] for method in found["methods"] if method["difference"]}
    differences.pop(found["reference"], None)
    for name, axes in differences.items():
        gap = axes["final"]
        detail = "{mean:+.3f} [{low:+.3f}, {high:+.3f}], p {p_holm:.3f}".format(**gap)
        verdict(f"{name} is not told apart at equal steps", gap["p_holm"] > LEVEL, detail)
    for name in FROM_REWARD_MODEL:
        gap = differences[name]["equal_samples_with_pretraining"]
        detail = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gap)
        verdict(f"{name} is {COST} or more behind at equal samples", gap["mean"] <= -COST, detail)
    explained = {critic["critic"].removeprefix("critic "): critic["explained_variance"] for critic in found["critics"]}
    raw, fitted, base = (explained[name] for name in ("reward-model", "reward-model-pretrained", "longer"))
    verdict("the reward model explains less than nothing", raw < 0, f"{raw:+.3f}")
    verdict(
        f"pretrained it explains within {NEAR} of the base's", abs(fitted - base) <= NEAR, f"{fitted:.3f}, {base:.3f}"
    )


if __name__ == "__main__":
    main()
