"""The math verifier on its corpora: no trick is right, few equivalent forms are missed, nothing hangs."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vapo.tasks.verifiers.pool import Limits, VerifierPool
from vapo.types import Prompt

CORPORA = Path(__file__).parents[1] / "corpora"
SENTINEL = Path("/tmp/HOSTILE_EXECUTED")
LIMIT_S = 1.0


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool("math", workers=1, limits=Limits(time_s=LIMIT_S)) as pool:
        yield pool


def corpus(name: str) -> list[tuple[Prompt, str]]:
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (CORPORA / f"{name}.jsonl").read_bytes().split(b"\n") if line
    ]
    items = []
    for number, row in enumerate(rows):
        if build := row.get("build"):
            row["response"] = build["prefix"] + build["repeat"] * build["times"] + build["suffix"]
        items.append((Prompt(f"{name}-{number}", row["kind"], row["gold"]), row["response"]))
    return items


def test_no_trick_is_right(pool):
    items = corpus("tricks")
    assert len(items) >= 100
    rewarded = [(p.answer, r) for (p, r), v in zip(items, pool.judge(items), strict=True) if v.right]
    assert rewarded == []


def test_at_most_one_equivalent_form_in_a_hundred_is_missed(pool):
    items = corpus("equivalent")
    assert len(items) >= 300
    missed = [(p.answer, r) for (p, r), v in zip(items, pool.judge(items), strict=True) if not v.right]
    assert len(missed) <= 0.01 * len(items), missed


def test_hostile_answers_are_judged_in_time_without_blocking_the_trainer_or_executing_code(pool):
    items = corpus("hostile")
    assert len(items) >= 60
    SENTINEL.unlink(missing_ok=True)
    slowest, invalid = 0.0, 0
    with heartbeat() as gaps, audited({"exec", "compile", "os.system", "os.exec", "ctypes.dlopen"}) as executed:
        for item in items:
            start = time.monotonic()
            verdict = pool.judge([item])[0]
            slowest = max(slowest, time.monotonic() - start)
            assert not verdict.right, item
            invalid += not verdict.valid
            assert verdict.valid or verdict.reason
    assert slowest < LIMIT_S + 0.5
    assert max(gaps) < 1.0
    assert invalid <= 0.05 * len(items)
    assert executed == []
    assert not SENTINEL.exists()


def test_debatable_pairs_are_judged_as_documented(pool):
    rows = [json.loads(line) for line in (CORPORA / "decided.jsonl").read_bytes().split(b"\n") if line]
    verdicts = pool.judge(corpus("decided"))
    other = [(row["gold"], row["response"]) for row, v in zip(rows, verdicts, strict=True) if v.right != row["right"]]
    assert other == []
    pairs = Counter((row["kind"], row["right"]) for row in rows)
    assert all(pairs[row["kind"], right] >= 5 for row in rows for right in (True, False))


def test_the_table_in_docs_names_every_kind_and_its_examples_are_judged_as_stated(pool):
    table = (Path(__file__).parents[3] / "docs" / "maths.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+) \| `(.+?)` for `(.+?)` \| `(.+?)` for `(.+?)` \|", table, re.MULTILINE)
    kinds = {json.loads(line)["kind"] for line in (CORPORA / "decided.jsonl").read_bytes().split(b"\n") if line}
    assert {kind for kind, *_ in rows} == kinds
    for kind, right, gold, wrong, other in rows:
        items = [(Prompt("p", "q", g), a.replace("⏎", "\n") if "⏎" in a or "boxed" in a or "nswer" in a or "答" in a
                  else f"\\boxed{{{a}}}") for g, a in ((gold, right), (other, wrong))]  # fmt: skip
        assert [v.right for v in pool.judge(items)] == [True, False], kind


def test_each_verdict_has_its_status_and_reason(pool):
    def verdict(gold: str, response: str) -> tuple[str, str]:
        verdict = pool.judge([(Prompt("p", "q", gold), response)])[0]
        return verdict.status, verdict.reason

    assert verdict("5", "It is \\boxed{4}, no, \\boxed{5}.") == ("right", "")
    assert verdict("5", "It is 5.") == ("wrong", "no marked answer")
    assert verdict("5", "\\boxed{}") == ("wrong", "empty answer")
    assert verdict("5", "\\boxed{5 or 6}") == ("wrong", "another value")
    assert verdict("5", "\\boxed{9^{9^{9}}}") == ("wrong", "a power in an exponent")
    assert verdict("5", "\\boxed{the number five}")[1].startswith("words where mathematics")
    assert verdict("5", "\\boxed{" + "5+" * 300 + "5}")[1] == "an answer of 601 characters"
    assert verdict(" ", "\\boxed{5}") == ("invalid", "the gold answer is empty")


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("(100,200)", ["(100, 200)"]),
        ("100,200,300", ["100, 200, 300", "300, 100, 200"]),
        ("3/2", ["1 1/2"]),
        ("\\sqrt{12}", ["√12", "2√3"]),
        ("3,4,5", ["3, 4, and 5"]),
        ("50%", ["50", "0.5"]),
        ("x^{10}", ["x¹⁰"]),
        ("x\\ge 2", ["x>=2", "2 <= x"]),
        ("2\\pi", ["2 pi"]),
        ("\\emptyset", ["\\{\\}"]),
        ("12\\text{ cm}", ["12", "12 centimeters"]),
        ("A", ["(A) 12", "\\text{(A)}"]),
        ("S=\\{1,2\\}", ["\\{2,1\\}"]),
        ("5\\text{ Mg}", ["5"]),
        ("25\\text{ ML}", ["25"]),
        ("10", ["\\binom 5 2", "\\dbinom{5}{2}", "\\binom52"]),
        ("f'(x)", ["f^{\\prime}(x)", "f^\\prime(x)"]),
        ("1, 2, \\ldots, n", ["1,2,\\dots,n", "1, 2, ..., n"]),
        ("-\\infty", ["-infinity", "negative infinity"]),
        ("f(x)=2x", ["f(x) = 2x \\text{ for all } x", "f(x)=2x for every real x"]),
        ("9.8", ["9.8\\ \\mathrm{m/s^{2}}"]),
        ("12\\text{ cm}^2", ["12\\ \\mathrm{cm^{2}}", "12"]),
        ("\\frac12", ["\\mathbf{\\frac{1}{2}}", "\\text{$\\frac{1}{2}$}"]),
        ("17", ["\\boldsymbol{17}", "\\underline{17}", "\\emph{17}"]),
        ("A=\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", ["\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"]),
    ],
)
def test_further_equivalent_forms_are_right(pool, gold, answers):
    for answer in answers:
        assert pool.judge([(Prompt("p", "q", gold), f"\\boxed{{{answer}}}")])[0].right, answer


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        (
            "5",
            [
                "5 million",
                "5 dozen",
                "5 squared",
                "5 xy",
                "5 if n is even",
                "5 less than x",
                "5\\mathrm{i}",
                "x is not = 5",
            ],
        ),
        ("2", ["2 pi", "2 log n", "√12", "2\\mathrm{e}"]),
        ("7", ["x is not = 7", "not x = 7"]),
        ("1/2", ["1/2 of x", "\\frac{1}{2}%"]),
        ("5\\text{ million}", ["5"]),
        ("3 \\sin x", ["3"]),
        ("5\\text{ cm}", ["5\\text{ cm}^2", "5 km"]),
        ("12", ["1 2"]),
        ("56", ["5 \\quad 6"]),
        ("11/2", ["1 1/2"]),
        ("(100,200)", ["100200"]),
        ("101", ["101_2"]),
        ("0.5", ["0.5%"]),
        ("A", ["(A) or (B)"]),
        ("3", ["1 2"]),
        ("1 2", ["3", "12"]),
        ("5\\text{ mg}", ["5\\text{ Mg}", "5\\text{ MG}"]),
        ("3\\text{ km}, 4\\text{ m}", ["4\\text{ km}, 3\\text{ m}"]),
        ("3\\text{ lb } 4\\text{ oz}", ["£3.25"]),
        ("x'", ["x''", "x"]),
        ("no", ["on"]),
        ("f(x)=2x", ["f(x)=2x for some x", "f(x)=3x for all x"]),
        ("\\infty", ["negative infinity"]),
        ("9.8", ["9.8\\ \\mathrm{m^{12}}", "9.8\\ \\mathrm{m{3}}"]),
        ("12\\text{ cm}", ["12\\ \\mathrm{cm^{2}}"]),
        ("17", ["\\underline{18}", "\\emph{17 or 18}", "\\underline{not $17^{1}$}"]),
        ("\\frac12", ["\\text{half of $\\frac{1}{2}$}"]),
        ("20^\\circ C", ["20\\text{ days}", "20^\\circ F"]),
        ("20\\text{ days}", ["20^\\circ C", "20^\\circ"]),
        ("98.6^\\circ F", ["98.6\\text{ dollars}"]),
    ],
)
def test_further_near_misses_are_wrong(pool, gold, answers):
    for answer in answers:
        assert pool.judge([(Prompt("p", "q", gold), f"\\boxed{{{answer}}}")])[0].status == "wrong", answer


class heartbeat:  # noqa: N801
    """Collects the gaps between the ticks of a thread that ticks every 20 ms while the block runs."""

    def __enter__(self) -> list[float]:
        self.gaps: list[float] = [0.0]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.tick)
        self.thread.start()
        return self.gaps

    def tick(self) -> None:
        last = time.monotonic()
        while not self.stop.wait(0.02):
            now = time.monotonic()
            self.gaps.append(now - last)
            last = now

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


class audited:  # noqa: N801
    """Collects these audit events while the block runs. Python cannot remove the hook afterwards."""

    def __init__(self, events: set[str]) -> None:
        self.events, self.seen, self.active = events, [], False

    def __enter__(self) -> list[str]:
        sys.addaudithook(self.hook)
        self.active = True
        return self.seen

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in self.events:
            self.seen.append(event)

    def __exit__(self, *_: object) -> None:
        self.active = False
