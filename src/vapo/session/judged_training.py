"""`vapo critic RUN --every N`: the judgement of each kept checkpoint of a run, and what changes along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vapo.durability import checkpoint
from vapo.errors import CheckpointError, ConfigError, counted
from vapo.evals.continuations import num_blocks
from vapo.reports.runfiles import Record
from vapo.reports.training_files import write_training
from vapo.session.evaluated_run import is_run
from vapo.session.judge_options import FOLDER, PROMPTS, JudgeOptions
from vapo.session.judged_critic import judge_models, judged_models, num_responses
from vapo.session.layers import Layer
from vapo.trainer.observer import Observer

FORMAT = 1
KEEP_MORE = "A run keeps more of them with --set checkpoint.every=6 --set checkpoint.keep=100."
HEADING = ("name", "method", "task", "seed", "temperature", "max_response_tokens", "reward", "prompts", "responses",
           "continuations", "fractions", "group_size")  # fmt: skip
OF_A_CHECKPOINT = ("accuracy", "mean_length", "clipped_ratio", "figures", "finding", "conclusion", "critic")


@dataclass(frozen=True)
class Moment:
    """A kept checkpoint: joint steps before it, and whether its critic has learned anything."""

    step: int
    folder: Path
    learned: bool


def moments(run: Path, every: int) -> list[Moment]:
    """The checkpoints to judge, oldest first: the start of joint training, each whose step is a multiple of `every`,
    and the last one. Raises ConfigError for `every` below 1, for a folder that is no run, and where fewer than two are
    kept."""
    if every < 1:
        raise ConfigError(f"every must be at least 1, got {every}: 1 judges all checkpoints that are kept.")
    if not is_run(run):
        raise ConfigError(f"{run} is no run directory. --every judges the checkpoints that a run has kept: give a run.")
    root, found = run / "checkpoints", {}
    for name in reversed(checkpoint.names(root)):  # oldest first: of value pretraining the last one counts
        if checkpoint.problems(root / name):
            continue
        try:
            state = checkpoint.read_json(root / name, "state.json")
            moment = Moment(int(state["step"]), root / name, state["step"] > 0 or state["pretrain_step"] > 0)
        except (CheckpointError, KeyError, TypeError, ValueError):
            continue
        found[moment.step] = moment
    last = max(found, default=0)
    chosen = [found[step] for step in sorted(found) if step % every == 0 or step == last]
    if len(chosen) < 2:
        raise ConfigError(
            f"{run} has kept {counted(len(chosen), 'checkpoint')} for --every {every}, and a comparison needs two. "
            f"{KEEP_MORE}"
        )
    return chosen


def judge_training(
    run: Path,
    every: int,
    options: JudgeOptions,
    observer: Observer,
    *,
    task: str | None = None,
    settings: Mapping[str, Any],
    changes: Sequence[Layer] = (),
    out: Path | None = None,
) -> Record:
    """The content of the `training.json` that is written into `out` beside picture and page.

    Each checkpoint has a folder of its name in there, with its own judgement and the continuations it came from, so
    the same command goes on where it stopped. `out` None is critic_judgement/ in the run.
    """
    chosen = moments(run, every)
    out = out or run / FOLDER
    first = judged_models(str(chosen[0].folder), None, None, task, settings, changes, out)
    options = replace(options, responses=num_responses(options, first.algorithm))
    view = WholeCourse(observer, len(chosen), options)
    rows: list[Record] = []
    results: Record = {}
    for number, moment in enumerate(chosen):
        view.begin(moment.folder.name, number)
        models = judged_models(str(moment.folder), None, None, task, settings, changes, out / moment.folder.name)
        if not moment.learned:
            models = replace(models, critic=None)
        _, results = judge_models(models, options, view)
        rows.append(
            {
                "name": moment.folder.name,
                "step": moment.step,
                **{key: results[key] for key in OF_A_CHECKPOINT},
                "prompt_ceiling": results["by_position"]["ceiling"][0] if options.fractions[0] == 0 else None,
            }
        )
    course = {"format": FORMAT, **{key: results[key] for key in HEADING}, "checkpoints": rows}
    course |= {"name": run.resolve().name, "conclusion": conclude(rows)}
    write_training(course, out)
    return course


def conclude(rows: Sequence[Record]) -> str:
    """How the ceiling and the critic moved from the first to the last checkpoint, in one line."""
    first, last = rows[0], rows[-1]

    def from_to(name: str) -> str:
        values = [row["figures"].get(name, {}).get("value") for row in (first, last)]
        return " to ".join("nothing" if value is None or value != value else f"{100 * value:.0f} %" for value in values)

    text = (
        f"From step {first['step']} to step {last['step']} the ceiling moves from {from_to('ceiling')} of the "
        "outcomes' variance"
    )
    if "explained_variance" not in last["figures"]:
        return f"{text}: what any critic could explain."
    return f"{text}, and what the critic explains of it from {from_to('explained_variance')}."


class WholeCourse:
    """Passes a judgement's progress to another observer as a part of all of them, so that it can estimate the time left
    of the whole. A note that was shown before is not shown again."""

    def __init__(self, observer: Observer, count: int, options: JudgeOptions) -> None:
        self._observer, self._count = observer, count
        assert options.responses is not None
        self._blocks = num_blocks(
            options.prompts or PROMPTS, options.responses, len(options.fractions), options.continuations
        )
        self._name, self._number, self._done, self._before = "", 0, 0, 0
        self._notes: set[str] = set()

    def begin(self, name: str, number: int) -> None:
        """The next checkpoint, counted from 0."""
        self._name, self._number, self._before = name, number, self._done

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`; `total` blocks of this checkpoint, and as many as can come of those after it."""
        later = (self._count - 1 - self._number) * self._blocks
        self._observer.phase(f"{name} of {self._count} checkpoints", self._before + done, self._before + total + later)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self._observer.progress(f"{self._name} ({self._number + 1} of {self._count}): {what}", done, total)

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`."""
        self._done = self._before + metrics["step"]
        self._observer.step({"step": self._done})

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`."""
        self._observer.evaluation(result)

    def note(self, message: str) -> None:
        """See `Observer`."""
        if message not in self._notes:
            self._notes.add(message)
            self._observer.note(message)

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self._observer.alarm(message)
