"""Whether the study `residual` confirms what it was to confirm: python results/residual/analysis.py results.json

Written with the study, before its first run; since then Holm's correction is that of `vapo compare`. Scores are final
avg@16; pairs are runs of one seed.
"""

import json
import random
import statistics
import sys
from math import sqrt
from pathlib import Path

from vapo.study.comparison.bootstrap import t_over_normal
from vapo.study.comparison.multiple import holm

RESIDUAL, ABSOLUTE, GRPO = "residual, k = .5", "absolute, k = .5", "grpo"
DRAWS = 10_000


def scores(path: Path) -> dict[str, dict[int, float]]:
    """The final score of each finished run, by method and seed."""
    found: dict[str, dict[int, float]] = {}
    for run in json.loads(path.read_text())["runs"]:
        if run["outcome"] == "finished":
            found.setdefault(run["method"], {})[run["seed"]] = run["score"]
    return found


def swapped_p(first: list[float], second: list[float], statistic) -> float:
    """One-sided p of a statistic of pairs, by swapping each pair or not at random."""
    rng, seen = random.Random(0), statistic(first, second)  # noqa: S311 - not for secrets
    hits = 0
    for _ in range(DRAWS):
        pairs = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in zip(first, second, strict=True)]
        hits += statistic(*map(list, zip(*pairs, strict=True))) >= seen - 1e-12
    return (hits + 1) / (DRAWS + 1)


def mean_gain(first: list[float], second: list[float]) -> float:
    """How much higher the first mean is."""
    return statistics.fmean(first) - statistics.fmean(second)


def narrower_by(first: list[float], second: list[float]) -> float:
    """How much smaller the first variance is."""
    return statistics.variance(second) - statistics.variance(first)


def main() -> None:
    """Print scores, differences and verdicts."""
    by_method = scores(Path(sys.argv[1]))
    for method, by_seed in by_method.items():
        each = [by_seed[seed] for seed in sorted(by_seed)]
        spread = f"sd {statistics.stdev(each):.3f}, lowest {min(each):.3f}, {len(each)} seeds"
        print(f"{method}: {statistics.fmean(each):.3f}, {spread}")
    claims: dict[str, float] = {}
    for other in (GRPO, ABSOLUTE):
        seeds = sorted(by_method[RESIDUAL].keys() & by_method[other].keys())
        ours, theirs = ([by_method[name][seed] for seed in seeds] for name in (RESIDUAL, other))
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        half = 1.96 * t_over_normal(len(gains) - 1) * statistics.stdev(gains) / sqrt(len(gains))
        ahead = sum(gain > 0 for gain in gains)
        print(f"residual - {other}: {statistics.fmean(gains):+.3f} ± {half:.3f} (95 %, t), ahead in {ahead}")
        claims[f"mean above {other}"] = swapped_p(ours, theirs, mean_gain)
    # the last pair is the absolute critic's
    centred = [[score - statistics.fmean(each) for score in each] for each in (ours, theirs)]
    claims["narrower than absolute"] = swapped_p(*centred, narrower_by)
    for claim, p in zip(claims, holm(list(claims.values())), strict=True):
        print(f"{claim}: {'confirmed' if p < 0.05 else 'not confirmed'}, p = {p:.4f} after Holm's correction")


if __name__ == "__main__":
    main()
