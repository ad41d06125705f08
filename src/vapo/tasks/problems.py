"""`math` and other tasks on data sets of problems and answers. Their verifiers run in worker processes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from vapo.errors import ConfigError, DataError, counted
from vapo.ranges import check_ranges, number
from vapo.tasks.builtin import read_options, split
from vapo.tasks.environments.channels import EnvironmentLimits, EnvironmentServer
from vapo.tasks.environments.players import Players
from vapo.tasks.rows import Layout, Row, choose_layout, gold_answer, read_rows
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.graded import FirstScores, graded_notes
from vapo.tasks.verifiers.notation import MAX_ANSWER, tidy
from vapo.tasks.verifiers.pool import Group, Limits, VerifierPool
from vapo.types import Episode, Progress, Prompt, Verdict, stable_hash

INSTRUCTION = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
MAX_DROPPED = 0.01
"""Largest share of bad rows, and of prompts that leave no room for a response."""
CHECKABLE = ("math", "exact")
"""Verifiers that must accept the gold answers at the start, because the form of a right response is known for them."""

TWO_ANSWERS = "two answers to one problem"
"""The fault of a row whose problem an earlier row has with another answer."""
NUM_FIRST = 8
"""Number of gold answers that are judged before the others."""
NUM_EMPTY = 4
"""Number of empty responses that a user's verifier judges at the start, to detect graded scores."""
MIN_TRAIN = 16
"""Smallest number of training problems if some are held out."""


@dataclass(frozen=True)
class ProblemOptions:
    """The data, the form of the prompts, and the verifier."""

    data: str | None = None
    """Problems to train on: a file (.jsonl, .json, .parquet), a folder, or a hub data set."""
    subset: str | None = None
    """The name of a configuration of the hub data set; null takes its only one."""
    split: str = "train"
    """The split of a folder or a hub data set."""
    eval_data: str | None = None
    """Problems to evaluate on, as for data; null holds out problems of data."""
    eval_subset: str | None = None
    """As subset, for eval_data."""
    eval_split: str = "test"
    """As split, for eval_data."""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """{prompt: ..., answer: ...}: the columns of problem and answer, if they fit no known layout; a list of columns for
    the prompt is joined with blank lines."""
    heldout: int = number(200, ge=1, unit="problems")
    """The number of problems of data kept for evaluation if there is no eval_data."""
    template: str = INSTRUCTION
    """The text of the prompt, with {problem} for the problem; rows with messages are used unchanged."""
    system: str | None = None
    """The system message before the problem."""
    verifier: str = "math"
    """The verifier: math, exact, an installed plug-in, package.module:function or file.py:function."""
    right_at: float = number(0.99, gt=0)
    """The lowest score that counts as right. With algorithm.reward.by=score a lower one is worth its share, and what is
    right matters to the LM loss, dynamic sampling and accuracy only."""
    verifier_workers: int | None = number(None, ge=1, unit="processes")
    """The number of worker processes that judge; null means one per core, at most 8."""
    verifier_timeout_s: float = number(1.0, ge=0.05, le=600, unit="seconds")
    """Time limit of one verdict; a response that takes longer is invalid."""
    verifier_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of a worker process."""
    environment: str | None = None
    """Makes episodes of several turns: package.module:name or file.py:name of an environment, a class or a function
    (docs/environments.md). null ends an episode after one turn."""
    max_turns: int = number(16, ge=1, unit="turns")
    """The most turns of the policy in an episode with an environment."""
    environment_timeout_s: float = number(10.0, ge=0.05, le=3600, unit="seconds")
    """Time limit of one call of the environment; an episode that has to wait longer is invalid."""
    environment_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of an episode's environment, which is a process of its own."""
    environment_characters: int = number(10_000, ge=1, unit="characters")
    """The most characters of one answer of the environment; the rest is left out, with a mark."""
    environment_workers: int | None = number(None, ge=1, unit="environments")
    """How many environments work at the same time; null means one per core, at most 8."""
    max_response_tokens: int = number(1024, ge=1, unit="tokens")
    """Length limit of a response, if rollout.max_response_tokens sets none. All turns count, and what the environment
    says."""

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        if "{problem}" not in self.template:
            raise ConfigError(f"task.template must hold {{problem}}, where the problem goes, got {self.template!r}.")
        if self.data is None and self.eval_data is None:
            raise ConfigError(
                "This task has no problems of its own: give them with --set task.data=FILE (or a hub data set)."
            )


