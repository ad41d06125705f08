"""Compares the last marked answer of a response with the gold answer. Runs in worker processes only.

Answers are first split into parts (lists, sets, intervals, tuples, matrices, equations). This module decides whether
order and brackets matter; math-verify only compares single expressions.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from vapo.errors import ConfigError
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.complexity import too_complex
from vapo.tasks.verifiers.intervals import region
from vapo.tasks.verifiers.notation import (
    MAX_ANSWER,
    between,
    number,
    squeezed,
    tidy,
    with_joined_thousands,
    word_in,
    words_of,
)
from vapo.tasks.verifiers.numerals import numeral, residue
from vapo.tasks.verifiers.parts import (
    NAME,
    are_roots,
    bracket,
    column,
    coordinates,
    listing,
    matrix,
    split,
    spread,
    union,
    without_name,
)
from vapo.tasks.verifiers.units import conversion, same_quantity, split_unit
from vapo.tasks.verifiers.wording import (
    option,
    plainly,
    same_figure,
    same_joined_figures,
    same_time,
    without_article,
)
from vapo.types import Prompt, Verdict, Verifier

_MEMBER = re.compile(r"[a-zA-Z] ?\\in(?![a-z])(.*)")
_RELATION = re.compile(r"<|>|\\(?:le|leq|ge|geq|lt|gt|ne|neq|in)(?![a-z])")
_BASE = re.compile(r"\d_\{?\d")  # 101_2: not a decimal number
_CAPITALS = re.compile(r"[A-Z]{2,}")
_HYPHENS = re.compile(r"\d+(?: ?-{1,3} ?\d+)+")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_APART = re.compile(r"(?<![_^\d])\d+ \d(?!\d*/)")  # 1 2: not 12, not 3, and not the mixed number 1 1/2
_PRODUCT = re.compile(r" ?(?:\\cdot|\\times|\*) ?")
_CHOICE = re.compile(r"[A-Z]")
_VALUE = re.compile(r"(?:[-+*/^().\d {}]|\\(?:frac|sqrt|pi|cdot)(?![a-z]))+")
_WORD = re.compile(r"[^\W\d_]{2,}(?:[ '-]+[^\W\d_]{2,})*")
MAX_ITEMS = 40
"""Longest list whose items are compared in any order."""
WARM_UP = (
    ("x^2+2x+1", "(x+1)^{2}"),
    ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
    ("2\\pi", "6.28"),
    ("\\sin{x}<1", "\\log(2)!"),
)


def make_verifier() -> Verifier:
    """`verify_maths`, after importing math-verify and warming up its parser (about 1 s); ConfigError without it."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ConfigError("The math verifier needs math-verify: pip install math-verify.") from error
    for gold, answer in WARM_UP:
        expressions_equal(gold, answer)
    return verify_maths


def verify_maths(prompt: Prompt, response: str) -> Verdict:
    """Right if the last marked answer of the response equals `prompt.answer`, a string.

    An answer is wrong, with a reason, if it is unmarked, empty, hedged ("5 or 6" for 5), longer than `MAX_ANSWER`
    characters, too complex to evaluate, or unreadable for math-verify. An empty gold answer gives an invalid verdict.
    """
    answer = last_answer(response)
    if answer is None:
        return Verdict("wrong", "no marked answer", "no_answer")
    if not answer.strip():
        return Verdict("wrong", "empty answer", "no_answer")
    return verdict_on(str(prompt.answer), answer)


