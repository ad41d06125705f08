"""Recognises and converts the unit after a number.

Only words of a fixed list count as units, because other words change the number (million, squared, if). A unit has one
normal form (`km h^-1` for km/h and for kilometers per hour), and values are converted between units (12 cm = 0.12 m).
"""

from __future__ import annotations

import re
from fractions import Fraction

from vapo.tasks.verifiers.notation import DEGREES, INSIDE, MULTIPLES, TRIGONOMETRY, number, tidy

_SPELLINGS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "kg": "kilogram", "lb": "lbs pound", "oz": "ounce", "t": "ton tonne", "s": "sec second", "min": "minute",
    "h": "hr hour", "day": "days", "week": "", "month": "", "year": "yr",
    "l": "liter litre", "ml": "milliliter millilitre", "gallon": "gal",
    "degree": "deg", "radian": "rad", "°C": "celsius", "°F": "fahrenheit", "K": "kelvin",
    "dollar": "usd", "cent": "", "euro": "eur", "yen": "", "unit": "", "people": "person", "way": "",
    "child": "children", "man": "men", "woman": "women",
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "Pa": "pascal", "Hz": "hertz", "kWh": "kwh",
}  # fmt: skip
UNITS = {name: short for short, names in _SPELLINGS.items() for name in (short, *names.split())}
_ALIASES = {"mph": "mi h^-1", "kmh": "km h^-1", "kph": "km h^-1"}
_SINGULAR_NOUNS = set(
    """
    apple orange banana pear peach cherry berry lemon egg cake cookie candy pizza slice piece sandwich loaf cup glass
    bottle can jar bag box basket bucket packet bowl plate spoon teaspoon tablespoon pencil pen book page card coin
    stamp sticker toy doll ball marble balloon bead button block brick tile stone tree flower rose plant seed leaf dog
    cat cow horse sheep pig goat chicken hen duck bird fish rabbit mouse frog bee ant animal boy girl student teacher
    friend player worker car bus train truck bike bicycle boat ship plane ticket seat chair table room house door window
    floor step stair row column shelf game point goal win loss vote turn trip lap shirt sock shoe hat
    ring shell crayon ribbon rope string letter word solution triangle circle rectangle line edge vertex face side
    corner handshake
    """.split()  # noqa: SIM905
)
"""Nouns that count as a unit in the singular (1 apple). Plural nouns are recognised by their ending."""
_NOT_UNITS = {"plus", "minus", "times", "squares", "cubes", "factorials", "dozens", "hundreds", "thousands", "millions",
             "billions", "trillions", "always", "perhaps", "halves", "thirds", "quarters", "tens", "pairs", "scores",
             "negatives", "percents", "halfs", "units", "ones", "powers", "roots"}  # fmt: skip
_PREFIXES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_SUFFIXES = {"squared": 2, "cubed": 3}
_SCALE = {  # unit: (basic unit, number of basic units in it)
    **{unit: ("m", Fraction(size)) for unit, size in (("mm", "0.001"), ("cm", "0.01"), ("m", 1), ("km", 1000),
       ("in", "0.0254"), ("ft", "0.3048"), ("yd", "0.9144"), ("mi", "1609.344"))},
    **{unit: ("g", Fraction(size)) for unit, size in (("mg", "0.001"), ("g", 1), ("kg", 1000))},
    **{unit: ("s", Fraction(size)) for unit, size in (("s", 1), ("min", 60), ("h", 3600), ("day", 86400),
       ("week", 604800))},
    "ml": ("l", Fraction(1, 1000)), "l": ("l", Fraction(1)), "oz": ("lb", Fraction(1, 16)), "lb": ("lb", Fraction(1)),
    "cent": ("dollar", Fraction(1, 100)), "dollar": ("dollar", Fraction(1)),
}  # fmt: skip
# £ is "lb" because the word pound may mean either
_MONEY = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "lb", "¥": "yen"}
_WRAPPED = rf"\\(?:text|mathrm|mbox|textrm)\s*\{{{INSIDE}\}}"
_UNIT = re.compile(rf"(?P<value>.*?\S)\s*(?P<unit>{_WRAPPED}(?:{_WRAPPED}|[\s/]|\\cdot|\^\s*(?:\{{-?\d\}}|\d))*)")
_WORDS_AFTER = re.compile(
    rf"(?P<value>[-+]?(?:[\d.,/]+|\d*\\frac\{{\d+\}}\{{\d+\}})(?: (?:{'|'.join(MULTIPLES)}))?)\s+"
    r"(?P<unit>[A-Za-z](?:[A-Za-z /.]|\^ ?(?:\{-?\d\}|\d))*)"
)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+|''|'|\")")
_QUANTITIES = re.compile(rf"{_QUANTITY.pattern}(?:,? ?(?:and )?{_QUANTITY.pattern})+")
_PRIME_UNITS = {"'": "ft", "''": "in", '"': "in"}
_DEGREES_AFTER = re.compile(rf"(.*?)(?:{DEGREES.pattern})(.*)")
_NOT_WORDS = re.compile(r"[\d{}\\]")
_TOKEN = re.compile(r"[^\W\d_]+|°[CF]|/|\^ ?\{?(-?\d)\}?")


