"""One spelling for each way to write a mathematical answer, and a bound on what is worth evaluating.

Strings in, strings out; every text is short here (`MAX_ANSWER`), so no pattern can take long.
"""

from __future__ import annotations

import re
from fractions import Fraction

from vapo.tasks.verifiers.units import unit_named

MAX_ANSWER = 400
"""Characters of the longest answer that is read as mathematics."""
MAX_EXPONENT = 100_000
"""Product of all exponents in an answer: a power has at most about so many digits."""
MAX_SYMBOLIC_EXPONENT = 200
"""The same where variables occur."""
MAX_GROUP_EXPONENT = 24
"""The same for powers of a group with variables, (x+1)^24: expanding (a+b+c)^30 takes seconds."""
MAX_TOWER = 3
MAX_FACTORIAL = 500
MAX_DIGITS = 60
MAX_DEPTH = 12
MAX_ROOTS = 8

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ",
    "√": "\\sqrt ", "°": "^\\circ ", "≤": "\\le ", "≥": "\\ge ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "±": "\\pm ", "≠": "\\ne ", "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", ">=": "\\ge ", "<=": "\\le ", "**": "^", "\\{\\}": "\\emptyset ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "θ": "\\theta ",
}  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|operatorname|bm)\s*\{([^{}]*)\}"
)
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:!> ]|(?:quad|qquad|displaystyle|textstyle|limits|hfill|left|right|[bB]igg?[lr]?)(?![a-z]))|~"
)
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])|\\degrees(?![a-z])")
_IN_DEGREES = re.compile(rf"(.*?)(?:{_DEGREES.pattern})")
_UNIT = re.compile(
    r"(?P<value>.*\S)\s*\\(?:text|mathrm|mbox|textrm)\s*\{(?P<words>[^{}\d,;]*)\}\s*(?:\^\s*\{?(?P<power>\d)\}?)?"
)
_WORDS_BEHIND = re.compile(r"(?P<value>[-+]?[\d.,/]+)\s+(?P<words>[A-Za-z][A-Za-z /]*)(?:\^\{?(?P<power>\d)\}?)?")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-df-hj-z]")  # e and i are numbers
_NUMERIC_POWER = re.compile(r"[\d)}]\s*(?:\^|\*\*)")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

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
"""What an answer may be written with; sums, integrals, limits and everything else only match letter by letter."""


