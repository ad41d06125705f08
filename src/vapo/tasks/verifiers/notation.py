"""Normalises the notation of mathematical answers, and computes the exact value of plain numbers.

Texts are at most `MAX_ANSWER` characters long, which bounds the time of every regular expression.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER = 400
"""Longest answer, in characters, that is read as mathematics."""

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ",
    "√": "\\sqrt ", "≤": "\\le ", "≥": "\\ge ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "±": "\\pm ", "≠": "\\ne ", "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", ">=": "\\ge ", "<=": "\\le ", "**": "^", "\\{\\}": "\\emptyset ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "θ": "\\theta ", "≈": "\\approx ", "\\simeq": "\\approx ",
    "\\geqslant": "\\ge ", "\\leqslant": "\\le ", "⩾": "\\ge ", "⩽": "\\le ", "≡": "\\equiv ",
    "\\langle": "(", "\\rangle": ")", "⟨": "(", "⟩": ")", "ℝ": "\\mathbb{R}", "…": "\\ldots ", "{:}": ":",
    "{,}": ",", "\\$": "", "$": "", "€": "", "£": "", "¥": "", "\\(": "", "\\)": "", "\\%": "%", "\\&": "&",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]", "\\colon": ":",
    "\\varnothing": "\\emptyset", "\\ldots": "\\dots", "\\cdots": "\\dots", "△": "\\triangle ", "∠": "\\angle ",
}  # fmt: skip
"""Replaced in this order. `\\{\\}` precedes the other braces, brackets of typesetting come last."""
_FULL_WIDTH = {0xFF01 + at: 0x21 + at for at in range(94)}  # ７ is 7
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
INSIDE = r"(?:[^{}]|\{[^{}]*\})*"
"""What stands between braces; it may hold braces, too."""
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|operatorname|bm|boldsymbol|underline|emph)"
    rf"\s*\{{({INSIDE})\}}"
)
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:!> ]|(?:quad|qquad|displaystyle|textstyle|limits|hfill|left|right|[bB]igg?[lr]?)(?![a-z]))|~"
)
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_THOUSANDS_IN_LIST = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!\d|,\d)")
DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])|\\degrees(?![a-z])|°")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_PRIMES = re.compile(r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|\\prime(?![a-z]))")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_REPEATING_DECIMAL = re.compile(r"(\d{1,20})\.(\d{0,9}?)(\d)\3\3+(?:\.\.\.|\\[lc]?dots)")  # 0.1666...
MULTIPLES = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
"""Words after a number that multiply it."""

_WORD = re.compile(
    r"(?<![\\A-Za-z])(?<!_\{)(?!begin|end|[a-z]?matrix)[A-Za-z]{4,}(?![A-Za-z])"
    r"|(?<=\d) (?:out of|in|of|to|by|per|mod|over|at|for)(?= [\d\\-])"
    r"|(?<=\d) ?[A-Za-z]{1,3} (?=\d)"
)

FUNCTIONS = set(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp""".split()  # noqa: SIM905
)
COMMANDS = FUNCTIONS | set(
    """
    frac sqrt pi cdot times div pm mp infty cup cap in le leq ge geq lt gt ne neq binom begin end lvert rvert vert
    alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi
    omega Gamma Delta Theta Lambda Sigma Phi Psi Omega mathbb max min gcd lcm deg circ overline bar to mid lfloor
    rfloor lceil rceil emptyset varnothing setminus pmatrix bmatrix matrix vmatrix
    """.split()  # noqa: SIM905
)
"""LaTeX commands that are evaluated. An answer with another one (sum, integral) must match character by character."""


