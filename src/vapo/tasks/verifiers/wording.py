"""What may stand around a value and says nothing else: `Area = 5`, `x \\to 5`, `7 (seven)`, `all real numbers`.

The words are closed lists: what else stands there may deny the value, or be another one.
"""

from __future__ import annotations

import re

from vapo.tasks.verifiers.notation import number
from vapo.tasks.verifiers.numerals import minutes, residue, spelled
from vapo.tasks.verifiers.parts import NAME

_QUANTITIES = set(
    """
    answer solution result value total sum difference product quotient remainder average mean median mode range
    probability chance ratio percentage percent fraction proportion number amount count quantity area perimeter volume
    surface length width height depth radius diameter circumference distance side base hypotenuse leg altitude diagonal
    angle slope intercept cost price profit revenue income interest tax discount salary time age speed rate velocity
    weight mass temperature score maximum minimum max min least greatest largest smallest degree order rank determinant
    final expected shaded lateral common ways solutions roots pairs points integers people students
    the of a an in is for its
    """.split()  # noqa: SIM905
)
"""A label of these words names the value behind it: Area = 5, Number of ways: 12."""
_LABEL = re.compile(r"([A-Za-z]{2,}(?: +[A-Za-z]+){0,5}|(?:m ?)?\\(?:angle|triangle) ?(?:[A-Z]{1,4}|\d)) *[=:] *(\S.*)")
_TENDS = re.compile(rf"(?:{NAME.pattern})? ?\\(?:to|rightarrow|approx)(?![a-z]) ?([^\\=].*|\\[a-z].*)")
_PHRASES = {
    **dict.fromkeys(("all real numbers", "all reals", "the real numbers", "any real number"), "\\mathbb{R}"),
    **dict.fromkeys(("no solution", "no solutions", "no real solutions", "the empty set"), "\\emptyset"),
}
_TWICE = re.compile(r"(.*\S) \(([A-Za-z -]+)\)|([A-Za-z -]+) \((.*\S)\)")
_FIGURE = re.compile(r"\\(?:triangle|angle) ?([A-Z]{1,5})")
_DENIED = "no|not|nor|cannot|isn|false|incorrect|wrong|invalid|untrue|impossible"
_OPTION = re.compile(
    r"(?:[Oo]ption |[Cc]hoice )?(?:\(([A-Z])\)|([A-Z])[.:)])"
    rf"(?!.*(?<![A-Za-z])(?:[A-Z]|or|and|{_DENIED})(?![A-Za-z]))"
)
_ARTICLE = re.compile(r"(?:an?|the) (?=\w\w)", re.IGNORECASE)


def plainly(text: str) -> str:
    """A tidy answer without what stands around its value; the same if nothing does.

    >>> plainly("Area = 5"), plainly("x \\\\to 5"), plainly("7 (seven)"), plainly("seven"), plainly("7 \\\\pmod{10}")
    ('5', '5', '7', '7', '7')
    >>> plainly("not x = 5"), plainly("wrong answer: 5"), plainly("5 \\\\to 6")
    ('not x = 5', 'wrong answer: 5', '5 \\\\to 6')
    """
    if (match := _LABEL.fullmatch(text)) and _is_label(match[1]):
        text = match[2].strip()
    if match := _TENDS.fullmatch(text):
        text = match[match.re.groups].strip()
    if (match := _TWICE.fullmatch(text)) and (value := spelled(match[2] or match[3])) is not None:
        text = f"{value}" if number(match[1] or match[4]) == value else text
    if (value := spelled(text)) is not None:
        return f"{value}"
    if (left := residue(text)) is not None:
        return left[0]
    return _PHRASES.get(text.lower(), text)


def _is_label(words: str) -> bool:
    return "\\" in words or all(w.lower() in _QUANTITIES for w in words.split())


def same_time(gold: str, answer: str) -> bool | None:
    """Whether both are the same time of the day, None if neither has a.m. or p.m.; what the gold answer tells of
    morning and evening, the other must tell."""
    asked, given = minutes(gold), minutes(answer)
    if not any(time and text[-1] in "mM" for time, text in ((asked, gold), (given, answer))):
        return None
    return asked is not None and given is not None and bool(asked[0] & given[0]) and (given[1] or not asked[1])


def same_figure(gold: str, answer: str) -> bool:
    """Whether one names the corners of the figure that the other names with its sign: ABC and \\triangle ABC."""
    figures = [_FIGURE.fullmatch(text) for text in (gold, answer)]
    bare = [match[1] if match else text for match, text in zip(figures, (gold, answer), strict=True)]
    return bare[0] == bare[1] and figures.count(None) == 1


def option(text: str) -> str | None:
    """The letter of `(B) 12`, `B. 12` or `B) 12`, None where another letter or a choice follows."""
    match = _OPTION.match(text)
    return (match[1] or match[2]) if match else None


def without_article(text: str) -> str:
    """`ellipse` for `an ellipse`."""
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text