def tidy(text: str, *, thousands: bool = True) -> str:
    """The answer in one spelling: no typesetting, no units' wrappers, plain fractions.

    With `thousands`, 1,234 outside brackets is one number, else two.
    """
    text = re.sub(r"√\s*(?:(\d+(?:\.\d+)?)|\(([^()]*)\))", lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    for symbol, plain in _SYMBOLS.items():
        text = text.replace(symbol, plain)
    text = text.replace("{,}", ",").replace("\\$", "").replace("$", "").replace("\\(", "").replace("\\)", "")
    text = text.replace("\\%", "%").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}").replace("\\lbrack", "[")
    text = text.replace("\\rbrack", "]").replace("\\&", "&")
    if text.startswith("\\[") and text.endswith("\\]"):
        text = text[2:-2]
    text = text.replace("\\colon", ":").replace("\\varnothing", "\\emptyset")
    text = _SPACING.sub(" ", re.sub(r"(?<!\\)\\!", "", text))
    if _TRIGONOMETRY.search(text):
        text = re.sub(rf"(\d+(?:\.\d+)?)\s*(?:{_DEGREES.pattern})", r"(\1\\pi /180)", text)
    text = _DEGREES.sub("", text)
    text = re.sub(r"\{\s*([^{}]*?)\s*\\over(?![a-z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", text)
    for _ in range(3):  # \text{\textbf{...}}
        text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"([^{}\\]+)\\over(?![a-z])([^{}\\]+)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r",\s*(and|or)\s+", ", ", text)
    text = re.sub(r"(?<=\d) +percent(?![a-z])", "%", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d|[a-z](?![a-z]))", r"\\sqrt{\1}", text)
    if thousands and not re.search(r"[(\[]\s*[^()\[\]]*,[^()\[\]]*[)\]]|\\\{", text):
        text = _THOUSANDS.sub(lambda match: match[1] + match[2].replace(",", ""), text)
    text = re.sub(r"(?<![\d. ])(\d{1,3})((?: \d{3})+)(?![\d ])", lambda m: m[1] + m[2].replace(" ", ""), text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if text.endswith("...") else text.rstrip(" .;,:\\").lstrip(" ;,:")


def squeezed(text: str) -> str:
    """Without the spaces that mean nothing; one between two digits does."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def split_unit(answer: str) -> tuple[str, str]:
    """An answer as written and the unit behind its value, "" if there is none: `12\\text{ cm}`, `7 apples`."""
    answer = answer.strip().rstrip(".")
    match = _UNIT.fullmatch(answer) or _WORDS_BEHIND.fullmatch(tidy(answer))
    if match and (unit := unit_named(match["words"])):
        return match["value"], f"{unit}^{match['power']}" if match["power"] else unit
    if (match := _IN_DEGREES.fullmatch(answer)) and not _DEGREES.search(match[1]) and not _TRIGONOMETRY.search(answer):
        return match[1], "degree"
    return answer, ""


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: integer, decimal, percentage, repeating decimal, fraction of
    integers, a x 10^n; else None."""
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
    if match := re.fullmatch(r"(\d+(?:\.\d*)?)[eE]([-+]?\d{1,3})", text):
        return sign * Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def word_in(text: str) -> str:
    """The first word of four letters or more that names nothing in mathematics, "" if there is none."""
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text)
    return next((word for word in words if word not in COMMANDS), "")


def too_wild(text: str) -> str:
    """Why a tidy answer is not worth evaluating ("" if it is): it might take for ever, or is no mathematics.

    A bound from above on the size of the numbers in it, crude on purpose: real answers are far below.
    """
    if not text.isascii():
        return "characters that are no mathematics"
    if not text.isprintable():
        return "control characters"
    if "__" in text or any(mark in text for mark in '"`@;#'):
        return "no mathematical notation"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"nested {deepest} deep"
    if unknown := next((c for c in re.findall(r"\\([A-Za-z]+)", text) if c not in COMMANDS), None):
        return f"\\{unknown[:20]} in an answer"
    if any(len(run) > MAX_DIGITS for run in re.findall(r"\d+", text)):
        return f"a number of more than {MAX_DIGITS} digits"
    if text.count("\\sqrt") > MAX_ROOTS:
        return "too many roots"
    if re.search(r"\d\s*[eE]\s*[-+]?\d{4}", text):
        return "a huge power of ten"
    return _too_large(text)


def _too_large(text: str) -> str:
    if "!" in text:
        literal = re.findall(r"(\d*)\s*!", text)
        if re.search(r"[!)}]\s*!", text) or any(len(n) > 4 or int(n or 0) > MAX_FACTORIAL for n in literal):
            return "a huge factorial"
    if re.search(r"\\[Gg]amma\s*\(", text):
        return "a gamma function"
    for match in re.finditer(r"\\binom", text):
        inside = text[match.end() : match.end() + 20]
        if re.search(r"\^|\\binom|!|\d{4}", inside):
            return "a huge binomial"
    symbolic = _VARIABLE.search(_COMMAND.sub(" ", text))
    size = group_size = 1
    for base, exponent in _powers(text):
        # 9^{9^9}; e^{x^2} is fine, and every power inside is looked at in its turn
        if "!" in exponent or (_NUMERIC_POWER.search(exponent) and not _VARIABLE.search(_COMMAND.sub(" ", exponent))):
            return "a power in an exponent"
        if exponent.count("^") + exponent.count("**") >= MAX_TOWER:
            return "a tower of powers"
        literals = re.findall(r"\d+", exponent)
        if any(len(n) > 6 for n in literals):
            return "a huge exponent"
        for n in literals:
            size *= max(int(n), 1)
            group_size *= max(int(n), 1) if base and base in ")}]" else 1
    if size > (MAX_SYMBOLIC_EXPONENT if symbolic else MAX_EXPONENT):
        return "a huge exponent"
    return "a huge power of a group" if symbolic and group_size > MAX_GROUP_EXPONENT else ""


def _powers(text: str) -> list[tuple[str, str]]:
    """(base, exponent) of each `^` or `**`: the base is the character before it, or the name of a function; the
    exponent a group in braces or parentheses, or a run without operators."""
    found = []
    for match in re.finditer(r"\^|\*\*", text):
        before = text[: match.start()].rstrip()
        function = re.search(r"\\([A-Za-z]+)$", before)
        base = ")" if function and function[1] in FUNCTIONS else before[-1:]
        at = match.end()
        while at < len(text) and text[at] == " ":
            at += 1
        if at < len(text) and text[at] in "{(":
            depth, end = 0, at
            while end < len(text):
                depth += (text[end] in "{(") - (text[end] in "})")
                end += 1
                if depth == 0:
                    break
            found.append((base, text[at:end]))
        else:
            run = re.match(r"[-+]?(?:\\?[A-Za-z]+|\d+)?!?(?:\s*(?:\^|\*\*).*)?", text[at:])
            found.append((base, run[0] if run else ""))
    return found
