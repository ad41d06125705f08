"""Measure verifications per second, per worker and with hostile answers, and the start time of a pool.

    python benchmarks/verifier.py --out benchmarks/verifier.md

Clean are the equivalent forms of tests/tasks/corpora; for the mixed run every tenth is a hostile one. Rounds of both
alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

from vapo.tasks.verifiers.pool import VerifierPool
from vapo.types import Prompt

CORPORA = Path(__file__).parents[1] / "tests" / "tasks" / "corpora"
ROUNDS = 7


def corpus(name: str) -> list[tuple[Prompt, str]]:
    items = []
    for number, line in enumerate((CORPORA / f"{name}.jsonl").read_bytes().split(b"\n")):
        if line:
            row = json.loads(line)
            build = row.get("build")
            response = (
                build["prefix"] + build["repeat"] * build["times"] + build["suffix"] if build else row["response"]
            )
            items.append((Prompt(str(number), "", row["gold"]), response))
    return items


def per_second(pool: VerifierPool, items: list[tuple[Prompt, str]]) -> float:
    start = time.perf_counter()
    pool.judge(items)
    return len(items) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file for the table.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    clean, hostile = corpus("equivalent"), corpus("hostile")
    integers = [(Prompt(str(i), "", str(i)), f"So the answer is \\boxed{{{i}}}.") for i in range(400)]
    lines = [
        "| workers | start, s | integers /s | clean /s | 1 in 10 hostile /s | ratio of clean |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for workers in arguments.workers:
        start = time.perf_counter()
        with VerifierPool("math", workers=workers) as pool:
            started = time.perf_counter() - start
            whole, dirty, numbers = [], [], []
            for turn in range(-1, ROUNDS):  # the first warms up
                # another tenth of the hostile ones each round
                mixed = [
                    hostile[(i + 43 * turn) % len(hostile)] if i % 10 == 0 else item for i, item in enumerate(clean)
                ]
                figures = per_second(pool, integers), per_second(pool, clean), per_second(pool, mixed)
                if turn >= 0:
                    for column, figure in zip((numbers, whole, dirty), figures, strict=True):
                        column.append(figure)
        middle = [statistics.median(column) for column in (numbers, whole, dirty)]
        spread = [f"{statistics.median(c):.0f} ({min(c):.0f}-{max(c):.0f})" for c in (numbers, whole, dirty)]
        lines.append(f"| {workers} | {started:.1f} | {' | '.join(spread)} | {middle[2] / middle[1]:.2f} |")
        print(lines[-1], flush=True)
    if arguments.out:
        head = f"# Verifications per second\n\n`python benchmarks/verifier.py`, {date.today()}, {platform.machine()}, "
        head += f"Python {platform.python_version()}; medians of {ROUNDS} rounds (lowest-highest)."
        arguments.out.write_text("\n".join([head, "", *lines, ""]))


if __name__ == "__main__":
    main()
