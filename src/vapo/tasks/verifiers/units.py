"""Units behind a number: a closed list, for what else stands there changes the number (million, squared, if)."""

from __future__ import annotations

import re

_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "kg": "kilogram", "lb": "lbs pound", "oz": "ounce", "t": "ton tonne", "s": "sec second", "min": "minute",
    "h": "hr hour", "day": "days", "week": "", "month": "", "year": "yr",
    "l": "liter litre", "ml": "milliliter millilitre",
    "degree": "deg", "radian": "rad", "dollar": "usd", "cent": "", "euro": "eur", "mph": "", "unit": "", "sq": "square",
    "cu": "cubic", "per": "", "people": "person", "way": "", "child": "children", "man": "men", "woman": "women",
    "n": "newton", "j": "joule", "w": "watt", "v": "volt", "pa": "pascal", "hz": "hertz", "kwh": "", "kmh": "kph",
}  # fmt: skip
UNITS = {name: short for short, names in _NAMES.items() for name in (short, *names.split())}
_NO_COUNT = {"plus", "minus", "times", "squares", "cubes", "factorials", "dozens", "hundreds", "thousands", "millions",
             "billions", "trillions", "always", "perhaps"}  # fmt: skip


def unit_named(words: str) -> str | None:
    """One name for the unit these words are ("cm" for centimeters), None if they are none.

    Besides the units of the list, plural nouns are: 7 apples.

    >>> unit_named("centimeters"), unit_named("km/h"), unit_named("apples"), unit_named("million")
    ('cm', 'km h', 'apple', None)
    """
    found = []
    for word in re.findall(r"[^\W\d_]+", words):
        known = UNITS.get(word.lower()) or UNITS.get(word.lower().removesuffix("s"))
        if known is None or (len(word) == 1 and word.isupper() and word not in "NJWVL"):
            counted = len(word) > 3 and word.islower() and word.endswith("s") and not word.endswith(("ths", "ss"))
            if not counted or word in _NO_COUNT:
                return None
            known = word.removesuffix("s")
        found.append(known)
    return " ".join(found) or None
