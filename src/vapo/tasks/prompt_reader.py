"""Reads prompts from the rows of a data set, and drops the rows that cannot be used."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vapo.errors import ConfigError, DataError, counted
from vapo.tasks.dialogues import SYSTEM_COLUMNS, Dialogue, Message, dialogue_of, messages_of
from vapo.tasks.full_task import Caution
from vapo.tasks.layout_advice import AFTER, columns_option, prompt_words, value_path
from vapo.tasks.problem_options import CHECKABLE, ProblemOptions
from vapo.tasks.row_faults import Drop, Fault
from vapo.tasks.row_files import Row, read_rows
from vapo.tasks.rows import Layout, choose_layout, gold_answer
from vapo.tasks.verifiers.graded import graded_notes
from vapo.tasks.verifiers.notation import MAX_ANSWER
from vapo.tasks.verifiers.pool import VerifierPool
from vapo.types import Progress, Prompt, stable_hash

MAX_DROPPED = 0.01
"""Largest share of bad rows, and of prompts that leave no room for a response."""
TWO_ANSWERS = "two answers to one problem"
"""The fault of a row whose problem an earlier row has with another answer."""
NOT_LAID_OUT = (KeyError, TypeError, IndexError, AttributeError, DataError)
"""What reading a row raises if it does not fit the layout."""
NUM_FIRST = 8
"""Number of gold answers that are judged before the others."""
NUM_UNCHANGED = 64
"""Number of prompts taken as they are that are searched for words that ask for a marked answer."""
_MARK = re.compile(r"boxed|answer\W{0,4}[:：]|final answer is|<answer>|####|答案", re.IGNORECASE)
NUM_EMPTY = 4
"""Number of empty responses that a user's verifier judges at the start, to detect graded scores."""


class Reader:
    """Reads the prompts of one source and records the rows that cannot be used."""

    def __init__(self, options: ProblemOptions, name: str) -> None:
        self.options, self.name = options, name
        self.drops: list[Drop] = []
        self.duplicates = 0
        self.rows = 0
        self.where: dict[str, str] = {}
        self.layouts: list[Layout] = []
        self.graded: list[str] = []
        self.gold_is_right = False
        self.unchanged: list[tuple[Layout, tuple[Message, ...]]] = []

    def prompts(self, source: str, subset: str | None, part: str) -> list[Prompt]:
        """The prompts of all well-formed rows. Counts duplicates, and drops rows that contradict an earlier one."""
        chosen: Layout | None = None
        found: dict[str, Prompt] = {}
        for where, row in read_rows(source, subset=subset, split=part):
            self.rows += 1
            layout = chosen or choose_layout(row, self.options.columns, where)
            if chosen is None and _has_problem(layout, row):  # an empty one may be a text or a dialogue in other rows
                chosen = layout
                self.layouts.append(layout)
            prompt = self._prompt(layout, row, where)
            if isinstance(prompt, Drop):
                self.drops.append(prompt)
                continue
            if (earlier := found.get(prompt.id)) and _contents(earlier.text) != _contents(prompt.text):
                prompt = replace(prompt, id=self._id(_contents(prompt.text)))  # `x` and `X` may be two variables
                earlier = found.get(prompt.id)
            if earlier is None:
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
            if self.options.verifier in CHECKABLE:
                answer = gold_answer(answer)
        except NOT_LAID_OUT:
            return Drop(where, f"not laid out like the first row ({layout.name})")
        if isinstance(problem, list):
            problem = dialogue_of(problem)
        answer, text = self._answer(answer, layout), self._messages(problem)
        for part in (answer, text):
            if isinstance(part, Fault):
                return Drop(where, *part)
        assert not isinstance(text, Fault)
        if isinstance(problem, Dialogue) and not problem.templated and len(self.unchanged) < NUM_UNCHANGED:
            self.unchanged.append((layout, text))
        columns = {key: value for key, value in row.items() if is_json(value)}
        contents = _contents(text)
        if not (is_unicode(contents) and is_unicode(json.dumps(answer, ensure_ascii=False, default=str))):
            return Drop(where, "half a surrogate pair, which is no character")
        return Prompt(self._id(contents.casefold()), text, answer, columns=columns)

    def _id(self, contents: str) -> str:
        return f"{self.name}/{stable_hash(contents):016x}"

    def _answer(self, answer: Any, layout: Layout) -> Any | Fault:
        """The gold answer for the verifier, or the fault in it.

        A user's verifier gets any JSON value. The verifiers in `CHECKABLE` get text, and the item of a list of one.
        """
        checkable = self.options.verifier in CHECKABLE
        if checkable and isinstance(answer, list) and len(answer) == 1:
            return self._answer(gold_answer(answer[0]), layout._replace(answer=f"{layout.answer}.0"))
        if answer is None or (isinstance(answer, float) and math.isnan(answer)):  # tables mark a missing value by nan
            return Fault("no answer")
        if isinstance(answer, str):
            answer = answer.strip()
            if checkable and len(answer) > MAX_ANSWER:
                return Fault("a solution, not an answer", f"{len(answer)} characters")
            return answer or Fault("an empty answer")
        if not checkable:
            return answer if is_json(answer) else Fault(f"an answer of type {type(answer).__name__}, not JSON")
        if isinstance(answer, list | Mapping):
            path = value_path(layout.answer, answer)
            advice = f"name one, as in task.columns={{prompt: {prompt_words(layout.prompt)}, answer: {path}}}"
            if isinstance(answer, list):
                return Fault(f"a list of {counted(len(answer), 'answer')}", advice)
            return Fault(f"an answer of type {type(answer).__name__}, not text or number", advice)
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            return Fault(f"an answer of type {type(answer).__name__}, not text or number")
        return _written(answer)

    def _messages(self, problem: Any) -> tuple[dict[str, str], ...] | Fault:
        """The messages of a prompt, or the fault in the problem."""
        if isinstance(problem, str):
            if not problem.strip():
                return Fault("an empty problem")
            user = {"role": "user", "content": self.options.template.replace("{problem}", problem.strip())}
            system = [{"role": "system", "content": self.options.system}] if self.options.system else []
            return (*system, user)
        if not isinstance(problem, Dialogue) or not problem.turns:
            kind = "list" if isinstance(problem, Dialogue) else type(problem).__name__
            return Fault(f"a problem of type {kind}, not text or messages")
        return messages_of(problem, self.options.template, self.options.system)

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
        self.gold_is_right = any(verdict.right for verdict in verdicts)
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
                fix = _missing_part(self.layouts[0])
            raise DataError(
                f"{len(self.drops)} of {counted(self.rows, 'row')} cannot be used ({_counted(kinds)}); at most "
                f"{MAX_DROPPED:.0%} may be dropped. The first:\n{first}",
                fix=fix,
            )


