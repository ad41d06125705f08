"""Which predictions of `evidence-maze` and `evidence-chain` came true, beyond those that analysis.py tests.

    cd results/evidence && python other_regimes.py chain/results.json [maze/results.json far/results.json]

The maze: as in the far maze, by less. Chain: at equal steps nobody is told apart from GRPO, and VAPO 2 loses nothing.
Written before the first final run of either.
"""

import sys
from typing import Any

from analysis import AXES, GROUP_METHODS, LEVEL, REFERENCE, lead, verdict

from vapo.study.comparison import read_results, with_reference


def methods_of(path: str, reference: str = REFERENCE) -> dict[str, Any]:
    """A study's methods by name, with their differences to this reference."""
    found = with_reference(read_results(path), reference, path=path)
    return {method["method"]: method for method in found["methods"]}


def by_less(far: dict[str, Any], maze: dict[str, Any]) -> None:
    """VAPO 2 leads in both mazes, in the nearer one by less. At equal seconds it leads in neither; so not asked."""
    for axis in ("final", "equal_samples_with_pretraining"):
        for other in GROUP_METHODS:
            there, here = lead(far, other, axis), lead(maze, other, axis)
            if there and here:
                detail = f"{here[0]:+.3f}, in the far maze {there[0]:+.3f}"
                verdict(f"vapo2 ahead of {other} by less at equal {AXES[axis]}", 0 < here[0] < there[0], detail)


def nothing_to_read(chain: dict[str, Any]) -> None:
    """No method is told apart from GRPO at equal steps after the correction; VAPO 2's interval reaches 0."""
    for name, method in chain.items():
        gap = method["difference"] and method["difference"]["final"]
        if gap and gap["p_holm"] is not None:
            detail = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
            verdict(f"{name} is not told apart from grpo", gap["p_holm"] > LEVEL, detail)
            if name == REFERENCE:
                verdict(f"{name} loses nothing to grpo", gap["high"] >= 0, detail)


def main() -> None:
    """Print each prediction with what was found."""
    chain, *mazes = sys.argv[1:]
    nothing_to_read(methods_of(chain, reference="grpo"))
    if mazes:
        maze, far = mazes
        by_less(methods_of(far), methods_of(maze))


if __name__ == "__main__":
    main()
