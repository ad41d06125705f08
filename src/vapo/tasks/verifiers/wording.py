"""Removes words around a value that do not change it: `Area = 5`, `x \\to 5`, `7 (seven)`, `all real numbers`.

Only words of fixed lists are removed, because any other word may deny the value or change it.
"""

from __future__ import annotations

import re

from vapo.tasks.verifiers.notation import number
from vapo.tasks.verifiers.numerals import minutes, residue, spelled
from vapo.tasks.verifiers.parts import NAME

_LABEL_WORDS = set(
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
"""Words of a label before a value: Area = 5, Number of ways: 12."""
_LABEL = re.compile(r"([A-Za-z]{2,}(?: +[A-Za-z]+){0,5}|(?:m ?)?\\(?:angle|triangle) ?(?:[A-Z]{1,4}|\d)) *[=:] *(\S.*)")
_LIMIT = re.compile(rf"(?:{NAME.pattern})? ?\\(?:to|rightarrow|approx)(?![a-z]) ?([^\\=].*|\\[a-z].*)")
_PHRASES = {
    **dict.fromkeys(("all real numbers", "all reals", "the real numbers", "any real number"), "\\mathbb{R}"),
    **dict.fromkeys(("no solution", "no solutions", "no real solutions", "the empty set"), "\\emptyset"),
    **dict.fromkeys(("infinity", "positive infinity", "+infinity"), "\\infty"),
    **dict.fromkeys(("negative infinity", "-infinity", "minus infinity"), "-\\infty"),
}
_NUMBER_AND_WORDS = re.compile(r"(.*\S) \(([A-Za-z -]+)\)|([A-Za-z -]+) \((.*\S)\)")
_FIGURE = re.compile(r"(?:\\triangle|[Tt]riangle|\\angle) ?([A-Z]{1,5})|\\overline ?\{?([A-Z]{2})\}?")
_FOR_ALL = re.compile(r"(.*=.*?),? for (?:all|every|any) (?:real )?[a-z]")
_JOINT = re.compile(r" ?(-{1,3}|:|to|by|x|\\times) ?")
_JOINED = re.compile(rf"\d+(?:\.\d+)?(?:{_JOINT.pattern}\d+(?:\.\d+)?)+")
_SAME_JOINTS = {"-": "to", ":": "to", "to": ":", "by": "\\times"}
"""What else may stand between figures, by what the gold answer has there."""
_DENIALS = "no|not|nor|cannot|isn|false|incorrect|wrong|invalid|untrue|impossible"
_OPTION = re.compile(
    r"(?:[Oo]ption |[Cc]hoice )?(?:\(([A-Z])\)|([A-Z])[.:)])"
    rf"(?!.*(?<![A-Za-z])(?:[A-Z]|or|and|{_DENIALS})(?![A-Za-z]))"
)
_ARTICLE = re.compile(r"(?:an?|the) (?=\w\w)", re.IGNORECASE)


def plainly(text: str) -> str:
    """A tidy answer without label, "for all x", arrow, repetition in words and modulus; unchanged without them.

    >>> plainly("Area = 5"), plainly("x \\\\to 5"), plainly("7 (seven)"), plainly("seven"), plainly("7 \\\\pmod{10}")
    ('5', '5', '7', '7', '7')
    >>> plainly("not x = 5"), plainly("wrong answer: 5"), plainly("5 \\\\to 6")
    ('not x = 5', 'wrong answer: 5', '5 \\\\to 6')
    """
    if (match := _LABEL.fullmatch(text)) and _is_label(match[1]):
        text = match[2].strip()
    if match := _FOR_ALL.fullmatch(text):
        text = match[1].strip()
    if match := _LIMIT.fullmatch(text):
        text = match[match.re.groups].strip()
    if (match := _NUMBER_AND_WORDS.fullmatch(text)) and (value := spelled(match[2] or match[3])) is not None:
        text = f"{value}" if number(match[1] or match[4]) == value else text
    if (value := spelled(text)) is not None:
        return f"{value}"
    if (parts := residue(text)) is not None:
        return parts[0]
    return _PHRASES.get(text.lower(), text)


def _is_label(words: str) -> bool:
    """Whether the words before `=` or `:` name a quantity or a figure."""
    return "\\" in words or all(w.lower() in _LABEL_WORDS for w in words.split())


def same_time(gold: str, answer: str) -> bool | None:
    """Whether both are the same time of day, None if neither has a.m. or p.m.

    If the gold answer says whether it is morning or evening, the answer must say it too.
    """
    gold_time, answer_time = minutes(gold), minutes(answer)
    if not any(time and text[-1] in "mM" for time, text in ((gold_time, gold), (answer_time, answer))):
        return None
    if gold_time is None or answer_time is None:
        return False
    (gold_minutes, gold_is_exact), (answer_minutes, answer_is_exact) = gold_time, answer_time
    return bool(gold_minutes & answer_minutes) and (answer_is_exact or not gold_is_exact)


def same_figure(gold: str, answer: str) -> bool:
    """Whether both name the same figure, one of them with its sign: ABC and \\triangle ABC."""
    figures = [_FIGURE.fullmatch(text) for text in (gold, answer)]
    bare = [match[1] or match[2] if match else text for match, text in zip(figures, (gold, answer), strict=True)]
    return bare[0] == bare[1] and figures.count(None) == 1


def same_joined_figures(gold: str, answer: str) -> bool:
    """Whether both are the same figures joined alike: a range, a score, a ratio, two sides.

    >>> pairs = (("5-7", "5 to 7"), ("2:3", "2 to 3"), ("2 by 3", "2\\\\times 3"))
    >>> [same_joined_figures(gold, answer) for gold, answer in pairs]
    [True, True, True]
    >>> [same_joined_figures(gold, answer) for gold, answer in (("5-7", "7-5"), ("2:3", "2-3"), ("2:3", "2 by 3"))]
    [False, False, False]
    """
    if not _JOINED.fullmatch(gold) or not _JOINED.fullmatch(answer):
        return False
    joints, others = ([re.sub("-+", "-", joint) for joint in _JOINT.findall(text)] for text in (gold, answer))
    return re.findall(r"[\d.]+", gold) == re.findall(r"[\d.]+", answer) and all(
        other in (joint, _SAME_JOINTS.get(joint)) for joint, other in zip(joints, others, strict=True)
    )


def option(text: str) -> str | None:
    """The letter of `(B) 12`, `B. 12` or `B) 12`; None if another letter, an "or" or a denial follows."""
    match = _OPTION.match(text)
    return (match[1] or match[2]) if match else None


def without_article(text: str) -> str:
    """The text without a leading article: `ellipse` for `an ellipse`."""
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text
