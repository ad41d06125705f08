"""Is the marked answer the gold one? Runs in worker processes only; math-verify compares what is not plain.

An answer is taken apart first (lists, sets, intervals, tuples, matrices, equations), so that the library is asked
about single expressions: whether order and brackets count is decided here, where it can be read.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from vapo.errors import ConfigError
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.notation import MAX_ANSWER, number, split_unit, squeezed, tidy, too_wild, word_in
from vapo.types import Prompt, Verdict, Verifier

_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?: ?\([^()=]*\))?|\([A-Za-z](?:, ?[A-Za-z])+\)")
_MEMBER = re.compile(r"[a-zA-Z] ?\\in(?![a-z])(.*)")
_MATRIX = re.compile(r"[(\[]? ?\\begin\{([pb]?matrix)\}(.*?)\\end\{\1\} ?[)\]]?")
_RELATION = re.compile(r"<|>|\\(?:le|leq|ge|geq|lt|gt|ne|neq|in)(?![a-z])")
_BASE = re.compile(r"\d_\{?\d")  # 101_2: no digits of ten
_CHOICE = re.compile(r"[A-Z]")
_WORD = re.compile(r"[^\W\d_]{2,}(?:[ '-]+[^\W\d_]{2,})*")
MAX_ITEMS = 40
WARM_UP = (
    ("x^2+2x+1", "(x+1)^{2}"),
    ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
    ("2\\pi", "6.28"),
    ("\\sin{x}<1", "\\log(2)!"),
)


def make_verifier() -> Verifier:
    """`verify_maths` with math-verify imported and its parser warm, which takes a second; ConfigError without it."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ConfigError("The math verifier needs math-verify: pip install math-verify.") from error
    for gold, answer in WARM_UP:
        expressions_equal(gold, answer)
    return verify_maths


def verify_maths(prompt: Prompt, response: str) -> Verdict:
    """Right if the last marked answer of the response equals `prompt.answer`, a string.

    An answer that is unmarked, empty, hedged ("5 or 6" for 5), longer than `MAX_ANSWER` characters, or too wild
    to evaluate is wrong, with the reason; so is one that math-verify cannot read. An empty gold answer is invalid.
    """
    answer = last_answer(response)
    if answer is None:
        return Verdict("wrong", "no marked answer", "no_answer")
    if not answer.strip():
        return Verdict("wrong", "empty answer", "no_answer")
    return compare(str(prompt.answer), answer)


def compare(gold: str, answer: str) -> Verdict:
    """The verdict on an answer that was found."""
    if len(answer) > MAX_ANSWER:
        return Verdict("wrong", f"an answer of {len(answer)} characters", "unreadable")
    if not gold.strip():
        return Verdict("invalid", "the gold answer is empty")
    if same_words(gold, answer):
        return Verdict("right")
    asked = tidy(gold)
    if _letters(asked):
        return Verdict("wrong", "another word", "wrong_answer")
    (asked_value, asked_unit), (value, unit) = split_unit(gold), split_unit(answer)
    if asked_unit and unit and asked_unit != unit:
        return Verdict("wrong", f"another unit, {unit[:20]}", "wrong_answer")
    golds, reasons = _distinct(*_readings(gold), *_readings(asked_value)), []
    for text in _distinct(*_readings(answer), *_readings(value)):
        if squeezed(text) != squeezed(asked) and number(text) is None and (reason := _unfit(text, asked)):
            reasons.append(reason)
        elif any(equal(one, text) or _same_percentage(one, text) for one in golds):
            return Verdict("right")
    return Verdict("wrong", reasons[0], "unreadable") if reasons else Verdict("wrong", "another value", "wrong_answer")


def _readings(answer: str) -> list[str]:
    """A tidy answer, with 100,200 as one number and as two."""
    if re.search(r",0\d\d", answer):  # no list holds 000
        return _distinct(tidy(answer))
    return _distinct(tidy(answer), tidy(answer, thousands=False))


def _same_percentage(gold: str, answer: str) -> bool:
    """Whether one of two whole numbers has lost its percent sign: 50 and 50%. (0.5 and 0.5% are two things.)"""
    bare = [text.removesuffix("%").strip() for text in (gold, answer)]
    whole = all(re.fullmatch(r"\d{1,6}", text) and int(text) > 1 for text in bare)
    return whole and int(bare[0]) == int(bare[1])


def _unfit(text: str, asked: str) -> str:
    """Why an answer is not compared at all, "" if it is."""
    if (word := word_in(text)) and not word_in(asked):
        return f"words where mathematics was asked for: {word[:20]}"
    return too_wild(text)


def same_words(gold: str, answer: str) -> bool:
    """Whether both are the same word or letter of a choice; case counts for a single letter only."""
    asked, plain = tidy(gold).strip("() "), tidy(answer).strip("() ")
    if _CHOICE.fullmatch(asked):
        option = re.match(r"\(([A-Z])\)(?!.*\([A-Z]\))", tidy(answer))  # (A) 12
        return asked == (option[1] if option else plain)
    if len(asked) < 2 or not _WORD.fullmatch(asked):
        return False
    same = asked.lower() == plain.lower()
    return asked == plain or (same and (len(asked) > 2 or asked.lower() == "no"))  # mg is not Mg


def equal(gold: str, answer: str) -> bool:
    """Whether two tidy answers are the same mathematical object."""
    if squeezed(gold) == squeezed(answer):
        return True
    if _BASE.search(gold) or _BASE.search(answer):
        return _unbraced(gold) == _unbraced(answer)
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return left == right
    sides, others = _split(gold, "="), _split(answer, "=")
    if len(sides) == 1 and len(others) == 2 and _NAME.fullmatch(others[0]):
        return equal(gold, others[1])  # x = 5 states 5
    if (match := _MEMBER.fullmatch(answer)) and not _MEMBER.fullmatch(gold):
        return equal(gold, match[1].strip())
    for take_apart, same in ((_union, _unordered), (_matrix, _ordered), (_bracket, _ordered), (_listing, _unordered)):
        asked, given = take_apart(gold), take_apart(answer)
        if asked is not None or given is not None:
            return asked is not None and given is not None and same(asked, given)
    return _equal_relations(gold, sides, answer, others)


