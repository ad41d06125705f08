"""Measure the coverage of intervals of paired differences in simulated studies. Writes intervals.md next to this file.

    python benchmarks/intervals.py

Two equal methods are scored on the same 200 prompts with 16 samples each; each run's luck shifts all of its
prompts by a normal draw. A 95 % interval of their difference should hold 0 in 95 % of the studies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vapo.study.comparison.bootstrap import paired_estimate

STUDIES, PROMPTS, SAMPLES = 400, 200, 16


def scores(luck: np.random.Generator, difficulty: np.ndarray, runs: int, spread: float) -> np.ndarray:
    """One method's (runs, prompts) success rates."""
    rates = difficulty + luck.normal(0, spread, (runs, 1)) + luck.normal(0, 0.1, (runs, PROMPTS))
    return luck.binomial(SAMPLES, rates.clip(0, 1)) / SAMPLES


def main() -> None:
    lines = [
        f"{STUDIES} simulated studies of two equal methods, {PROMPTS} prompts, avg@{SAMPLES}; share of 95 % intervals",
        "that hold the truth, and their median width.",
        "",
        "| spread of seeds | runs | hold the truth | width |",
        "|--:|--:|--:|--:|",
    ]
    for spread in (0.05, 0.005):
        for runs in (2, 3, 5, 8):
            luck, held, widths = np.random.default_rng(0), 0, []
            for study in range(STUDIES):
                difficulty = luck.random(PROMPTS)
                sides = [scores(luck, difficulty, runs, spread) for _ in range(2)]
                found = paired_estimate(*sides, ["base"] * runs, resamples=1000, seed=study)
                held += found.low <= 0 <= found.high
                widths.append(found.high - found.low)
            lines.append(f"| {spread} | {runs} | {held / STUDIES:.1%} | {np.median(widths):.3f} |")
            print(lines[-1])
    (Path(__file__).parent / "intervals.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