def unit_named(words: str) -> str | None:
    """The normal form of a unit ("cm" for centimeters), None if the words are not a unit.

    Plural nouns (7 apples) and the nouns of `_SINGULAR_NOUNS` are units too.

    >>> unit_named("centimeters"), unit_named("km/h"), unit_named("apples"), unit_named("million")
    ('cm', 'km h^-1', 'apple', None)
    >>> unit_named("square feet"), unit_named("meters per second squared"), unit_named("cm^2")
    ('ft^2', 'm s^-2', 'cm^2')
    """
    powers: dict[str, int] = {}
    sign, ahead, last = 1, 1, ""
    words = words.replace("p.m.", "pm").replace("a.m.", "am")
    if _NOT_WORDS.search(_TOKEN.sub("", words)):
        return None  # m^{12}
    for match in _TOKEN.finditer(words):
        word = match[0]
        if match[1] or word in _SUFFIXES:
            if not last:
                return None
            powers[last] *= int(match[1] or _SUFFIXES[word])
        elif word in ("/", "per"):
            sign, last = -1, ""
        elif word in _PREFIXES:
            ahead = _PREFIXES[word]
        else:
            if word in _ALIASES:
                return _ALIASES[word] if not powers else None
            if (last := _unit_of_word(word) or "") == "":
                return None
            powers[last] = powers.get(last, 0) + sign * ahead
            ahead = 1
    if ahead != 1 or not last:
        return None  # "square" or "per" without a unit after it
    return " ".join(f"{name}^{power}" if power != 1 else name for name, power in powers.items() if power) or None


def _unit_of_word(word: str) -> str | None:
    """The normal form of a unit of one word, None if it is not one."""
    if re.match(r"M[gmlGML]$", word):
        return word  # mega, not milli
    known = UNITS.get(word) or UNITS.get(word.lower()) or UNITS.get(word.lower().removesuffix("s"))
    if known and not (len(word) == 1 and word.isupper() and word not in "NJWVKLC"):
        return known
    if word in _SINGULAR_NOUNS:
        return word
    counted = len(word) > 3 and word.islower() and word.endswith("s") and not word.endswith(("ths", "ss"))
    return word.removesuffix("s") if counted and word not in _NOT_UNITS else None


