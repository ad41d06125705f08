"""The common style of all figures of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from vapo.reports.formatting import one_line, short_count
from vapo.reports.palette import LIGHT, Palette
from vapo.reports.runfiles import Record
from vapo.study.comparison.methods import LADDER

WIDTH = 10.0  # inches; at 120 dots each, 1200 pixels
_COLOURS = {"ppo": "fourth", "vc-ppo": "fifth", "grpo": "third", "dapo": "second", "vapo": "first"}
AS_COUNT = FuncFormatter(lambda value, _: short_count(value) if value else "0")


def new_figure(height: float) -> Figure:
    """An empty figure with the common width, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=120, facecolor=LIGHT.paper)


def colours(methods: list[str], reference: str, palette: Palette = LIGHT) -> dict[str, str]:
    """Colours by method. The methods of the paper's comparison have fixed colours.

    The other methods share the free colours if those are enough for all of them, the reference left out where they are
    not; without a method of the paper the first five get one. A reference that has none is drawn in ink; where it has
    one, ink is a free colour, too. Methods without an entry are drawn in grey.
    """
    chosen = {method: _COLOURS[method] for method in methods if method in LADDER}
    free = [hue for hue in ("first", "second", "third", "fourth", "fifth") if hue not in chosen.values()]
    others = [method for method in methods if method not in chosen]
    if free and reference in chosen:
        free.append("ink")
    if len(others) > len(free):
        others = [method for method in others if method != reference]
    if len(others) <= len(free) or not chosen:
        chosen |= dict(zip(others, free, strict=False))
    if reference in methods:
        chosen.setdefault(reference, "ink")
    return {method: getattr(palette, chosen[method]) for method in methods if method in chosen}


def label_x(axes: Axes, text: str, palette: Palette = LIGHT) -> None:
    """Label the x axis."""
    axes.set_xlabel(text, fontsize=8.5, color=palette.quiet, labelpad=2)


def legend_rows(names: Iterable[str]) -> int:
    """The number of lines in a legend of these names."""
    names = list(names)
    return -(-len(names) // _legend_columns(names))


def legend(figure: Figure, names: dict[str, str], top: float, palette: Palette = LIGHT) -> None:
    """Draw a legend of names and colours with its upper edge at `top`, a share of the height; long names are cut."""
    handles = [Line2D([], [], color=hue, linewidth=2.2) for hue in names.values()]
    box = figure.legend(
        handles,
        [fitted(name, 4.2, 9) for name in names],
        loc="upper left",
        bbox_to_anchor=(0.045, top),
        ncols=_legend_columns(list(names)),
        frameon=False,
        fontsize=9,
        handlelength=1.5,
        columnspacing=1.8,
        borderaxespad=0,
        borderpad=0,
    )
    for text in box.get_texts():
        text.set_color(palette.ink)


def _legend_columns(names: list[str]) -> int:
    return 5 if all(len(name) < 14 for name in names) else 2


def band(axes: Axes, curve: Record, hue: str, *, width: float = 1.9) -> None:
    """Draw a mean curve and its band, if it has one."""
    x = np.array(curve["x"], dtype=float)
    mean, low, high = (np.array(curve[key], dtype=float) for key in ("mean", "low", "high"))
    axes.plot(x, mean, color=hue, linewidth=width, solid_capstyle="round", marker="o" if len(x) == 1 else None)
    if not np.isnan(low).all():
        axes.fill_between(x, low, high, color=hue, alpha=0.16, linewidth=0)


def spread_out(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions within [low, high], at least `gap` apart and in the same order, moved as little as possible.

    >>> spread_out([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)
    [0.4, 0.6, 0.9]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    blocks: list[tuple[float, int]] = []  # centre and size of groups that are `gap` apart
    for i in order:
        middle, size = places[i], 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] / 2 > middle - gap * size / 2:
            before, many = blocks.pop()
            middle, size = (before * many + middle * size) / (many + size), many + size
        reach = gap * (size - 1) / 2
        blocks.append((min(max(middle, low + reach), high - reach), size))
    moved = [middle + gap * (j - (size - 1) / 2) for middle, size in blocks for j in range(size)]
    back = dict(zip(order, moved, strict=True))
    return [round(back[i], 9) for i in range(len(places))]


def fitted(name: str, inches: float, size: float, *, lines: int = 1, weight: str = "normal") -> str:
    """A label broken into at most `lines` lines that are no wider than `inches` at a font size; cut with an ellipsis.

    Lines end after a space, a hyphen, an underscore, a full stop or an equals sign, and within a word that is wider
    than a line.
    """

    def fits(text: str) -> bool:
        return size * sum(_width(character, weight) for character in text) <= 72 * inches

    rest, found = one_line(name), []
    while rest and len(found) < lines:
        length = len(rest)
        while length > 1 and not fits(rest[:length].rstrip()):
            length -= 1
        if length < len(rest) and len(found) < lines - 1:
            length = max((end.end() for end in re.finditer(r"[\s\-_.=]", rest[:length])), default=length)
        found.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
    if rest and found:
        last = found[-1]
        while last and not fits(last + "…"):
            last = last[:-1]
        found[-1] = last.rstrip() + "…"
    return "\n".join(found)


@lru_cache(maxsize=4096)
def _width(character: str, weight: str) -> float:
    """The width of a character as a multiple of the font's size; one em for a character that the font lacks."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))  # pyright: ignore[reportArgumentType]
    if not font.get_char_index(ord(character)):  # loading it raises; the figure shows a box
        return 1.0
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100
