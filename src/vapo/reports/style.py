"""The common style of all figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vapo.reports.palette import LIGHT, Palette

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "vapo",  # the same data yield the same file
    "text.parse_math": False,  # labels may contain dollar signs
}


class NotebookFigure(Figure):
    """A figure that a notebook shows, also where pyplot was not loaded."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with mpl.rc_context(_STYLE):
            FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def in_style(figure: Callable[[], Figure]) -> Figure:
    """The figure, made with the style of all others."""
    with mpl.rc_context(_STYLE):
        return figure()


def as_png(figure: Callable[[], Figure], path: str | Path) -> None:
    """Draw the figure into a PNG."""
    with mpl.rc_context(_STYLE):
        FigureCanvasAgg(figure()).print_png(path, metadata={"Software": "vapo"})


def as_svg(figure: Callable[[], Figure]) -> str:
    """The figure as an `<svg>` element, for embedding in a page."""
    buffer = BytesIO()
    with mpl.rc_context(_STYLE):
        FigureCanvasSVG(figure()).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue().decode("utf-8")
    return text[text.index("<svg") :]


def themed(svg: str) -> str:
    """The SVG with the light palette's colours replaced by CSS variables, so that it fits both colour schemes."""
    for name, hue in asdict(LIGHT).items():
        svg = svg.replace(hue, f"var(--{name})")
    return svg


def frame(
    axes: Axes, title: str, palette: Palette = LIGHT, *, grid: Literal["x", "y", "both"] = "y", whole: bool = False
) -> None:
    """Style a panel's title, grid, ticks and borders; `whole` puts x ticks on whole numbers only."""
    axes.set_title(title, loc="left", fontsize=10, weight="bold", color=palette.ink, pad=7)
    axes.set_facecolor(palette.paper)
    axes.grid(axis=grid, color=palette.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.quiet, labelsize=8.5, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.line)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole, min_n_ticks=1 if whole else 2))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