def split_unit(answer: str) -> tuple[str, str]:
    """The value and the unit of an answer such as `12\\text{ cm}`, `7 apples` or `€5`.

    The value is in the answer's own notation. Without a unit it is the whole answer, and the unit is "".
    """
    answer = answer.strip().rstrip(".").strip()
    if (match := _DEGREES_AFTER.fullmatch(answer)) and not DEGREES.search(match[1] + match[2]):
        scale = re.fullmatch(r"\s*([CF])\s*", tidy(match[2])) if match[2].strip() else None
        if scale or not match[2].strip():
            return (answer, "") if TRIGONOMETRY.search(answer) else (match[1], f"°{scale[1]}" if scale else "degree")
    for sign, unit in _MONEY.items():
        if answer.startswith(sign) and answer.count("$") <= 1:
            return answer.removeprefix(sign).strip(), unit
        if answer.endswith(sign) and answer.count("$") <= 1:
            return answer.removesuffix(sign).strip(), unit
    for match in (_UNIT.fullmatch(answer), _WORDS_AFTER.fullmatch(tidy(answer))):
        if match and (unit := unit_named(tidy(match["unit"].replace("\\cdot", " ")))):
            inner = (unit_named(tidy(text)) for text in re.findall(_WRAPPED, match["value"]))
            if any(other not in (None, unit) for other in inner):
                break  # 3 km, 4 m
            return match["value"], unit.removeprefix("degree ")
    return answer, ""


def quantity(text: str) -> tuple[Fraction, str] | None:
    """The value and basic unit of a length, weight, time or price in two units or more; None for any other text.

    The units go down, and each count fits into the unit before it: 2 hours 90 minutes is none.

    >>> quantity("2 hours and 30 minutes") == quantity("2h 30m") == (9000, "s")
    True
    >>> quantity("30 minutes"), quantity("3 ft 14 in"), quantity("3 m, 2 kg")
    (None, None, None)
    """
    text = tidy(text)
    if not _QUANTITIES.fullmatch(text):
        return None
    total, sizes, kind = Fraction(0), [], ""
    for count, word in _QUANTITY.findall(text):
        word = "min" if word == "m" and kind == "s" else _PRIME_UNITS.get(word, word)
        base, size = _SCALE.get(_unit_of_word(word) or "", ("", Fraction(0)))
        if not base or (kind and base != kind) or (sizes and Fraction(count) * size >= sizes[-1]):
            return None
        total, kind = total + Fraction(count) * size, base
        sizes.append(size)
    return total, kind


def same_quantity(gold: str, answer: str) -> bool | None:
    """Whether both are the same quantity, None unless one is in two units or more and the other has a unit.

    >>> same_quantity("2 hours 30 minutes", "150 minutes"), same_quantity("5' 8''", "8 ft 5 in")
    (True, False)
    """
    found = [quantity(text) for text in (gold, answer)]
    if found == [None, None]:
        return None
    if "£" in gold + answer:
        return False  # "lb" here, but pounds and ounces are no money
    sums = [amount or _single(text) for amount, text in zip(found, (gold, answer), strict=True)]
    return None if None in sums else sums[0] == sums[1]


def _single(text: str) -> tuple[Fraction, str] | None:
    """The value and basic unit of a quantity in one unit."""
    value, unit = split_unit(text)
    base, size = _SCALE.get(unit, ("", Fraction(0)))
    count = number(tidy(value))
    return (count * size, base) if base and count is not None else None


def conversion(unit: str, other: str) -> Fraction | None:
    """The factor that converts a value in `unit` to `other`, None if they measure different quantities.

    It is 1 if one of the units is "", and between a degree and a scale of temperature.

    >>> conversion("m", "cm"), conversion("km h^-1", "m s^-1"), conversion("cm", "cm^2"), conversion("", "apple")
    (Fraction(100, 1), Fraction(5, 18), None, Fraction(1, 1))
    """
    if not unit or not other or unit == other:
        return Fraction(1)
    if "degree" in (unit, other) and "°" in (unit[0], other[0]):
        return Fraction(1)
    (size, kind), (other_size, other_kind) = _in_basic_units(unit), _in_basic_units(other)
    return size / other_size if kind == other_kind else None


def _in_basic_units(unit: str) -> tuple[Fraction, dict[str, int]]:
    """A unit in basic units: the factor, and the power of each basic unit."""
    size, kind = Fraction(1), {}
    for part in unit.split():
        name, _, power = part.partition("^")
        base, factor = _SCALE.get(name, (name, Fraction(1)))
        size *= factor ** int(power or 1)
        kind[base] = kind.get(base, 0) + int(power or 1)
    return size, kind