def verdict_on(gold: str, answer: str) -> Verdict:
    """The verdict on an answer, given the gold answer; both as written."""
    if len(answer) > MAX_ANSWER:
        return Verdict("wrong", f"an answer of {len(answer)} characters", "unreadable")
    if not gold.strip():
        return Verdict("invalid", "the gold answer is empty")
    plain_gold, plain_answer = tidy(gold), tidy(answer)
    if same_words(gold, answer) or same_figure(plain_gold, plain_answer):
        return Verdict("right")
    if (same := same_time(plain_gold, plain_answer)) is not None:
        return Verdict("right") if same else Verdict("wrong", "another time", "wrong_answer")
    if _is_choice_or_words(plain_gold) and plainly(plain_gold) == plain_gold:
        return Verdict("wrong", "another word", "wrong_answer")
    if (same := same_quantity(gold, answer)) is not None:
        return Verdict("right") if same else Verdict("wrong", "another quantity", "wrong_answer")
    moduli = [found[1] for text in (plain_gold, plain_answer) if (found := residue(text))]
    if len(set(moduli)) > 1:
        return Verdict("wrong", "another modulus", "wrong_answer")
    (gold_value, gold_unit), (value, unit) = split_unit(gold), split_unit(answer)
    ratio = conversion(unit, gold_unit)
    if ratio is None:
        return Verdict("wrong", f"another unit, {unit[:20]}", "wrong_answer")
    if ratio != 1 and "£" in gold + answer:  # £ is "lb" in `units`, but money does not convert to ounces
        return Verdict("wrong", f"another unit, {unit[:20]}", "wrong_answer")
    if ratio != 1:
        converted = _converted(tidy(value), ratio)
        same = not _refusal(converted, "") and equal(tidy(gold_value), converted)
        return Verdict("right") if same else Verdict("wrong", f"another value in {unit[:20]}", "wrong_answer")
    if (gold_unit and plain_answer.endswith("%")) or (unit and plain_gold.endswith("%")):
        return Verdict("wrong", "a percentage, and a unit", "wrong_answer")
    golds, reasons = _distinct(*_readings(gold), *_readings(gold_value)), []
    for text in _distinct(*_readings(answer), *_readings(value)):
        same_text = squeezed(text) == squeezed(plain_gold)
        if not same_text and number(text) is None and (reason := _refusal(text, plain_gold)):
            reasons.append(reason)
        elif any(equal(one, text) or _same_percentage(one, text) or _same_only_value(one, text) for one in golds):
            return Verdict("right")
    return Verdict("wrong", reasons[0], "unreadable") if reasons else Verdict("wrong", "another value", "wrong_answer")


def _readings(answer: str) -> list[str]:
    """The possible meanings of an answer, in tidy notation.

    They read 100,200 as one number and as two (100,200, 300 too), use the exact or the rounded value where the answer
    has both, and include the answer without the words around it.
    """
    spellings, apart = [tidy(answer)], tidy(answer, thousands=False)
    if not re.search(r",0\d\d", answer):  # 000 is never an item of a list
        spellings.append(apart)
    if (joined := with_joined_thousands(apart)) != apart:
        spellings.append(joined)
    texts = [text for spelling in spellings for text in (spelling, *_rounded(spelling))]
    return _distinct(*texts, *(plainly(text) for text in texts))


def _rounded(text: str) -> list[str]:
    """The exact and the rounded value of `4\\pi \\approx 12.57`; empty if the second is not the first, rounded."""
    sides = split(text, "\\approx")
    exact = split(sides[0], "=")[-1]
    digits = sides[-1].replace(" ", "")
    if len(sides) != 2 or not re.fullmatch(r"-?\d{1,15}(?:\.\d{1,15})?", digits):
        return []
    if word_in(exact) or too_complex(exact):
        return []
    value = approximation(exact)
    if value is None or (value < 0) != digits.startswith("-"):
        return []
    places = len(digits.partition(".")[2])
    error = (abs(value) - abs(float(digits))) * 10.0**places  # in units of the last place
    # decimals may also be cut off instead of rounded
    return [sides[0], digits] if -0.5 <= error < (1 if places else 0.5) else []


def _converted(text: str, ratio: Fraction) -> str:
    """The value times the ratio of two units, in tidy notation."""
    value = number(text)
    return f"{value * ratio}" if value is not None else f"\\frac{{{ratio.numerator}}}{{{ratio.denominator}}}({text})"


def _same_percentage(gold: str, answer: str) -> bool:
    """Whether two numbers differ only in a percent sign: 50 and 50%, 12.5% and 12.5.

    False between -1 and 1, where 0.5 and 0.5% are different values, and for a gold answer of 1 (which may mean 100%)
    with 1%.
    """
    if gold.endswith("%") == answer.endswith("%"):
        return False
    value, other = (number(text.removesuffix("%").strip()) for text in (gold, answer))
    if value is None or value != other:
        return False
    return abs(value) > 1 or (abs(value) == 1 and gold.endswith("%"))


def _same_only_value(gold: str, answer: str) -> bool:
    """Whether one is the set of a single value, and the other that value: \\{5\\} and 5.

    Only figures count as a value, because the set of the empty set is another set.
    """
    items = [listing(text) if text.startswith("\\{") else None for text in (gold, answer)]
    for found, other in zip(items, (answer, gold), strict=True):
        if found and len(found) == 1 and _VALUE.fullmatch(found[0]) and _VALUE.fullmatch(other):
            return equal(found[0], other)
    return False


def _refusal(text: str, gold: str) -> str:
    """The reason not to compare an answer with the gold one, "" if it may be compared; both in tidy notation."""
    if (word := word_in(text)) and not word_in(gold) and not numeral(text):
        return f"words where mathematics was expected: {word[:20]}"
    return too_complex(text)


