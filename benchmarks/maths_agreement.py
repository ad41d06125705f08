"""Measure how often the maths verifier, and math-verify alone, differ from the labels of corpora.

    python benchmarks/maths_agreement.py --out benchmarks/maths_agreement.md
    python benchmarks/maths_agreement.py mine.jsonl

Corpora are those of tests/tasks/corpora and any JSONL with `gold`, `response` and `right` (true where it is missing). A
miss is a right answer called wrong, a false accept a wrong one called right. math-verify alone is its own recipe,
`verify(parse(f"${gold}$"), parse(response))`, with its own time limit. Both run in a worker of their own; what a
worker could not judge (out of time or memory) is counted apart.
"""

from __future__ import annotations

import argparse
import json
import logging
from datetime import date
from importlib.metadata import version
from pathlib import Path

from math_verify import parse, verify

from vapo.tasks.verifiers.pool import Limits, VerifierPool
from vapo.types import Prompt

CORPORA = Path(__file__).parents[1] / "tests" / "tasks" / "corpora"
LABELS = {"equivalent": True, "tricks": False, "hostile": False, "decided": None}
LIMITS = Limits(time_s=1.0)
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
assert verify(parse("$x^2$"), parse("$x*x$"))  # the first parse takes long


def math_verify_alone(response: str, answer: str) -> bool:
    """math-verify's verdict on a whole response."""
    return bool(verify(parse(f"${answer}$"), parse(response)))


def pairs(path: Path, label: bool | None) -> list[tuple[Prompt, str, bool]]:
    """Prompt, response and whether it is right, for each line."""
    items = []
    for number, line in enumerate(path.read_bytes().split(b"\n")):
        if line:
            row = json.loads(line)
            if build := row.get("build"):
                row["response"] = build["prefix"] + build["repeat"] * build["times"] + build["suffix"]
            right = row.get("right", True) if label is None else label
            items.append((Prompt(str(number), "", row["gold"]), row["response"], right))
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="More pairs, as JSONL.")
    parser.add_argument("--out", type=Path, help="Markdown file for the table.")
    arguments = parser.parse_args()
    corpora = [(name, pairs(CORPORA / f"{name}.jsonl", label)) for name, label in LABELS.items()]
    corpora += [(path.stem, pairs(path, None)) for path in arguments.files]
    lines = [
        "| corpus | right pairs | missed by vapo | by math-verify | wrong pairs | accepted by vapo | by math-verify "
        "| not judged, vapo | math-verify |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    verifiers = "math", f"{Path(__file__).resolve()}:math_verify_alone"
    for name, items in sorted(corpora, key=lambda corpus: corpus[0] == "hostile"):  # the slow one last
        counts = []
        for verifier in verifiers:
            with VerifierPool(verifier, workers=1, limits=LIMITS) as pool:
                verdicts = pool.judge([(prompt, response) for prompt, response, _ in items])
            judged = [(verdict, right) for verdict, (_, _, right) in zip(verdicts, items, strict=True)]
            missed = sum(right and verdict.status == "wrong" for verdict, right in judged)
            accepted = sum(verdict.right and not right for verdict, right in judged)
            counts.append((missed, accepted, sum(not verdict.valid for verdict in verdicts)))
        ours, theirs = counts
        positive = sum(right for _, _, right in items)
        cells = positive, ours[0], theirs[0], len(items) - positive, ours[1], theirs[1], ours[2], theirs[2]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
    if arguments.out:
        head = f"# The maths verifier and math-verify alone\n\n`python benchmarks/maths_agreement.py`, {date.today()}, "
        head += f"math-verify {version('math-verify')}. What the columns mean is in the script's first lines."
        note = "vapo was mended on all of these lines, and `decided` follows its rules: this is no estimate for others."
        arguments.out.write_text("\n".join([head, "", *lines, "", note, ""]))


if __name__ == "__main__":
    main()