@dataclass(frozen=True)
class Drop:
    """A row that is left out. Rows are counted by the kind of fault."""

    where: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The kind of fault, with its details if there are any."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Fault(NamedTuple):
    """The fault of a row: its kind, and details that differ from row to row."""

    kind: str
    detail: str = ""


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
        reader = Reader(o, self.name)
        train = reader.prompts(o.data, o.subset, o.split) if o.data else []
        heldout = reader.prompts(o.eval_data, o.eval_subset, o.eval_split) if o.eval_data else []
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
                reader.accepted(prompts, self.pool, o.verifier, on_progress) for prompts in (train, heldout)
            )
            train = reader.without_leaks(train, heldout)
            reader.check()
            if not heldout and len(train) < o.heldout + MIN_TRAIN:
                raise DataError(
                    f"{o.data} has {counted(len(train), 'problem')}: too few to hold out task.heldout={o.heldout} and "
                    f"train on at least {MIN_TRAIN}. Lower task.heldout, or give task.eval_data."
                )
        except BaseException:
            self.close()
            raise
        self.drops, self.duplicates, self.layouts = reader.drops, reader.duplicates, reader.layouts
        self.graded = [] if graded else reader.graded
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
        return [text, *columns, *self.graded]

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

    def final_answer(self, response: str) -> str | None:
        """The last marked answer in normal form, for the votes of maj@k; None without a readable answer."""
        answer = last_answer(response)
        return tidy(answer).replace(" ", "") or None if answer is not None and len(answer) <= MAX_ANSWER else None

    def close(self) -> None:
        """End the processes of verifier and environment."""
        self.pool.close()
        if self.environment:
            self.environment.close()


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
        """The prompts of all well-formed rows. Counts duplicates, and drops rows that contradict an earlier one."""
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
            elif (earlier := found.get(prompt.id)) is None:
                found[prompt.id] = prompt
                self.where[prompt.id] = where
            elif earlier.answer == prompt.answer:
                self.duplicates += 1
            else:
                other = f"the other is in {self.where[prompt.id]}"
                self.drops.append(Drop(where, TWO_ANSWERS, other))
        if not self.rows:
            raise DataError(f"{source} is empty. Check the path.")
        return list(found.values())

    def _prompt(self, layout: Layout, row: Row, where: str) -> Prompt | Drop:
        try:
            problem, answer = layout.read(row)
            answer = gold_answer(answer)
        except (KeyError, TypeError, IndexError, AttributeError, DataError):
            return Drop(where, f"not laid out like the first row ({layout.name})")
        answer, text = self._answer(answer), self._messages(problem)
        for part in (answer, text):
            if isinstance(part, Fault):
                return Drop(where, *part)
        assert not isinstance(text, Fault)
        columns = {key: value for key, value in row.items() if _is_json(value)}
        contents = "\n".join(message["content"] for message in text)
        return Prompt(f"{self.name}/{stable_hash(_folded(contents)):016x}", text, answer, columns=columns)

    def _answer(self, answer: Any) -> Any | Fault:
        """The gold answer for the verifier, or the fault in it.

        A user's verifier gets any JSON value. The verifiers in `CHECKABLE` get text, and the item of a list of one.
        """
        checkable = self.options.verifier in CHECKABLE
        if checkable and isinstance(answer, list) and len(answer) == 1:
            return self._answer(gold_answer(answer[0]))
        if answer is None or (isinstance(answer, float) and math.isnan(answer)):  # tables mark a missing value by nan
            return Fault("no answer")
        if isinstance(answer, str):
            answer = answer.strip()
            if checkable and len(answer) > MAX_ANSWER:
                return Fault("a solution, not an answer", f"{len(answer)} characters")
            return answer or Fault("an empty answer")
        if not checkable:
            return answer if _is_json(answer) else Fault(f"an answer of type {type(answer).__name__}, not JSON")
        if isinstance(answer, list):
            advice = "name one, as in task.columns={prompt: ..., answer: NAME.0}"
            return Fault(f"a list of {counted(len(answer), 'answer')}", advice)
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            return Fault(f"an answer of type {type(answer).__name__}, not text or number")
        return str(answer)

    def _messages(self, problem: Any) -> tuple[dict[str, str], ...] | Fault:
        """The messages of a prompt, or the fault in the problem."""
        if isinstance(problem, str):
            if not problem.strip():
                return Fault("an empty problem")
            user = {"role": "user", "content": self.options.template.replace("{problem}", problem.strip())}
            system = [{"role": "system", "content": self.options.system}] if self.options.system else []
            return (*system, user)
        if not isinstance(problem, list) or not problem:
            return Fault(f"a problem of type {type(problem).__name__}, not text or messages")
        for message in problem:
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                return Fault("a message without role and content")
        messages = tuple({"role": m["role"], "content": m["content"]} for m in problem)
        if messages[-1]["role"] != "user":
            messages = messages[:-1]  # the last turn of a dialogue is the answer
        if not messages or not messages[-1]["content"].strip():
            return Fault("messages that do not end with a user's")
        return messages

    def accepted(
        self, prompts: list[Prompt], pool: VerifierPool, verifier: str, on_progress: Progress | None
    ) -> list[Prompt]:
        """The prompts whose gold answer the verifier accepts. Drops the others.

        A verifier outside `CHECKABLE` may judge a gold answer wrong, but the verdict must be valid.
        """
        if pool.needs_tokens:  # a gold answer has no token ids
            return prompts
        responses = [(prompt, f"\\boxed{{{prompt.answer}}}") for prompt in prompts]
        # a few first: a verifier that is too slow would otherwise take its time limit for each of them
        verdicts = pool.judge(responses[:NUM_FIRST])
        if verdicts and not any(verdict.valid for verdict in verdicts):
            raise ConfigError(
                f"The verifier {verifier} could judge none of the first {counted(len(verdicts), 'gold answer')}. "
                f"The first, {_short(prompts[0].answer)} of {self.where[prompts[0].id]}: {verdicts[0].reason}. "
                "Fix the verifier."
            )
        verdicts += pool.judge(
            responses[NUM_FIRST:],
            lambda done, of: on_progress("checking gold answers", done, of) if on_progress else None,
        )
        if verifier not in CHECKABLE and not self.graded:  # a wrong response may get a graded score
            empty = pool.judge([(prompt, "") for prompt in prompts[:NUM_EMPTY]])
            self.graded = graded_notes(verifier, [*verdicts, *empty], self.options.right_at)
        kept = []
        for prompt, verdict in zip(prompts, verdicts, strict=True):
            if verdict.right or (verdict.valid and verifier not in CHECKABLE):
                kept.append(prompt)
            else:
                detail = f"{_short(prompt.answer)}, {verdict.reason}"
                self.drops.append(Drop(self.where[prompt.id], "its verifier does not accept the gold answer", detail))
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
            kinds = Counter(drop.kind for drop in self.drops)
            first = "\n".join(f"  {drop.where}: {drop.reason}" for drop in self.drops[:5])
            fix = "Fix or remove them, or name the columns with task.columns."
            if kinds.most_common(1)[0][0] == TWO_ANSWERS:
                fix = (
                    "Is a part of the problem in another column? Name all its columns: "
                    "task.columns={prompt: [..., ...], answer: ...}."
                )
            raise DataError(
                f"{len(self.drops)} of {counted(self.rows, 'row')} cannot be used ({_counted(kinds)}); at most "
                f"{MAX_DROPPED:.0%} may be dropped. The first:\n{first}\n{fix}"
            )