def same_words(gold: str, answer: str) -> bool:
    """Whether both are the same words or the same letter of a choice.

    Case matters for a single letter, and for words of two letters other than "no".
    """
    gold_words, words = tidy(gold).strip("() "), tidy(answer).strip("() ")
    if _CHOICE.fullmatch(gold_words):
        return gold_words in (words, option(tidy(answer)))
    if len(gold_words) < 2 or not _WORD.fullmatch(gold_words):
        return False
    gold_words, words = without_article(gold_words), without_article(words)
    same = gold_words.lower() == words.lower()
    return gold_words == words or (same and (len(gold_words) > 2 or gold_words.lower() == "no"))  # mg is not Mg


def equal(gold: str, answer: str) -> bool:
    """Whether two tidy answers are the same mathematical object."""
    if squeezed(gold) == squeezed(answer):
        return True
    if same_joined_figures(gold, answer):
        return True
    if _CAPITALS.fullmatch(gold) or _HYPHENS.fullmatch(gold) or _DATE.fullmatch(answer):
        return gold == _PRODUCT.sub("", answer)  # a name, a date, a range, a score: no product, no difference
    if (one := numeral(gold)) and (other := numeral(answer)):
        return one == other
    if _BASE.search(gold) or _BASE.search(answer):
        return _unbraced(gold) == _unbraced(answer)
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return left == right
    if not ("\\begin" in gold + answer or (spread(gold), spread(answer)) == (gold, answer)):
        return equal(spread(gold), spread(answer))
    sides, others = split(gold, "="), split(answer, "=")
    if len(sides) == 1 and len(others) == 2 and NAME.fullmatch(others[0]):
        return equal(gold, others[1])  # x = 5 states 5
    if len(sides) == 2 and len(others) == 1 and NAME.fullmatch(sides[0]):
        return equal(sides[1], answer)
    if _MEMBER.fullmatch(gold) or _MEMBER.fullmatch(answer):
        return equal(_without_member(gold), _without_member(answer))
    if (verdict := _same_region(gold, answer)) is not None:
        return verdict
    for one, other in ((gold, answer), (answer, gold)):
        point, values = _point(one), coordinates(other) or column(other)
        if point is not None and values is not None:
            return _ordered(point, values)
        if (named := coordinates(one)) and (bare := listing(other)) and "=" not in other and "\\{" not in other:
            # a = 1, b = 2 in the order of the names
            return _unordered(named, bare) if are_roots(one) else _ordered(named, bare)
    for split_parts, same in ((union, _unordered), (matrix, _ordered), (bracket, _ordered), (listing, _unordered)):
        gold_parts, answer_parts = split_parts(gold), split_parts(answer)
        if gold_parts is not None or answer_parts is not None:
            return gold_parts is not None and answer_parts is not None and same(gold_parts, answer_parts)
    return _equal_relations(gold, sides, answer, others)


def _without_member(text: str) -> str:
    """The set S of `x \\in S`; any other text unchanged."""
    match = _MEMBER.fullmatch(text)
    return match[1].strip() if match else text


def _same_region(gold: str, answer: str) -> bool | None:
    """Whether both are the same set of real numbers.

    None if one of them is not such a set, or if both are intervals already.
    """
    gold_region, answer_region = region(gold), region(answer)
    if gold_region is None or answer_region is None:
        return None
    (gold_name, gold_intervals), (name, intervals) = gold_region, answer_region
    if (gold_intervals, intervals) == (gold, answer):
        return None
    if gold_name and name and gold_name != name:
        return False  # x > 2 and y > 2
    return equal(gold_intervals, intervals)


def _point(text: str) -> list[str] | None:
    """The coordinates of a point such as (1, 2), None for any other text."""
    items = bracket(text)
    return items[2:] if items and items[:2] == ["0", "0"] else None


def _equal_relations(gold: str, sides: list[str], answer: str, others: list[str]) -> bool:
    """Whether two equations, inequalities or single expressions are the same.

    `sides` are the parts of the gold answer around `=`, `others` those of the answer.
    """
    if len(sides) == 1 and len(others) > 1:
        # a = b = 5 states 5; 2 + 3 = 5 states 5 twice; 3 = 5 is false
        stated = [side for side in others if not NAME.fullmatch(side)]
        return bool(stated) and all(equal(gold, side) for side in stated)
    if len(sides) == len(others) == 2 and NAME.fullmatch(sides[0]) and NAME.fullmatch(others[0]):
        if squeezed(sides[0]) == squeezed(others[0]):
            return equal(sides[1], others[1])
        if None not in (number(sides[1]), number(others[1])):
            # f(1) = 2 and f(2) = 1 differ, AB = 5 and BA = 5 do not
            return equal(sides[1], others[1]) and expressions_equal(sides[0], others[0])
    if len(sides) != len(others) or bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):
        return False
    return _equal_around_words(gold, answer)