def _equal_relations(gold: str, sides: list[str], answer: str, others: list[str]) -> bool:
    """Whether equations, inequalities or single expressions are the same; the sides are those around `=`."""
    if len(sides) == 1 and len(others) > 1:
        # a = b = 5 states 5; 2 + 3 = 5 states it twice; 3 = 5 states nonsense
        stated = [side for side in others if not _NAME.fullmatch(side)]
        return bool(stated) and all(equal(gold, side) for side in stated)
    if len(sides) == 2 and len(others) == 1 and _NAME.fullmatch(sides[0]):
        return equal(sides[1], answer)
    if len(sides) == len(others) == 2 and squeezed(sides[0]) == squeezed(others[0]) and _NAME.fullmatch(sides[0]):
        return equal(sides[1], others[1])
    if len(sides) != len(others) or bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):
        return False
    return expressions_equal(gold, answer)


def expressions_equal(gold: str, answer: str) -> bool:
    """math-verify's opinion on two single expressions, without its own time limit: the worker has one."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that the limits are off
    config = [LatexExtractionConfig()]
    parsed = [
        parse(f"${_exact(text)}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
        for text in (gold, answer)
    ]
    if not all(parsed):
        return False
    values = [_rational(expressions[0]) for expressions in parsed]
    if None not in values:
        return values[0] == values[1]  # the library would round
    return bool(verify(*parsed, float_rounding=10, timeout_seconds=None))


def _rational(expression: Any) -> Any:
    """The exact value of an expression without variables and roots, None for any other."""
    value = expression.doit() if hasattr(expression, "doit") else None
    return value if getattr(value, "is_Rational", False) else None


def _exact(text: str) -> str:
    """Decimals as fractions, so that nothing is compared by rounding; capital letters as names of their own, which
    the library takes for the small ones."""
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"\\frac{{{int((m[1] or '0') + m[2])}}}{{{10 ** len(m[2])}}}", text)
    return re.sub(r"(\\mathbb ?\{?[A-Z]\}?|\\[A-Za-z]+)|([A-Z])", lambda m: m[1] or f"{m[2].lower()}_{{9}}", text)


def _unbraced(text: str) -> str:
    return squeezed(text).replace("{", "").replace("}", "")


def _distinct(*texts: str) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _letters(asked: str) -> bool:
    """Whether the gold answer is a choice or words, not mathematics."""
    return bool(_CHOICE.fullmatch(asked.strip("() ")) or re.fullmatch(r"[^\W\d_]{4,}(?:[ '-]+[^\W\d_]+)*", asked))


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside all brackets and braces."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text) and not text.startswith(separator, at):
            depth += (text[at + 1] == "{") - (text[at + 1] == "}")
            at += 2
            continue
        if depth == 0 and text.startswith(separator, at):
            parts.append(text[start:at].strip())
            at = start = at + len(separator)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return [*parts, text[start:].strip()]


def _union(text: str) -> list[str] | None:
    parts = _split(text, "\\cup")
    return parts if len(parts) > 1 else None


def _matrix(text: str) -> list[str] | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row.split("&") for row in match[2].split("\\\\") if row.strip()]
    return [f"{len(rows)}", *(item.strip() for row in rows for item in row), *(str(len(row)) for row in rows)]


def _bracket(text: str) -> list[str] | None:
    """Items of a tuple or an interval, its two brackets first."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or not _encloses(text):
        return None
    if len(_split(text[1:-1], ",")) < 2:
        return None
    return [{"(": "0", "[": "1"}[text[0]], {")": "0", "]": "1"}[text[-1]], *_split(text[1:-1], ",")]


def _encloses(text: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _listing(text: str) -> list[str] | None:
    """Items of a set or a bare list, values of a plus-minus; None for a single value."""
    braced = text.startswith("\\{") and text.endswith("\\}")
    if braced:
        text = text[2:-2].strip()
    items = [text]
    for separator in (",", ";", " or ", " and "):
        items = [part for item in items for part in _split(item, separator)]
    items = [signed for item in items if item for signed in _both_signs(item)]
    return items if braced or len(items) > 1 else None


def _both_signs(item: str) -> list[str]:
    if "\\pm" not in item or len(items := item.split("\\pm")) != 2:
        return [item]
    return [f"{items[0]}+{items[1]}" if items[0].strip() else items[1], f"{items[0]}-{items[1]}"]


def _named(items: list[str]) -> list[str]:
    """`x=1, x=2` lists 1 and 2."""
    sides = [_split(item, "=") for item in items]
    names = {side[0] for side in sides if len(side) == 2 and _NAME.fullmatch(side[0])}
    return [side[1] for side in sides] if len(names) == 1 and all(len(side) == 2 for side in sides) else items


def _ordered(parts: list[str], others: list[str]) -> bool:
    return len(parts) == len(others) and all(equal(a, b) for a, b in zip(parts, others, strict=True))


def _unordered(parts: list[str], others: list[str]) -> bool:
    """Whether each item has a partner of its own; equality is transitive, so the first that fits will do."""
    parts, others = _named(parts), _named(others)
    if len(parts) != len(others) or len(parts) > MAX_ITEMS:
        return False
    for part in parts:
        partner = next((at for at, other in enumerate(others) if equal(part, other)), None)
        if partner is None:
            return False
        del others[partner]
    return True