def unmarked_notes(options: ProblemOptions, unchanged: Sequence[tuple[Layout, tuple[Message, ...]]]) -> list[Caution]:
    """A note if `math` is to judge messages of which none of the first, `unchanged`, asks for an answer that it can
    find."""
    if options.verifier != "math" or options.environment is not None or not unchanged:
        return []
    if any(_MARK.search(message["content"]) for _, messages in unchanged for message in messages):
        return []
    layout, messages = unchanged[0]
    fix = "Write the words into the messages, or into a column system beside them"
    if [message["role"] for message in messages] == ["user"]:
        option = columns_option(f"{layout.prompt[-1]}.0.content", layout.answer)
        fix = f"{option} takes their text as the problem, with task.template around it"
    asked = counted(len(unchanged), "prompt") if len(unchanged) > 1 else "prompt"
    return [
        Caution(
            f"the verifier math reads a marked answer (\\boxed{{}}, Answer: ...), and none of the first {asked} "
            f"asks for one: they are messages, which are taken as they are. {fix}."
        )
    ]


def _has_problem(layout: Layout, row: Row) -> bool:
    """Whether the problem of a row is not empty, so that it can be told whether problems are texts or dialogues."""
    try:
        problem = layout.read(row)[0]
    except NOT_LAID_OUT:
        return True
    problem = problem.turns if isinstance(problem, Dialogue) else problem
    if isinstance(problem, float) and math.isnan(problem):  # tables mark a missing value by nan
        return False
    return bool(problem.strip() if isinstance(problem, str) else problem)


def _missing_part(layout: Layout) -> str:
    """What to do where equal problems have different answers: name the columns that may be the missing part."""
    beside = [name for name in layout.left_out or layout.not_joined if not name.lower().startswith("image")]
    if not beside:
        return (
            "Is a part of the problem in another column? Name all its columns: "
            "task.columns={prompt: [..., ...], answer: ...}."
        )
    names, verb = ", ".join(beside), "is" if len(beside) == 1 else "are"
    if layout.is_dialogue and not all(name.lower() in SYSTEM_COLUMNS for name in beside):
        return f"{names} {verb} not in the prompt: if the problems need it, write it into the user's turn of each row."
    before = [name for name in beside if name.lower() not in AFTER]
    after = [name for name in beside if name.lower() in AFTER]
    option = columns_option([*before, *layout.prompt, *after], layout.answer)
    return f"{names} {verb} not in the prompt. If the problems need it: {option}."


def is_json(value: Any) -> bool:
    """Whether the value of a column can be sent to a worker process as JSON; images and dates cannot."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can hold half of a surrogate pair, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _written(number: int | float) -> str:
    """A number as text. pandas writes the integers of a column as floats if one of them is missing: 42.0 is 42."""
    whole = isinstance(number, float) and number.is_integer() and abs(number) < 2**53  # larger ones lose digits
    return str(int(number)) if whole else str(number)


def _short(answer: Any) -> str:
    """The start of a gold answer, for a message."""
    return repr(answer[:40]) if isinstance(answer, str) else repr(answer)[:40]


def _contents(messages: str | tuple[Message, ...]) -> str:
    """What messages say, with single spaces, for finding duplicates."""
    assert not isinstance(messages, str)
    return " ".join(" ".join(message["content"] for message in messages).split())


def _counted(kinds: Counter[str]) -> str:
    """The four most common kinds of fault with their counts, for a message."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
