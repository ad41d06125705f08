"""One figure with the curves of a run: accuracy first, then the metrics that explain it.

Only panels with data are drawn. A GRPO run has no critic, so the next panels on the list take those places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vapo.errors import counted
from vapo.metrics import SHARE, Phase, metric_called
from vapo.reports.palette import LIGHT, Palette
from vapo.reports.runfiles import RunFiles, column, number, read_run
from vapo.reports.style import NotebookFigure, as_png, as_svg, frame

TIMES = ("time/rollout", "time/verify", "time/score", "time/update")
_COLUMNS = 3
_SMALL_PANELS = 7  # the accuracy panel takes two of the nine places


class Panel(NamedTuple):
    """A small panel: the metrics of training steps and of value pretraining (`before`) that it shows, and the function
    that draws them. The first metric gives the title."""

    keys: tuple[str, ...]
    draw: Callable[[Axes, RunFiles, Palette], None]
    before: tuple[str, ...] = ()


def curves_png(run_dir: str | Path, out: str | Path) -> Path:
    """Draw the run's curves into a PNG, 1200 pixels wide, and return its path."""
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    as_png(lambda: curves_figure(read_run(run_dir), LIGHT), target)
    return target


def curves_svg(run: RunFiles, palette: Palette = LIGHT) -> str:
    """The same figure as an `<svg>` element without a heading, for embedding in a page."""
    return as_svg(lambda: curves_figure(run, palette, heading=False))