def _equal_around_words(gold: str, answer: str) -> bool:
    """Whether two texts have the same words, and equal expressions between them.

    Read as products of letters, 1 in 4 would be 4 in 1, and a name would be the name spelled backwards.
    """
    words, others = words_of(gold), words_of(answer)
    if not words and not others:
        return expressions_equal(gold, answer)
    pieces, other_pieces = ([piece.strip() for piece in between(text)] for text in (gold, answer))
    return words == others and all(
        one == other or (bool(one and other) and equal(one, other))
        for one, other in zip(pieces, other_pieces, strict=True)
    )


def expressions_equal(gold: str, answer: str) -> bool:
    """Whether math-verify finds two single expressions equal. Its time limit is off, because the worker has one."""
    from math_verify import verify

    if gold.count("'") != answer.count("'") or any(_APART.search(text) for text in (gold, answer)):
        return False  # the library drops primes, and adds 1 and 2 of 1 2
    parsed = [_parsed(text) for text in (gold, answer)]
    if not all(parsed):
        return False
    values = [_value(expressions[0]) for expressions in parsed]
    if None not in values:
        return values[0] == values[1]  # exact, where the library would round
    return bool(verify(*parsed, float_rounding=10, timeout_seconds=None))


def approximation(text: str) -> float | None:
    """The value of an expression without variables, to about 15 digits; None for any other text."""
    parsed = _parsed(text)
    value: Any = parsed[0].evalf() if parsed and hasattr(parsed[0], "evalf") else None
    return float(value) if getattr(value, "is_Float", False) or getattr(value, "is_Rational", False) else None


def _parsed(text: str) -> list[Any]:
    """The expressions that math-verify reads in the text, empty if it reads none."""
    from math_verify import LatexExtractionConfig, parse

    if ";" in text:
        return []  # it separates items, which are compared one by one
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its time limits are off
    config = [LatexExtractionConfig()]
    parsed = parse(f"${_exact(text)}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
    return [_complex(expression) for expression in parsed]


def _complex(expression: Any) -> Any:
    """The expression; if i is its only variable, with the imaginary unit for i."""
    from sympy import I

    free = getattr(expression, "free_symbols", None)
    if not free or {symbol.name for symbol in free} != {"i"}:
        return expression
    return expression.subs(dict.fromkeys(free, I))


def _value(expression: Any) -> Any:
    """The value of a rational expression, None for an expression with variables or roots."""
    value = expression.doit() if hasattr(expression, "doit") else None
    return value if getattr(value, "is_Rational", False) else None


def _exact(text: str) -> str:
    """The text with fractions for decimals, and a name of its own for each capital letter.

    Fractions avoid comparisons by rounding. The library would take capital letters for small ones.
    """
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"\\frac{{{int((m[1] or '0') + m[2])}}}{{{10 ** len(m[2])}}}", text)
    return re.sub(r"(\\mathbb ?\{?[A-Z]\}?|\\[A-Za-z]+)|([A-Z])", lambda m: m[1] or f"{m[2].lower()}_{{9}}", text)


def _unbraced(text: str) -> str:
    """The text without spaces and braces."""
    return squeezed(text).replace("{", "").replace("}", "")


def _distinct(*texts: str) -> list[str]:
    """The texts in order, without empty ones and duplicates."""
    return list(dict.fromkeys(text for text in texts if text))


def _is_choice_or_words(gold: str) -> bool:
    """Whether the gold answer is the letter of a choice or words, not mathematics."""
    return bool(
        _CHOICE.fullmatch(gold.strip("() ")) or re.fullmatch(r"[Yy]es|[Nn]o|[^\W\d_]{4,}(?:[ '-]+[^\W\d_]+)*", gold)
    )


def _ordered(parts: list[str], others: list[str]) -> bool:
    """Whether the parts are equal one by one."""
    return len(parts) == len(others) and all(equal(a, b) for a, b in zip(parts, others, strict=True))


def _unordered(parts: list[str], others: list[str]) -> bool:
    """Whether the parts are equal in some order.

    Equality is transitive, so each part may be paired with the first equal one.
    """
    parts, others = without_name(parts), without_name(others)
    if len(parts) != len(others) or len(parts) > MAX_ITEMS:
        return False
    for part in parts:
        partner = next((at for at, other in enumerate(others) if _same_item(part, other)), None)
        if partner is None:
            return False
        del others[partner]
    return True


def _same_item(part: str, other: str) -> bool:
    """Whether two items of a list are equal, units included if both have one."""
    (value, unit), (other_value, other_unit) = split_unit(part), split_unit(other)
    if unit and other_unit:
        return unit == other_unit and equal(tidy(value), tidy(other_value))
    return equal(part, other)
