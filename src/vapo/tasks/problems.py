"""`math` and other tasks on data sets of problems and answers. Their verifiers run in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vapo.errors import ConfigError, DataError, counted
from vapo.tasks.builtin import split
from vapo.tasks.environments.channels import EnvironmentLimits, EnvironmentServer
from vapo.tasks.environments.players import Players
from vapo.tasks.full_task import Caution
from vapo.tasks.problem_options import CHECKABLE, ProblemOptions, problem_options
from vapo.tasks.prompt_reader import Reader, unmarked_notes
from vapo.tasks.row_faults import Drop
from vapo.tasks.rows import Layout
from vapo.tasks.verifiers import parts
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.graded import FirstScores
from vapo.tasks.verifiers.notation import MAX_ANSWER, number, tidy
from vapo.tasks.verifiers.pool import Group, Limits, VerifierPool
from vapo.tasks.verifiers.units import split_unit
from vapo.types import Episode, Progress, Prompt, Verdict

MIN_TRAIN = 16
"""Smallest number of training problems if some are held out."""


class ProblemJudge:
    """The verifier of a data task in its worker processes; it needs no problems. Close it when done."""

    def __init__(self, options: ProblemOptions, *, workers: int | None, graded: bool = False) -> None:
        o = options
        self.pool = VerifierPool(
            o.verifier,
            {"right_at": o.right_at} if o.verifier not in CHECKABLE[:1] else {},
            workers=workers,
            limits=Limits(o.verifier_timeout_s, o.verifier_memory_mb),
        )
        self.first_scores = None if graded else FirstScores(o.verifier, o.right_at)

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """The verifier's verdict on one response."""
        return self.verify_all([(prompt, response)])[0]

    def verify_all(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verifier's verdicts, judged by all workers in parallel."""
        verdicts = self.pool.judge(items, on_progress)
        if self.first_scores:
            self.first_scores.check(verdicts)
        return verdicts

    def verify_groups(
        self, groups: Sequence[Sequence[Episode]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdicts on groups of episodes of one prompt, in order. A reward function may compare a group."""
        judged = [
            Group(
                group[0].prompt,
                tuple(episode.response for episode in group),
                tuple(episode.token_ids for episode in group),
                group[0].policy_version,
            )
            for group in groups
        ]
        verdicts = self.pool.judge_groups(judged, on_progress)
        if self.first_scores:
            self.first_scores.check(verdicts)
        return verdicts

    def close(self) -> None:
        """End the verifier's processes."""
        self.pool.close()


class Problems:
    """A task on a data set. Its verifier runs in worker processes: close the task when done.

    `drops` are the bad rows, `duplicates` is the number of repeated rows, and `notes` report both. Raises ConfigError
    and DataError for faults in the data before any expensive work.
    """

    def __init__(
        self, name: str, options: ProblemOptions, on_progress: Progress | None = None, *, graded: bool = False
    ) -> None:
        if not graded and not 0 < options.right_at <= 1:
            raise ConfigError(
                f"task.right_at must be in (0, 1], got {options.right_at:g}: a score is right or wrong here. "
                "Other scores count with algorithm.reward.by=score."
            )
        self.name, self.options = name, options
        self.max_response_tokens = options.max_response_tokens
        self.drops: list[Drop] = []
        self.duplicates = 0
        o = options
        # of each its own: a bad evaluation set must not pass for a few bad rows of a large training set
        learned, judged = readers = Reader(o, self.name), Reader(o, self.name)
        train = learned.prompts(o.data, o.subset, o.split) if o.data else []
        heldout = judged.prompts(o.eval_data, o.eval_subset, o.eval_split) if o.eval_data else []
        self.environment = _players(o)
        self.tools = self.environment.server.tools if self.environment else ()
        self.max_turns = o.max_turns
        try:
            self.judge = ProblemJudge(o, workers=o.verifier_workers, graded=graded)
        except BaseException:
            if self.environment:
                self.environment.close()
            raise
        self.pool = self.judge.pool
        try:
            train, heldout = (
                reader.accepted(prompts, self.pool, o.verifier, on_progress)
                for reader, prompts in zip(readers, (train, heldout), strict=True)
            )
            if self.judge.first_scores and any(reader.gold_is_right for reader in readers):
                self.judge.first_scores.passed = True
            train = learned.without_leaks(train, heldout)
            for reader in readers:
                reader.check()
            if not heldout and len(train) < o.heldout + MIN_TRAIN:
                raise DataError(
                    f"{o.data} has {counted(len(train), 'problem')}: too few to hold out task.heldout={o.heldout} and "
                    f"train on at least {MIN_TRAIN}. Lower task.heldout, or give task.eval_data."
                )
        except BaseException:
            self.close()
            raise
        self.drops, self.layouts = learned.drops + judged.drops, learned.layouts + judged.layouts
        self.duplicates = learned.duplicates + judged.duplicates
        self.graded = [] if graded else learned.graded or judged.graded
        self.unmarked = unmarked_notes(o, learned.unchanged + judged.unchanged)
        self.train, self.heldout = (tuple(train), tuple(heldout)) if heldout else split(train, o.heldout, MIN_TRAIN)

    @property
    def notes(self) -> list[str]:
        """Notes on the rows that were read and left out, and on the columns that were used."""
        text = f"{self.name}: {counted(len(self.train), 'training problem')}, {len(self.heldout):,} held out"
        if self.duplicates:
            text += f", {counted(self.duplicates, 'duplicate')} left out"
        if self.drops:
            first = self.drops[0]
            text += f", {counted(len(self.drops), 'bad row')} dropped (first: {first.where}: {first.reason})"
        columns = dict.fromkeys(note for layout in self.layouts for note in _column_notes(layout))
        return [Caution(text) if self.drops or self.duplicates else text, *columns, *self.unmarked, *self.graded]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """The verifier's verdict on one response."""
        return self.judge.verify(prompt, response)

    def verify_all(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verifier's verdicts, judged by all workers in parallel."""
        return self.judge.verify_all(items, on_progress)

    def verify_groups(
        self, groups: Sequence[Sequence[Episode]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdicts on groups of episodes of one prompt, in order. A reward function may compare a group."""
        return self.judge.verify_groups(groups, on_progress)

    @property
    def scores_are_checked(self) -> bool:
        """Whether the verifier's first scores need no check any more, such as where a gold answer was judged right."""
        return self.judge.first_scores is None or self.judge.first_scores.passed

    def final_answer(self, response: str) -> str | None:
        """The last marked answer in normal form; None without a readable answer."""
        answer = _readable_answer(response)
        return None if answer is None else _in_normal_form(answer)

    def vote(self, response: str) -> str | None:
        """The final answer with numbers written in one way, because spellings of one number are one vote of maj@k.

        `exact` tells the spellings apart, so under it they are different votes.
        """
        answer = _readable_answer(response)
        if answer is None:
            return None
        quantity = "" if self.options.verifier == "exact" else _quantity_in(answer)
        return quantity or _in_normal_form(answer)

    def close(self) -> None:
        """End the processes of verifier and environment."""
        self.pool.close()
        if self.environment:
            self.environment.close()


def make_problems(
    name: str, options: Mapping[str, Any], on_progress: Progress | None = None, *, graded: bool = False
) -> Problems:
    """A data task; ConfigError for an unknown option or a wrong value. For `graded` see `find_task`."""
    return Problems(name, problem_options(name, options), on_progress, graded=graded)


def _readable_answer(response: str) -> str | None:
    """The last marked answer; None without one that is short enough to be read."""
    answer = last_answer(response)
    return answer if answer is not None and len(answer) <= MAX_ANSWER else None


def _in_normal_form(answer: str) -> str | None:
    return tidy(answer).replace(" ", "") or None


def _quantity_in(answer: str) -> str:
    """The number and the unit that an answer such as `x = \\frac12`, `0.5` or `5\\text{ cm}` states; "" for other text.

    Uses regular expressions only, because it runs in the trainer's process.
    """
    text, unit = split_unit(answer)
    text = tidy(text)
    sides = parts.split(text, "=")
    value = number(sides[1] if len(sides) == 2 and parts.NAME.fullmatch(sides[0]) else text)
    return "" if value is None else f"{value} {unit}".strip()


def _players(o: ProblemOptions) -> Players | None:
    """The environments of the options, in their processes; None without."""
    if o.environment is None:
        return None
    limits = EnvironmentLimits(o.environment_timeout_s, o.environment_memory_mb, o.environment_characters)
    server = EnvironmentServer(o.environment, right_at=o.right_at, limits=limits, workers=o.environment_workers)
    return Players(server, right_at=o.right_at)


def _column_notes(layout: Layout) -> list[str]:
    """Notes on the columns that were joined to the problem, and on related columns that were not."""
    notes = []
    if layout.joined or layout.choices:
        columns = layout.joined or layout.prompt
        text = f"each problem is made of the column{'s' * (len(columns) > 1)} {', '.join(columns)}"
        if len(columns) > 1:
            text += ", with blank lines between"
        if layout.choices:
            text += f", and the choices {', '.join(layout.choices)} as lines A. ... behind a blank line"
        notes.append(text)
    if layout.system:
        text = f"the column {layout.system} becomes the system message of dialogues that have none"
        notes.append(text + "; the first has one of its own" * layout.has_system)
    if layout.not_joined:
        one = len(layout.not_joined) == 1
        names, verb, it = ", ".join(layout.not_joined), *(("is", "it") if one else ("are", "them"))
        fix = (
            f"messages are complete; to have {it} there, write {it} into the user's turn of each row"
            if layout.is_dialogue
            else f"to have {it} there, name {it} in task.columns"
        )
        notes.append(f"the column{'' if one else 's'} {names} {verb} not put into the prompt; {fix}")
    return notes