def curves_figure(run: RunFiles, palette: Palette = LIGHT, *, heading: bool = True) -> Figure:
    """The figure; `heading` adds the run's name above it."""
    panels = [panel for panel in _PANELS if _has_any(run, panel)][:_SMALL_PANELS]
    num_rows = max(1, math.ceil((len(panels) + 2) / _COLUMNS))
    above = 0.98 if heading else 0.35
    height = above + 2.15 * num_rows
    figure = NotebookFigure(figsize=(10.0, height), dpi=120, facecolor=palette.paper)
    grid = figure.add_gridspec(
        num_rows,
        _COLUMNS,
        left=0.062,
        right=0.985,
        top=1 - above / height,
        bottom=0.5 / height,
        wspace=0.24,
        hspace=0.52,
    )
    if heading:
        _heading(figure, run.name, 0.2 / height, palette.ink, fontsize=14, weight="bold")
        _heading(figure, _subtitle(run), 0.48 / height, palette.quiet, fontsize=9.5)
    places = [(place // _COLUMNS, place % _COLUMNS) for place in range(2, 2 + len(panels))]
    last_step = max([1, *(int(row.get("step", 1)) for row in run.phase(Phase.TRAIN))])
    accuracy = figure.add_subplot(grid[0, :2])
    frame(accuracy, metric_called("accuracy").heading, palette, whole=True)
    _accuracy(accuracy, run, palette)
    for panel, (row, place) in zip(panels, places, strict=True):
        axes = figure.add_subplot(grid[row, place])
        frame(axes, metric_called(panel.keys[0]).heading, palette, whole=True)
        axes.set_xlim(0, 1.02 * last_step)
        panel.draw(axes, run, palette)
    return figure


def trailing_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` values before it."""
    sums = [0.0, *accumulate(values)]
    return [(sums[end] - sums[max(0, end - window)]) / min(end, window) for end in range(1, len(values) + 1)]


def _heading(figure: Figure, text: str, down: float, colour: str, **how: Any) -> None:
    figure.text(0.022, 1 - down, text, color=colour, va="top", parse_math=False, **how)


def _has_any(run: RunFiles, panel: Panel) -> bool:
    """Whether the panel has something to draw: a metric that both phases have is drawn of training only."""
    phases = ((Phase.TRAIN, panel.keys), (Phase.PRETRAIN, panel.before))
    return any(column(run.phase(phase), key)[0] for phase, keys in phases for key in keys)


def _subtitle(run: RunFiles) -> str:
    task = run.config.get("task")
    name = task.get("name") if isinstance(task, dict) else task
    num_pretraining, num_steps = len(run.phase(Phase.PRETRAIN)), len(run.phase(Phase.TRAIN))
    parts = [run.label]
    if name:
        parts.append(f"task {name}")
    if num_pretraining:
        parts.append(counted(num_pretraining, "pretraining step"))
    parts.append(counted(num_steps, "training step"))
    if "seed" in run.config:
        parts.append(f"seed {run.config['seed']}")
    return "  ·  ".join(parts)


def _legend(axes: Axes, palette: Palette, **how: object) -> None:
    settings = {"loc": "best", "frameon": True, "framealpha": 0.75, "fontsize": 8, "handlelength": 1.4} | how
    legend = axes.legend(**settings)  # pyright: ignore[reportArgumentType]
    legend.get_frame().set(edgecolor="none", facecolor=palette.paper)
    for text in legend.get_texts():
        text.set_color(palette.quiet)


def _curve(axes: Axes, rows: list[dict], key: str, colour: str, label: str | None = None) -> None:
    """Draw the raw curve faintly, and its trailing mean over it."""
    steps, values = column(rows, key)
    if not steps:
        return
    window = _window(len(steps))
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(
        steps,
        trailing_mean(values, window),
        color=colour,
        linewidth=1.7,
        label=label,
        solid_capstyle="round",
        marker="o" if len(steps) == 1 else None,
        markersize=4,
    )


def _window(num_steps: int) -> int:
    return max(1, min(20, num_steps // 20))


def _accuracy(axes: Axes, run: RunFiles, palette: Palette) -> None:
    rows = run.phase(Phase.TRAIN)
    window = _window(len(column(rows, "accuracy")[0]))
    label = "training batches" + (f", mean of {window} steps" if window > 1 else "")
    _curve(axes, rows, "accuracy", palette.first, label)
    points = [e for e in run.evaluations if math.isfinite(number(e.get("avg")))]
    if points:
        steps = [int(e.get("step") or 0) for e in points]
        means = [number(e["avg"]) for e in points]
        down = [max(0.0, mean - number(e.get("low"))) for mean, e in zip(means, points, strict=True)]
        up = [max(0.0, number(e.get("high")) - mean) for mean, e in zip(means, points, strict=True)]
        axes.errorbar(
            steps,
            means,
            yerr=[[0.0 if math.isnan(x) else x for x in side] for side in (down, up)],
            fmt="o",
            color=palette.second,
            markersize=5,
            elinewidth=1.5,
            capsize=3,
            zorder=5,
            label=f"held-out, avg@{points[-1].get('k', 'k')} with 95 % interval",
        )
        for at in {0, len(points) - 1}:
            axes.annotate(
                f"{means[at]:.2f}",
                (steps[at], means[at] + (0.0 if math.isnan(up[at]) else up[at])),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                weight="bold",
                color=palette.second,
            )
    # room for the number above the last point, below the legend
    top = 1.18 if axes.get_ylim()[1] > 0.62 else axes.get_ylim()[1] * 1.25
    axes.set_ylim(0, top)
    axes.set_xlabel("training step", fontsize=8.5, color=palette.quiet, labelpad=2)
    axes.yaxis.set_major_formatter(_AS_PERCENT)
    if axes.get_legend_handles_labels()[0]:
        # in the row of the title, where it covers no curve
        _legend(axes, palette, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, columnspacing=1.2, borderaxespad=0)
    else:
        axes.text(
            0.5, 0.5, "no training step yet", transform=axes.transAxes, ha="center", color=palette.quiet, fontsize=10
        )


def _length(axes: Axes, run: RunFiles, palette: Palette) -> None:
    """Draw the mean length, and the share cut off at the limit in a strip below with its own scale."""
    rows = run.phase(Phase.TRAIN)
    _curve(axes, rows, "completions/mean_length", palette.first)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    if not column(rows, "completions/clipped_ratio")[0]:
        return
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom + 0.5 * height, width, 0.5 * height))
    axes.tick_params(labelbottom=False)
    strip = axes.figure.add_axes((left, bottom, width, 0.27 * height))
    frame(strip, "", palette, whole=True)
    strip.set_title(
        metric_called("completions/clipped_ratio").heading, loc="left", fontsize=8, color=palette.quiet, pad=3
    )
    _curve(strip, rows, "completions/clipped_ratio", palette.second)
    strip.set_ylim(0, max(0.05, strip.get_ylim()[1] * 1.15))
    strip.set_xlim(axes.get_xlim())
    strip.yaxis.set_major_locator(MaxNLocator(nbins=2))
    strip.yaxis.set_major_formatter(_AS_PERCENT)


def _explained_variance(axes: Axes, run: RunFiles, palette: Palette) -> None:
    axes.axhline(0, color=palette.quiet, linewidth=0.8, alpha=0.6)
    _two_phases(axes, run, palette, "pretrain/explained_variance", "value/explained_variance")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.0), min(1.0, max(high, 0.1)))


def _value_loss(axes: Axes, run: RunFiles, palette: Palette) -> None:
    _two_phases(axes, run, palette, "pretrain/value_loss", "value/loss")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def _two_phases(axes: Axes, run: RunFiles, palette: Palette, before_key: str, train_key: str) -> None:
    """Draw pretraining in a shaded strip of fixed width on the left, and training by step to its right."""
    train = run.phase(Phase.TRAIN)
    _curve(axes, train, train_key, palette.first, "training")
    steps, values = column(run.phase(Phase.PRETRAIN), before_key)
    if not steps:
        return
    num_train = max([1, *(int(row.get("step", 1)) for row in train)])
    width = 0.45 * num_train
    last = max(steps)
    axes.plot(
        [-width * (1 - step / last) for step in steps],
        values,
        color=palette.third,
        linewidth=1.7,
        marker="o" if len(steps) < 15 else None,
        markersize=3,
    )
    axes.axvspan(-width, 0, color=palette.third, alpha=0.07, linewidth=0)
    axes.set_xlim(-width, num_train * 1.03)
    ticks = MaxNLocator(nbins=5, integer=True, min_n_ticks=1).tick_values(0, num_train)
    axes.set_xticks([tick for tick in ticks if tick <= num_train])
    axes.annotate(
        "pretraining",
        (0.5 * width / (width + num_train * 1.03), 0),
        xycoords="axes fraction",
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8,
        color=palette.third,
    )


def _clip_ratios(axes: Axes, run: RunFiles, palette: Palette) -> None:
    rows = run.phase(Phase.TRAIN)
    _curve(axes, rows, "clip_ratio/high_mean", palette.second, metric_called("clip_ratio/high_mean").short)
    _curve(axes, rows, "clip_ratio/low_mean", palette.first, metric_called("clip_ratio/low_mean").short)
    axes.set_ylim(0, max(0.001, axes.get_ylim()[1] * 1.45))
    axes.yaxis.set_major_formatter(_AS_PERCENT)
    _legend(axes, palette, loc="upper center", ncols=2, columnspacing=1.2)


def _one_metric(key: str, from_zero: bool = True) -> Callable[[Axes, RunFiles, Palette], None]:
    """The drawing function of a panel with one metric."""

    def draw(axes: Axes, run: RunFiles, palette: Palette) -> None:
        _curve(axes, run.phase(Phase.TRAIN), key, palette.first)
        low, high = axes.get_ylim()
        if from_zero and low < 0 <= min(column(run.phase(Phase.TRAIN), key)[1]):
            axes.set_ylim(0, high)
        elif from_zero and low > 0:
            axes.set_ylim(0, high * 1.05)
        if metric_called(key).unit == SHARE:
            axes.yaxis.set_major_formatter(_AS_PERCENT)

    return draw


def _time(axes: Axes, run: RunFiles, palette: Palette) -> None:
    """Stack the seconds per step; the trailing mean keeps one slow step from dominating the panel."""
    rows = run.phase(Phase.TRAIN)
    colours = dict(zip(TIMES, [palette.first, palette.quiet, palette.fifth, palette.second], strict=True))
    steps = [int(row.get("step", at)) for at, row in enumerate(rows, start=1)]
    window = max(1, min(10, len(steps) // 5))
    layers, names, shades = [], [], []
    for key in TIMES:
        seconds = [number(row.get(key)) for row in rows]
        if any(s > 0 for s in seconds):
            layers.append(trailing_mean([0.0 if math.isnan(s) else s for s in seconds], window))
            names.append(metric_called(key).short)
            shades.append(colours[key])
    if layers:
        axes.stackplot(steps, layers, labels=names, colors=shades, alpha=0.85, linewidth=0)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
        _legend(axes, palette, loc="upper center", ncols=4, columnspacing=0.9, handlelength=0.7, fontsize=7.5)


_AS_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")
_PANELS = (
    Panel(("completions/mean_length",), _length),
    Panel(("value/explained_variance",), _explained_variance, before=("pretrain/explained_variance",)),
    Panel(("value/loss",), _value_loss, before=("pretrain/value_loss",)),
    Panel(("entropy",), _one_metric("entropy")),
    Panel(("clip_ratio/high_mean", "clip_ratio/low_mean"), _clip_ratios),
    Panel(("loss/positive_lm",), _one_metric("loss/positive_lm")),
    Panel(("step_time", *TIMES), _time),
    Panel(("groups/mixed_ratio",), _one_metric("groups/mixed_ratio")),
    Panel(("grad_norm/policy",), _one_metric("grad_norm/policy")),
    Panel(("kl",), _one_metric("kl")),
    Panel(("reward",), _one_metric("reward", from_zero=False)),
)
