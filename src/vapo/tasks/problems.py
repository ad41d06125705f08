"""`math` and other tasks on data sets of problems and answers, judged in worker processes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vapo.errors import ConfigError, DataError, counted
from vapo.ranges import check_ranges, number
from vapo.tasks.builtin import read_options, split
from vapo.tasks.rows import Layout, Row, choose_layout, gold_answer, read_rows
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.graded import FirstScores, about_graded
from vapo.tasks.verifiers.notation import MAX_ANSWER, tidy
from vapo.tasks.verifiers.pool import Group, Limits, VerifierPool
from vapo.types import Episode, Progress, Prompt, Verdict, stable_hash

INSTRUCTION = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
MAX_DROPPED = 0.01
"""A larger share of bad rows, or of prompts without room for a response, is an error."""
CHECKABLE = ("math", "exact")
"""Verifiers on which the gold answers are tested at the start: the form of an answer is known for them."""

TRIED_FIRST = 8
"""Gold answers that are judged before all others."""
TRIED_EMPTY = 4
"""Empty responses on which a user's verifier is tested, to find out whether it gives graded scores."""
FEWEST = 16
"""The smallest number of training problems when some are held out."""


@dataclass(frozen=True)
class ProblemOptions:
    """Where the problems are, how they are put, and who judges."""

    data: str | None = None
    """Problems to train on: a file (.jsonl, .json, .parquet), a folder, or a hub data set."""
    subset: str | None = None
    """The hub data set's configuration of that name; null takes its only one."""
    split: str = "train"
    """The split of a folder or a hub data set."""
    eval_data: str | None = None
    """Problems to evaluate on, as for data; null keeps some of data for that."""
    eval_subset: str | None = None
    """As subset, for eval_data."""
    eval_split: str = "test"
    """As split, for eval_data."""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """{prompt: ..., answer: ...}: the columns of problem and answer, where no known layout fits; a list of columns as
    the prompt is joined, with blank lines between."""
    heldout: int = number(200, ge=1, unit="problems")
    """Problems of data that are kept for evaluation where there is no eval_data."""
    template: str = INSTRUCTION
    """What the model is asked, with {problem} where the problem goes; rows that hold messages are taken as they are."""
    system: str | None = None
    """The system message before the problem."""
    verifier: str = "math"
    """Who judges: math, exact, an installed plug-in, package.module:function or file.py:function."""
    right_at: float = number(0.99, gt=0, le=1)
    """The lowest score of a verifier that counts as right."""
    verifier_workers: int | None = number(None, ge=1, unit="processes")
    """Processes that judge; null takes one per core, at most 8."""
    verifier_timeout_s: float = number(1.0, ge=0.05, le=600, unit="seconds")
    """Time limit of one verdict; a response that takes longer is invalid."""
    verifier_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of a process that judges."""
    max_response_tokens: int = number(1024, ge=1, unit="tokens")
    """Length limit of a response, where rollout.max_response_tokens sets none."""

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        if "{problem}" not in self.template:
            raise ConfigError(f"task.template must hold {{problem}}, where the problem goes; got {self.template!r}.")
        if self.data is None and self.eval_data is None:
            raise ConfigError(
                "This task has no problems of its own: give them with --set task.data=FILE (or a hub data set)."
            )


@dataclass(frozen=True)
class Drop:
    """A row that is left out, and the reason."""

    where: str
    reason: str


class Problems:
    """A task over a data set. Its verifier runs in worker processes: close it when done.

    `drops` are the bad rows, `duplicates` how many rows said the same as another; `notes` tell both. Raises
    ConfigError and DataError for faults in the data, before anything expensive.
    """

    def __init__(self, name: str, options: ProblemOptions, on_progress: Progress | None = None) -> None:
        self.name, self.options = name, options
        self.max_response_tokens = options.max_response_tokens
        self.drops: list[Drop] = []
        self.duplicates = 0
        o = options
        read = Reader(o, self.name)
        train = read.prompts(o.data, o.subset, o.split) if o.data else []
        heldout = read.prompts(o.eval_data, o.eval_subset, o.eval_split) if o.eval_data else []
        self.pool = VerifierPool(
            o.verifier,
            {"right_at": o.right_at} if o.verifier not in CHECKABLE[:1] else {},
            workers=o.verifier_workers,
            limits=Limits(o.verifier_timeout_s, o.verifier_memory_mb),
        )
        try:
            train, heldout = (read.judged(prompts, self.pool, o.verifier, on_progress) for prompts in (train, heldout))
            train = read.without_leaks(train, heldout)
            read.check()
            if not heldout and len(train) < o.heldout + FEWEST:
                raise DataError(
                    f"{o.data} has {counted(len(train), 'problem')}: too few to hold out task.heldout={o.heldout} and "
                    f"train on at least {FEWEST}. Lower task.heldout, or give task.eval_data."
                )
        except BaseException:
            self.close()
            raise
        self.drops, self.duplicates, self.layouts = read.drops, read.duplicates, read.layouts
        self.graded = read.graded
        self.first_scores = FirstScores(o.verifier, o.right_at)
        self.train, self.heldout = (tuple(train), tuple(heldout)) if heldout else split(train, o.heldout, FEWEST)

    @property
    def notes(self) -> list[str]:
        """Sentences about the rows that were read and left out."""
        text = f"{self.name}: {counted(len(self.train), 'training problem')}, {len(self.heldout):,} held out"
        if self.duplicates:
            text += f", {counted(self.duplicates, 'duplicate')} left out"
        if self.drops:
            first = self.drops[0]
            text += f", {counted(len(self.drops), 'bad row')} dropped (first: {first.where}: {first.reason})"
        about = dict.fromkeys(note for layout in self.layouts for note in _about(layout))
        return [text, *about, *self.graded]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """The verifier's verdict on one response."""
        return self.verify_all([(prompt, response)])[0]

    def verify_all(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verifier's verdicts, judged by all workers in parallel."""
        verdicts = self.pool.judge(items, on_progress)
        self.first_scores.check(verdicts)
        return verdicts

    def verify_groups(
        self, groups: Sequence[Sequence[Episode]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdicts on groups of episodes, each with one prompt, in order: a reward function may compare them."""
        asked = [
            Group(
                group[0].prompt,
                tuple(episode.response for episode in group),
                tuple(episode.token_ids for episode in group),
                group[0].policy_version,
            )
            for group in groups
        ]
        verdicts = self.pool.judge_groups(asked, on_progress)
        self.first_scores.check(verdicts)
        return verdicts

    def final_answer(self, response: str) -> str | None:
        """The last marked answer in a normal form, on which maj@k votes."""
        answer = last_answer(response)
        return tidy(answer).replace(" ", "") or None if answer is not None and len(answer) <= MAX_ANSWER else None

    def close(self) -> None:
        """End the verifier's processes."""
        self.pool.close()


class Reader:
    """Reads prompts and records the rows that cannot be used."""

    def __init__(self, options: ProblemOptions, name: str) -> None:
        self.options, self.name = options, name
        self.drops: list[Drop] = []
        self.duplicates = 0
        self.rows = 0
        self.where: dict[str, str] = {}
        self.layouts: list[Layout] = []
        self.graded: list[str] = []

    def prompts(self, source: str, subset: str | None, part: str) -> list[Prompt]:
        """The prompts of all well-formed rows, without duplicates (counted) and contradictions (dropped)."""
        layout: Layout | None = None
        found: dict[str, Prompt] = {}
        for where, row in read_rows(source, subset=subset, split=part):
            self.rows += 1
            if layout is None:
                layout = choose_layout(row, self.options.columns, where)
                self.layouts.append(layout)
            prompt = self._prompt(layout, row, where)
            if isinstance(prompt, Drop):
                self.drops.append(prompt)
            elif (before := found.get(prompt.id)) is None:
                found[prompt.id] = prompt
                self.where[prompt.id] = where
            elif before.answer == prompt.answer:
                self.duplicates += 1
            else:
                self.drops.append(Drop(where, f"two answers to one problem: the other is in {self.where[prompt.id]}"))
        if not self.rows:
            raise DataError(f"{source} is empty. Check the path.")
        return list(found.values())

    def _prompt(self, layout: Layout, row: Row, where: str) -> Prompt | Drop:
        try:
            problem, answer = layout.read(row)
            answer = gold_answer(answer)
        except (KeyError, TypeError, IndexError, AttributeError, DataError):
            return Drop(where, f"not laid out like the first row ({layout.name})")
        answer, refused = self._answer(answer)
        if refused:
            return Drop(where, refused)
        text = self._text(problem)
        if isinstance(text, str):
            return Drop(where, text)
        columns = {key: value for key, value in row.items() if _plain(value)}
        said = "\n".join(message["content"] for message in text)
        return Prompt(f"{self.name}/{stable_hash(_folded(said)):016x}", text, answer, columns=columns)

    def _answer(self, answer: Any) -> tuple[Any, str]:
        """The gold answer for the verifier, and the error in it, "" if there is none.

        A verifier of the user's own gets whatever JSON stands there; ours get text, and of a list the one it holds.
        """
        ours = self.options.verifier in CHECKABLE
        if ours and isinstance(answer, list) and len(answer) == 1:
            return self._answer(gold_answer(answer[0]))
        if answer is None or (isinstance(answer, float) and math.isnan(answer)):  # the empty value of tables
            return None, "no answer"
        if isinstance(answer, str):
            answer = answer.strip()
            if ours and len(answer) > MAX_ANSWER:
                return None, f"a solution, not an answer: {len(answer)} characters"
            return answer, "" if answer else "an empty answer"
        if not ours:
            return answer, "" if _plain(answer) else f"an answer of type {type(answer).__name__}, not JSON"
        if isinstance(answer, list):
            return (
                None,
                f"a list of {counted(len(answer), 'answer')}: name one, as in "
                f"task.columns={{prompt: ..., answer: NAME.0}}",
            )
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            return None, f"an answer of type {type(answer).__name__}, not text or number"
        return str(answer), ""

    def _text(self, problem: Any) -> tuple[dict[str, str], ...] | str:
        """The messages of a prompt, or the error in it."""
        if isinstance(problem, str):
            if not problem.strip():
                return "an empty problem"
            asked = {"role": "user", "content": self.options.template.replace("{problem}", problem.strip())}
            system = [{"role": "system", "content": self.options.system}] if self.options.system else []
            return (*system, asked)
        if not isinstance(problem, list) or not problem:
            return f"a problem of type {type(problem).__name__}, not text or messages"
        for message in problem:
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                return "a message without role and content"
        messages = tuple({"role": m["role"], "content": m["content"]} for m in problem)
        if messages[-1]["role"] != "user":
            messages = messages[:-1]  # the answer of a dialogue
        return messages if messages and messages[-1]["content"].strip() else "messages that do not end with a user's"

    def judged(
        self, prompts: list[Prompt], pool: VerifierPool, verifier: str, on_progress: Progress | None
    ) -> list[Prompt]:
        """The prompts whose gold answer the verifier accepts; the others are dropped."""
        if pool.needs_tokens:  # a gold answer has no token ids
            return prompts
        stated = [(prompt, f"\\boxed{{{prompt.answer}}}") for prompt in prompts]
        # a few first: a verifier that is too slow for all of them would take its limit for each
        verdicts = pool.judge(stated[:TRIED_FIRST])
        if verdicts and not any(verdict.valid for verdict in verdicts):
            raise ConfigError(
                f"The verifier {verifier} could judge none of the first "
                f"{counted(len(verdicts), 'gold answer')}. The first, "
                f"{_short(prompts[0].answer)} of {self.where[prompts[0].id]}: {verdicts[0].reason}. Mend the verifier."
            )
        verdicts += pool.judge(
            stated[TRIED_FIRST:],
            lambda done, of: on_progress("checking gold answers", done, of) if on_progress else None,
        )
        if verifier not in CHECKABLE and not self.graded:  # its score for an empty response may be graded
            empty = pool.judge([(prompt, "") for prompt in prompts[:TRIED_EMPTY]])
            self.graded = about_graded(verifier, [*verdicts, *empty], self.options.right_at)
        kept = []
        for prompt, verdict in zip(prompts, verdicts, strict=True):
            if verdict.right or (verdict.valid and verifier not in CHECKABLE):
                kept.append(prompt)
            else:
                reason = f"its verifier does not accept the gold answer: {_short(prompt.answer)}, {verdict.reason}"
                self.drops.append(Drop(self.where[prompt.id], reason))
        return kept

    def without_leaks(self, train: list[Prompt], heldout: list[Prompt]) -> list[Prompt]:
        """The training prompts that are not in the evaluation set."""
        evaluated = {prompt.id for prompt in heldout}
        for prompt in train:
            if prompt.id in evaluated:
                self.drops.append(Drop(self.where[prompt.id], "also in the evaluation set"))
        return [prompt for prompt in train if prompt.id not in evaluated]

    def check(self) -> None:
        """Raise DataError if too many rows were bad."""
        if len(self.drops) > MAX_DROPPED * self.rows:
            kinds = Counter(drop.reason.partition(":")[0] for drop in self.drops)
            first = "\n".join(f"  {drop.where}: {drop.reason}" for drop in self.drops[:5])
            raise DataError(
                f"{len(self.drops)} of {counted(self.rows, 'row')} cannot be used ({_counted(kinds)}); at most "
                f"{MAX_DROPPED:.0%} "
                f"may be dropped. The first:\n{first}\nMend or remove them, or name the columns with task.columns."
            )


def make_problems(name: str, options: Mapping[str, Any], on_progress: Progress | None = None) -> Problems:
    """A data task; ConfigError for an option that does not exist or fit."""
    return Problems(name, problem_options(name, options), on_progress)


def problem_options(name: str, options: Mapping[str, Any]) -> ProblemOptions:
    """The options of a data task; ConfigError for one that does not exist or fit. Reads no data."""
    names = [f.name for f in fields(ProblemOptions)]
    if unknown := sorted(set(options) - set(names)):
        raise ConfigError(f"The task {name!r} has no option {unknown[0]!r}. There are: {', '.join(names)}.")
    return read_options(ProblemOptions, options)


def _plain(value: Any) -> bool:
    """Whether a column can be sent to a verifier's process as JSON; pictures and dates cannot."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _about(layout: Layout) -> list[str]:
    """Notes on the columns that were joined to the problem, and on those that were not."""
    notes = []
    if layout.joined:
        notes.append(f"each problem is made of the columns {', '.join(layout.joined)}, with blank lines between")
    for name in layout.unread:
        notes.append(f"the column {name} is not put into the prompt; to have it there, name it in task.columns")
    return notes


def _short(answer: Any) -> str:
    """A gold answer in a message."""
    return repr(answer[:40]) if isinstance(answer, str) else repr(answer)[:40]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
