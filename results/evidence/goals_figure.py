"""Draw held-out accuracy by pair of goals, a line for each run: python goals_figure.py far/results.json goals.png"""

import json
import sys
from pathlib import Path
from statistics import mean

from goals import FAR, by_goal
from matplotlib.figure import Figure

from vapo.reports.palette import LIGHT
from vapo.reports.style import as_png
from vapo.tasks.maze import Maze

SHOWN = ("ppo", "bpco", "rloo", "grpo", "sao", "vapo with a group baseline", "vapo2", "vapo")
PAIRS = {"cave and tower": (("cave", "tower"), LIGHT.first), "lake and mill": (("lake", "mill"), LIGHT.second)}


def figure(path: Path) -> Figure:
    """A panel for each method."""
    goals = [str(prompt.answer["goal"]) for prompt in Maze(FAR).heldout]
    runs = json.loads(path.read_text())["runs"]
    drawn = Figure(figsize=(10, 4.6), dpi=120, facecolor=LIGHT.paper, layout="constrained")
    panels = drawn.subplots(2, len(SHOWN) // 2, sharex=True, sharey=True)
    for axes, method in zip(panels.flat, SHOWN, strict=True):
        for run in (run for run in runs if run["method"] == method):
            shares = [by_goal(goals, run, evaluation) for evaluation in range(len(run["evaluations"]["step"]))]
            for pair, colour in PAIRS.values():
                heights = [mean(share[goal] for goal in pair) for share in shares]
                axes.plot(run["evaluations"]["step"], heights, color=colour, alpha=0.55, linewidth=1.1)
        axes.set_title(method, fontsize=9, color=LIGHT.ink, loc="left")
        axes.set_ylim(-0.02, 1)
        axes.set_xticks(runs[0]["evaluations"]["step"][::2])
        axes.tick_params(colors=LIGHT.quiet, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for name, (_, colour) in PAIRS.items():
        panels[0, 0].plot([], [], color=colour, label=name)
    panels[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    drawn.supxlabel("step", fontsize=8.5, color=LIGHT.quiet)
    drawn.supylabel("held-out accuracy", fontsize=8.5, color=LIGHT.quiet)
    return drawn


if __name__ == "__main__":
    as_png(lambda: figure(Path(sys.argv[1])), sys.argv[2])
