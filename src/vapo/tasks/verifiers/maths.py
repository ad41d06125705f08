"""Is the marked answer the gold one? Runs in worker processes only; math-verify compares what is not plain.

An answer is taken apart first (lists, sets, intervals, tuples, matrices, equations), so that the library is asked
about single expressions: whether order and brackets count is decided here, where it can be read.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from vapo.errors import ConfigError
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.intervals import region
from vapo.tasks.verifiers.notation import MAX_ANSWER, number, squeezed, tidy, word_in
from vapo.tasks.verifiers.numerals import numeral, residue
from vapo.tasks.verifiers.parts import NAME, bracket, column, coordinates, listing, matrix, named, split, union
from vapo.tasks.verifiers.units import conversion, split_unit
from vapo.tasks.verifiers.wild import too_wild
from vapo.tasks.verifiers.wording import option, plainly, same_figure, same_time, without_article
from vapo.types import Prompt, Verdict, Verifier

_MEMBER = re.compile(r"[a-zA-Z] ?\\in(?![a-z])(.*)")
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
    return verdict_on(str(prompt.answer), answer)


def verdict_on(gold: str, answer: str) -> Verdict:
    """The verdict on an answer that was found."""
    if len(answer) > MAX_ANSWER:
        return Verdict("wrong", f"an answer of {len(answer)} characters", "unreadable")
    if not gold.strip():
        return Verdict("invalid", "the gold answer is empty")
    asked, given = tidy(gold), tidy(answer)
    if same_words(gold, answer) or same_figure(asked, given):
        return Verdict("right")
    if (same := same_time(asked, given)) is not None:
        return Verdict("right") if same else Verdict("wrong", "another time", "wrong_answer")
    if _letters(asked) and plainly(asked) == asked:
        return Verdict("wrong", "another word", "wrong_answer")
    moduli = [left[1] for text in (asked, given) if (left := residue(text))]
    if len(set(moduli)) > 1:
        return Verdict("wrong", "another modulus", "wrong_answer")
    (asked_value, asked_unit), (value, unit) = split_unit(gold), split_unit(answer)
    ratio = conversion(unit, asked_unit)
    if ratio is None:
        return Verdict("wrong", f"another unit, {unit[:20]}", "wrong_answer")
    if ratio != 1 and "£" in gold + answer:  # £ and pounds are one word, but money is not weighed
        return Verdict("wrong", f"another unit, {unit[:20]}", "wrong_answer")
    if ratio != 1:
        converted = _times(tidy(value), ratio)
        same = not _unfit(converted, "") and equal(tidy(asked_value), converted)
        return Verdict("right") if same else Verdict("wrong", f"another value in {unit[:20]}", "wrong_answer")
    if (asked_unit and given.endswith("%")) or (unit and asked.endswith("%")):
        return Verdict("wrong", "a percentage, and a unit", "wrong_answer")
    golds, reasons = _distinct(*_readings(gold), *_readings(asked_value)), []
    for text in _distinct(*_readings(answer), *_readings(value)):
        if squeezed(text) != squeezed(asked) and number(text) is None and (reason := _unfit(text, asked)):
            reasons.append(reason)
        elif any(equal(one, text) or _same_percentage(one, text) for one in golds):
            return Verdict("right")
    return Verdict("wrong", reasons[0], "unreadable") if reasons else Verdict("wrong", "another value", "wrong_answer")


def _readings(answer: str) -> list[str]:
    """What a tidy answer may say: with 100,200 as one number and as two, an exact value and its rounded one, and
    without the words around it."""
    spellings = [tidy(answer)]
    if not re.search(r",0\d\d", answer):  # no list holds 000
        spellings.append(tidy(answer, thousands=False))
    texts = [text for spelling in spellings for text in (spelling, *_rounded(spelling))]
    return _distinct(*texts, *(plainly(text) for text in texts))


def _rounded(text: str) -> list[str]:
    """The exact and the rounded value of `4\\pi \\approx 12.57`; nothing if the one is not the other, rounded."""
    sides = split(text, "\\approx")
    exact = split(sides[0], "=")[-1]
    digits = sides[-1].replace(" ", "")
    if len(sides) != 2 or not re.fullmatch(r"-?\d{1,15}(?:\.\d{1,15})?", digits) or word_in(exact) or too_wild(exact):
        return []
    value = approximation(exact)
    if value is None or (value < 0) != digits.startswith("-"):
        return []
    places = len(digits.partition(".")[2])
    cut = (abs(value) - abs(float(digits))) * 10.0**places  # in units of the last place
    return [sides[0], digits] if -0.5 <= cut < (1 if places else 0.5) else []


def _times(text: str, ratio: Fraction) -> str:
    """A value in another unit."""
    value = number(text)
    return f"{value * ratio}" if value is not None else f"\\frac{{{ratio.numerator}}}{{{ratio.denominator}}}({text})"


def _same_percentage(gold: str, answer: str) -> bool:
    """Whether one of two numbers has lost its percent sign: 50 and 50%, 12.5% and 12.5. (0.5 and 0.5% are two things,
    and an answer of 1% is not the gold answer 1, which may be all of it.)"""
    if gold.endswith("%") == answer.endswith("%"):
        return False
    value, other = (number(text.removesuffix("%").strip()) for text in (gold, answer))
    return value is not None and value == other and (value > 1 or (value == 1 and gold.endswith("%")))


def _unfit(text: str, asked: str) -> str:
    """Why an answer is not compared at all, "" if it is."""
    if (word := word_in(text)) and not word_in(asked) and not numeral(text):
        return f"words where mathematics was asked for: {word[:20]}"
    return too_wild(text)


def same_words(gold: str, answer: str) -> bool:
    """Whether both are the same word or letter of a choice; case counts for a single letter only."""
    asked, plain = tidy(gold).strip("() "), tidy(answer).strip("() ")
    if _CHOICE.fullmatch(asked):
        return asked in (plain, option(tidy(answer)))
    if len(asked) < 2 or not _WORD.fullmatch(asked):
        return False
    asked, plain = without_article(asked), without_article(plain)
    same = asked.lower() == plain.lower()
    return asked == plain or (same and (len(asked) > 2 or asked.lower() == "no"))  # mg is not Mg


def equal(gold: str, answer: str) -> bool:
    """Whether two tidy answers are the same mathematical object."""
    if squeezed(gold) == squeezed(answer):
        return True
    if (one := numeral(gold)) and (other := numeral(answer)):
        return one == other
    if _BASE.search(gold) or _BASE.search(answer):
        return _unbraced(gold) == _unbraced(answer)
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return left == right
    sides, others = split(gold, "="), split(answer, "=")
    if len(sides) == 1 and len(others) == 2 and NAME.fullmatch(others[0]):
        return equal(gold, others[1])  # x = 5 states 5
    if _MEMBER.fullmatch(gold) or _MEMBER.fullmatch(answer):
        return equal(_without_member(gold), _without_member(answer))
    if (verdict := _same_region(gold, answer)) is not None:
        return verdict
    for one, other in ((gold, answer), (answer, gold)):
        point, values = _point(one), coordinates(other) or column(other)
        if point is not None and values is not None:
            return _ordered(point, values)
    for take_apart, same in ((union, _unordered), (matrix, _ordered), (bracket, _ordered), (listing, _unordered)):
        asked, given = take_apart(gold), take_apart(answer)
        if asked is not None or given is not None:
            return asked is not None and given is not None and same(asked, given)
    return _equal_relations(gold, sides, answer, others)


def _without_member(text: str) -> str:
    """The set of `x \\in S`."""
    match = _MEMBER.fullmatch(text)
    return match[1].strip() if match else text


def _same_region(gold: str, answer: str) -> bool | None:
    """Whether both are the same set of real numbers, None if one is no such set or both are intervals already."""
    asked, given = region(gold), region(answer)
    if asked is None or given is None or (asked[1], given[1]) == (gold, answer):
        return None
    if asked[0] and given[0] and asked[0] != given[0]:
        return False  # x > 2 and y > 2
    return equal(asked[1], given[1])


def _point(text: str) -> list[str] | None:
    """The coordinates of (1, 2)."""
    items = bracket(text)
    return items[2:] if items and items[:2] == ["0", "0"] else None


def _equal_relations(gold: str, sides: list[str], answer: str, others: list[str]) -> bool:
    """Whether equations, inequalities or single expressions are the same; the sides are those around `=`."""
    if len(sides) == 1 and len(others) > 1:
        # a = b = 5 states 5; 2 + 3 = 5 states it twice; 3 = 5 states nonsense
        stated = [side for side in others if not NAME.fullmatch(side)]
        return bool(stated) and all(equal(gold, side) for side in stated)
    if len(sides) == 2 and len(others) == 1 and NAME.fullmatch(sides[0]):
        return equal(sides[1], answer)
    if len(sides) == len(others) == 2 and squeezed(sides[0]) == squeezed(others[0]) and NAME.fullmatch(sides[0]):
        return equal(sides[1], others[1])
    if len(sides) != len(others) or bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):
        return False
    return expressions_equal(gold, answer)


def expressions_equal(gold: str, answer: str) -> bool:
    """math-verify's opinion on two single expressions, without its own time limit: the worker has one."""
    from math_verify import verify

    parsed = [_parsed(text) for text in (gold, answer)]
    if not all(parsed):
        return False
    values = [_value(expressions[0]) for expressions in parsed]
    if None not in values:
        return values[0] == values[1]  # the library would round
    return bool(verify(*parsed, float_rounding=10, timeout_seconds=None))