def make_problems(
    name: str, options: Mapping[str, Any], on_progress: Progress | None = None, *, graded: bool = False
) -> Problems:
    """A data task; ConfigError for an unknown option or a wrong value. For `graded` see `find_task`."""
    return Problems(name, problem_options(name, options), on_progress, graded=graded)


def problem_options(name: str, options: Mapping[str, Any]) -> ProblemOptions:
    """The options of a data task; ConfigError for an unknown option or a wrong value. Reads no data."""
    names = [f.name for f in fields(ProblemOptions)]
    if unknown := sorted(set(options) - set(names)):
        raise ConfigError(f"The task {name!r} has no option {unknown[0]!r}. There are: {', '.join(names)}.")
    return read_options(ProblemOptions, options)


def _players(o: ProblemOptions) -> Players | None:
    """The environments of the options, in their processes; None without."""
    if o.environment is None:
        return None
    limits = EnvironmentLimits(o.environment_timeout_s, o.environment_memory_mb, o.environment_characters)
    server = EnvironmentServer(o.environment, right_at=o.right_at, limits=limits, workers=o.environment_workers)
    return Players(server, right_at=o.right_at)


def _is_json(value: Any) -> bool:
    """Whether the value of a column can be sent to a worker process as JSON; images and dates cannot."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _column_notes(layout: Layout) -> list[str]:
    """Notes on the columns that were joined to the problem, and on related columns that were not."""
    notes = []
    if layout.joined:
        notes.append(f"each problem is made of the columns {', '.join(layout.joined)}, with blank lines between")
    if len(layout.not_joined) == 1:
        name = layout.not_joined[0]
        notes.append(f"the column {name} is not put into the prompt; to have it there, name it in task.columns")
    elif layout.not_joined:
        names = ", ".join(layout.not_joined)
        notes.append(f"the columns {names} are not put into the prompt; to have them there, name them in task.columns")
    return notes


def _short(answer: Any) -> str:
    """The start of a gold answer, for a message."""
    return repr(answer[:40]) if isinstance(answer, str) else repr(answer)[:40]


def _folded(text: str) -> str:
    """The text with one case and single spaces, for finding duplicates."""
    return " ".join(text.casefold().split())


def _counted(kinds: Counter[str]) -> str:
    """The four most common kinds of fault with their counts, for a message."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
