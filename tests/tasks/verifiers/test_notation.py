"""Normal forms, exact numbers, units, and the limits on what is evaluated."""

from __future__ import annotations

import doctest
import time
from fractions import Fraction
from types import ModuleType

import pytest

from vapo.tasks.verifiers import answers, intervals, notation, numerals, parts, units, wording
from vapo.tasks.verifiers.complexity import too_complex
from vapo.tasks.verifiers.notation import number, tidy
from vapo.tasks.verifiers.units import split_unit


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("1{,}000", "1000"),
        ("12,345,678", "12345678"),
        ("(100,200)", "(100,200)"),  # in brackets a comma separates items
        ("1 000", "1000"),
        ("1 2", "1 2"),
        ("√12", "\\sqrt{12}"),
        ("x⁴+x¹⁰", "x^{4}+x^{10}"),
        ("3, 4, and 5", "3, 4, 5"),
        ("2 pi", "2 \\pi"),
        ("1,2", "1,2"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("{3 \\over 2}", "\\frac{3}{2}"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("\\text{Tuesday}", "Tuesday"),
        ("30^{\\circ}", "30"),
        ("\\$5.", "5"),
        ("−½", "-\\frac{1}{2}"),
        ("\\left( 1, 2 \\right)", "( 1, 2 )"),
        ("1 \\\\ 2", "1 \\\\ 2"),  # a row separator is not a space
        (".5", ".5"),
    ],
)
def test_tidy_gives_one_normal_form(written, plain):
    assert tidy(written) == plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0.25", Fraction(-1, 4)),
        ("50%", Fraction(1, 2)),
        ("\\frac{-3}{6}", Fraction(-1, 2)),
        ("3/4", Fraction(3, 4)),
        ("3\\times10^{5}", Fraction(300_000)),
        ("2.5e-1", Fraction(1, 4)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("1 1/2", Fraction(3, 2)),
        ("3\\frac{4}{5}", Fraction(19, 5)),
        ("1 2", None),
        ("1/0", None),
        ("1e9999", None),
        ("x", None),
        ("٣", None),
    ],
)
def test_plain_numbers_have_exact_values(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("written", "value", "unit"),
    [
        ("12\\text{ cm}^2", "12", "cm^2"),
        ("12 centimeters", "12", "cm"),
        ("80 \\text{ km/h}", "80", "km h^-1"),  # not km h
        *(
            (text, text, "")
            for text in (
                "5 million",
                "5 squared",
                "2 pi",
                "1 mod n",
                "5 xy",
                "5\\mathrm{i}",
                "1/2 of x",
                "5\\text{ at least}",
                "5 thousandths",
                "5\\text{ or }6",
            )
        ),
        ("7 apples", "7", "apple"),
        ("30^\\circ", "30", "degree"),
        ("5 or 6", "5 or 6", ""),
        ("60^\\circ, 300^\\circ", "60^\\circ, 300^\\circ", ""),
        ("\\sin 30^\\circ", "\\sin 30^\\circ", ""),
    ],
)
def test_a_unit_is_split_from_its_value_and_other_words_are_kept(written, value, unit):
    assert split_unit(written) == (value, unit)


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^9}}", "9^{9^9}", "((9^{999})^{999})^{999}", "10^{10000000}", "(x+1)^{10000}", "(5!)!", "100000!",
     "\\binom{10^9}{5}", "(" * 13 + "1" + ")" * 13, "1" * 61, "\\sum_{n=1}^{9} n", "1e99999", "x.__class__"],
)  # fmt: skip
def test_expressions_that_may_take_too_long_are_too_complex(text):
    assert too_complex(text)


@pytest.mark.parametrize(
    "text",
    [
        "2^{100}",
        "x^{100}-1",
        "e^{x^2}",
        "\\frac{n(n+1)}{2}",
        "5!",
        "\\binom{10}{3}",
        "(x+1)^{10}",
        "3^{2024}-1",
        "\\sqrt{2+\\sqrt{3}}",
    ],
)
def test_real_answers_are_not_too_complex(text):
    assert too_complex(text) == ""


def test_white_space_takes_no_time():
    began = time.process_time()
    assert tidy("{" + " " * 180 + "\\over" + " " * 180 + "x") == "{\\frac{ }{ x}"
    assert tidy("1" + " " * 300 + "234") == "1 234"  # two numbers
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("module", [answers, intervals, notation, numerals, parts, units, wording])
def test_examples_in_docstrings_are_correct(module: ModuleType):
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0