def approximation(text: str) -> float | None:
    """The value of an expression without variables, to some 15 digits; None for any other."""
    parsed = _parsed(text)
    value: Any = parsed[0].evalf() if parsed and hasattr(parsed[0], "evalf") else None
    return float(value) if getattr(value, "is_Float", False) or getattr(value, "is_Rational", False) else None


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that the limits are off
    config = [LatexExtractionConfig()]
    parsed = parse(f"${_exact(text)}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
    return [_complex(expression) for expression in parsed]


def _complex(expression: Any) -> Any:
    """The expression with i as the imaginary unit if it has no other variable."""
    from sympy import I

    free = getattr(expression, "free_symbols", None)
    if not free or {symbol.name for symbol in free} != {"i"}:
        return expression
    return expression.subs(dict.fromkeys(free, I))


def _value(expression: Any) -> Any:
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


def _ordered(parts: list[str], others: list[str]) -> bool:
    return len(parts) == len(others) and all(equal(a, b) for a, b in zip(parts, others, strict=True))


def _unordered(parts: list[str], others: list[str]) -> bool:
    """Whether each item has a partner of its own; equality is transitive, so the first that fits will do."""
    parts, others = named(parts), named(others)
    if len(parts) != len(others) or len(parts) > MAX_ITEMS:
        return False
    for part in parts:
        partner = next((at for at, other in enumerate(others) if equal(part, other)), None)
        if partner is None:
            return False
        del others[partner]
    return True
