"""Ranges of settings, declared beside the field: one declaration checks the value, explains the error, prints the page.

stuck_floor_s: float = number(300.0, gt=0, unit="seconds")
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from vapo.errors import ConfigError

RANGE = "range"


@dataclass(frozen=True)
class Range:
    """Finite numbers between the bounds; `ge` and `le` belong to the range, `gt` and `lt` do not.

    `unit` says what is counted or measured (`tokens`, `seconds`); empty for a pure number.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """The range in words: `at least 1`, `in [0, 1]`, `above 0`."""
        low = self.ge if self.ge is not None else self.gt
        high = self.le if self.le is not None else self.lt
        if low is not None and high is not None:
            left, right = "[" if self.ge is not None else "(", "]" if self.le is not None else ")"
            return f"in {left}{_short(low)}, {_short(high)}{right}"
        if low is not None:
            return f"at least {_short(low)}" if self.ge is not None else f"above {_short(low)}"
        if high is not None:
            return f"at most {_short(high)}" if self.le is not None else f"below {_short(high)}"
        return "finite"


def _short(bound: float) -> str:
    """A bound in words; of whole numbers every digit, but for large powers of 2."""
    if isinstance(bound, int) and bound >= 2**53 and bound.bit_count() == 1:
        return f"2^{bound.bit_length() - 1}"
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def number(
    default: Any = MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    unit: str = "",
) -> Any:
    """A dataclass field that holds a number within bounds, or None where the default is None."""
    return field(default=default, metadata={RANGE: Range(ge, gt, le, lt, unit)})


def check_ranges(owner: Any, section: str) -> None:
    """Raise ConfigError for the first field of the dataclass `owner` whose number is outside of its range.

    Call it from `__post_init__`. `section` is where the settings file has the fields, such as `trainer`.
    """
    for f in fields(owner):
        allowed, value = f.metadata.get(RANGE), getattr(owner, f.name)
        if allowed is None or (value is None and f.default is None):
            continue
        assert value is not None
        if isinstance(value, bool) or value not in allowed:
            finite = "" if math.isfinite(value) or str(allowed) == "finite" else "finite and "
            raise ConfigError(f"{section}.{f.name} must be {finite}{allowed}, got {value}.")