def tidy(text: str, *, thousands: bool = True) -> str:
    """The answer in a normal form: without typesetting and `text` wrappers, with `frac` for all fractions.

    With `thousands`, 1,234 outside brackets is one number, otherwise a list of two.
    """
    text = text.translate(_FULL_WIDTH)
    text = re.sub(r"√\s*(?:(\d+(?:\.\d+)?)|\(([^()]*)\))", lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    for symbol, plain in _SYMBOLS.items():
        text = text.replace(symbol, plain)
    if text.startswith("\\[") and text.endswith("\\]"):
        text = text[2:-2]
    text = _COLOUR.sub("", text)
    text = _SPACING.sub(" ", re.sub(r"(?<!\\)\\!", "", text))
    # the expressions below would try all ways to share out long white space; one space in 1 234 means something
    text = re.sub(r"\s{3,}", "  ", text)
    if TRIGONOMETRY.search(text):
        text = re.sub(rf"(\d+(?:\.\d+)?)\s*(?:{DEGREES.pattern})", r"(\1\\pi /180)", text)
    text = DEGREES.sub("", text)
    text = re.sub(r"\{\s*([^{}]*?)\s*\\over(?![a-z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", text)
    for _ in range(3):  # \text{\textbf{...}}
        text = _TEXT.sub(lambda m: f"\\{m[1]} " if m[1] in COMMANDS else f" {m[1]} ", text)  # \operatorname{arctan}
    text = re.sub(r"([^{}\\]+)\\over(?![a-z])([^{}\\]+)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r",\s*(and|or)\s+", ", ", text)
    text = re.sub(r"(?<=\d) +percent(?![a-z])", "%", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\[dt]?binom(?![a-z])(?:\s*(\d)\s*(\d))?", _binomial, text)
    text = _PRIMES.sub(lambda match: "'" * match[0].count("\\prime"), text)
    text = re.sub(r",\s*\.\.\.", r", \\dots ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d|[a-z](?![a-z]))", r"\\sqrt{\1}", text)
    if thousands and not re.search(r"[(\[]\s*[^()\[\]]*,[^()\[\]]*[)\]]|\\\{", text):
        text = _THOUSANDS.sub(lambda match: match[1] + match[2].replace(",", ""), text)
    text = re.sub(r"(?<![\d. ])(\d{1,3})((?: \d{3})+)(?![\d ])", lambda m: m[1] + m[2].replace(" ", ""), text)
    text = re.sub(r"\s+", " ", text).strip()
    text = text if text.endswith("...") else text.rstrip(" .;,:\\").lstrip(" ;,:")
    return text[1:-1].strip() if re.fullmatch(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", text) else text


def with_joined_thousands(text: str) -> str:
    """A tidy list with whole numbers for 1,234 where its items are separated by a comma and a space; else unchanged.

    >>> with_joined_thousands("1,234, 5,678"), with_joined_thousands("(1,000, 2)"), with_joined_thousands("1,234,5")
    ('1234, 5678', '(1000, 2)', '1,234,5')
    """
    if ", " not in text:
        return text
    return _THOUSANDS_IN_LIST.sub(lambda match: match[1] + match[2].replace(",", ""), text)


def _binomial(match: re.Match[str]) -> str:
    return f"\\binom{{{match[1]}}}{{{match[2]}}}" if match[1] else "\\binom"


def squeezed(text: str) -> str:
    """The text without spaces, except those between two digits."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, None for any other text.

    A plain number is an integer, a decimal, a percentage, a repeating decimal, a fraction of integers, a mixed number,
    a x 10^n, or a number with a word like million.
    """
    text = squeezed(text.replace("\\times", "*").replace("\\cdot", "*"))
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("-+") if text[:2] not in ("--", "++", "+-", "-+") else text
    if len(text) > 1000 or not text.isascii():
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", text):
        return sign * Fraction(match[1]) / (100 if match[2] else 1)
    if match := re.fullmatch(r"\\frac\{([-+]?\d+)\}\{([-+]?\d+)\}|(\d+)/(\d+)", text):
        above, below = int(match[1] or match[3]), int(match[2] or match[4])
        return sign * Fraction(above, below) if below else None
    if match := re.fullmatch(r"(\d+)(?:\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+))", text):  # a mixed number
        above, below = int(match[2] or match[4]), int(match[3] or match[5])
        return sign * (int(match[1]) + Fraction(above, below)) if above < below else None
    if match := re.fullmatch(r"(?:(\d+(?:\.\d*)?)\*)?10\^(?:\{([-+]?\d{1,3})\}|(\d))", text):
        return sign * Fraction(match[1] or 1) * Fraction(10) ** int(match[2] or match[3])
    if match := re.fullmatch(r"(\d*)\.(\d*)\\overline\{(\d{1,20})\}", text):
        fixed = Fraction(int((match[1] or "0") + match[2]), 10 ** len(match[2]))
        return sign * (fixed + Fraction(int(match[3]), (10 ** len(match[3]) - 1) * 10 ** len(match[2])))
    if match := _REPEATING_DECIMAL.fullmatch(text):
        return number(f"{'-' * (sign < 0)}{match[1]}.{match[2]}\\overline{{{match[3]}}}")
    if match := re.fullmatch(rf"(\d+(?:\.\d*)?)({'|'.join(MULTIPLES)})", text):
        return sign * Fraction(match[1]) * MULTIPLES[match[2]]
    if match := re.fullmatch(r"(\d+(?:\.\d*)?)[eE]([-+]?\d{1,3})", text):
        return sign * Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def word_in(text: str) -> str:
    """The first word of four letters or more that is not in `COMMANDS`, "" if there is none."""
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text)
    return next((word for word in words if word not in COMMANDS), "")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters: of four letters or more, or short ones between numbers (1 in 4, 3 ft 2).

    >>> words_of("1 in 4"), words_of("4 hours 30 min"), words_of("2abc+\\\\sin x")
    (['in'], ['hours'], [])
    """
    return [word.strip().lower() for word in _WORD.findall(text)]


def between(text: str) -> list[str]:
    """The pieces of a text around its `words_of`, one more than words."""
    return _WORD.split(text)
