"""Draw held-out accuracy by pair of goals, a line for each run: python goals_figure.py far/results.json goals.png"""

import json
import sys
from pathlib import Path

from goals import PAIRS, by_pair, heldout_goals
from matplotlib.figure import Figure

from vapo.reports.palette import LIGHT
from vapo.reports.style import as_png

SHOWN = ("ppo", "bpco", "rloo", "grpo", "sao", "vapo with a group baseline", "vapo2", "vapo")
COLOURS = (LIGHT.first, LIGHT.second)


def figure(path: Path) -> Figure:
    """A panel for each method."""
    runs = json.loads(path.read_text())["runs"]
    goals = heldout_goals(runs[0])
    drawn = Figure(figsize=(10, 4.6), dpi=120, facecolor=LIGHT.paper, layout="constrained")
    panels = drawn.subplots(2, len(SHOWN) // 2, sharex=True, sharey=True)
    for axes, method in zip(panels.flat, SHOWN, strict=True):
        for run in (run for run in runs if run["method"] == method):
            steps = run["evaluations"]["step"]
            curves = zip(*(by_pair(goals, run, place) for place in range(len(steps))), strict=True)
            for curve, colour in zip(curves, COLOURS, strict=True):
                axes.plot(steps, curve, color=colour, alpha=0.55, linewidth=1.1)
        axes.set_title(method, fontsize=9, color=LIGHT.ink, loc="left")
        axes.set_ylim(-0.02, 1)
        axes.set_xticks(runs[0]["evaluations"]["step"][::2])
        axes.tick_params(colors=LIGHT.quiet, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for pair, colour in zip(PAIRS, COLOURS, strict=True):
        panels[0, 0].plot([], [], color=colour, label=" and ".join(pair))
    panels[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    drawn.supxlabel("step", fontsize=8.5, color=LIGHT.quiet)
    drawn.supylabel("held-out accuracy", fontsize=8.5, color=LIGHT.quiet)
    return drawn


if __name__ == "__main__":
    as_png(lambda: figure(Path(sys.argv[1])), sys.argv[2])
