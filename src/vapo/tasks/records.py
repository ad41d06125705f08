"""A task on rows that are in memory, judged by reward functions of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vapo.errors import DataError, counted
from vapo.tasks.builtin import split
from vapo.tasks.environments.players import Players
from vapo.tasks.full_task import MAX_TURNS
from vapo.tasks.problems import MIN_TRAIN
from vapo.tasks.prompt_reader import is_json, is_unicode
from vapo.tasks.verifiers.rewards import NONE_APPLIES, Rewards
from vapo.types import Episode, Prompt, Turn, Verdict, stable_hash

Row = Mapping[str, Any]
PREFIX = "records-"
"""How the name of a task in memory begins: a run of it is `VAPOTrainer`'s."""
HELD_OUT = 200
"""Prompts whose training rows are kept for evaluation where none are given, at most a tenth of them."""


class RecordsTask:
    """Rows with a `prompt` (a text or messages) and any other columns, which the reward functions are given.

    `name` is a hash of the rows, so a run cannot be resumed on others; of a column that is no JSON the name counts.
    `environment` makes an episode one of several turns, at most `max_turns`. Raises DataError for rows without a usable
    prompt.
    """

    def __init__(
        self,
        train: Iterable[Row],
        heldout: Iterable[Row] | None,
        rewards: Rewards,
        max_response_tokens: int,
        environment: Players | None = None,
        max_turns: int = MAX_TURNS,
    ) -> None:
        self.rewards, self.max_response_tokens = rewards, max_response_tokens
        self.environment, self.max_turns = environment, max_turns
        self.tools = environment.server.tools if environment else ()
        learned = _prompts(train, "train_dataset")
        if heldout is not None:
            judged, self.notes = _prompts(heldout, "eval_dataset"), []
        else:
            # an environment may tell rows of one prompt apart by their columns; tools alone cannot
            problem_of = _as_text if environment and not environment.stateless else _prompt_as_text
            learned, kept = held_out(learned, problem_of)
            judged = kept or learned
            self.notes = [
                f"no eval_dataset: {counted(len(kept), 'training row')} are held out for evaluation"
                if kept
                else "no eval_dataset, and too few different prompts to hold some out: evaluations are on training rows"
            ]
        self.train, self.heldout = tuple(learned), tuple(judged)
        self.name = f"{PREFIX}{stable_hash(*map(_as_text, self.train)):016x}"[:20]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """The verdict on one response that was not sampled here: it has no token ids."""
        return self.rewards.judge([[Episode(prompt, 0, (), response, "stop", 0)]])[0]

    def verify_groups(
        self, groups: Sequence[Sequence[Episode]], on_progress: Callable[[int, int], None]
    ) -> list[Verdict]:
        """The verdicts on all episodes, in order."""
        return self.rewards.judge(groups)

    def trial(self, tokens: Callable[[str], Sequence[int]]) -> str:
        """What is wrong with the reward functions, after one call with two made-up responses to the first row; "" if
        nothing is.

        The response is the row's answer if it has one, as a text whose ids `tokens` gives.
        """
        prompt = self.train[0]
        text = str(prompt.answer) if isinstance(prompt.answer, str | int | float) else "1"
        ids = tuple(tokens(text))
        turn = Turn("policy", ids, (0.0,) * len(ids), text)
        verdicts = self.rewards.judge([[Episode(prompt, i, (turn,), text, "stop", 0) for i in range(2)]])
        faults = [verdict.reason for verdict in verdicts if not verdict.valid and verdict.reason != NONE_APPLIES]
        return f"{faults[0]} (on the response {text[:60]!r} to the first row)" if faults else ""

    def close(self) -> None:
        """End the environment's processes, if there are any."""
        if self.environment is not None:
            self.environment.close()


def held_out(rows: Sequence[Prompt], problem_of: Callable[[Prompt], str]) -> tuple[list[Prompt], list[Prompt]]:
    """`(train, held out)`: a tenth of the problems, HELD_OUT at most, each with all of its rows.

    Rows are of one problem where `problem_of` gives one text. None is held out where too few problems would be left.
    """
    firsts = {problem_of(row): row for row in reversed(rows)}
    count = min(HELD_OUT, max(1, len(firsts) // 10))
    if len(firsts) < MIN_TRAIN + count:
        return list(rows), []
    chosen = {problem_of(row) for row in split(firsts.values(), count, MIN_TRAIN)[1]}
    shuffled, _ = split(rows, 0, MIN_TRAIN)
    return (
        [row for row in shuffled if problem_of(row) not in chosen],
        [row for row in shuffled if problem_of(row) in chosen],
    )


def _prompt_as_text(prompt: Prompt) -> str:
    return repr(prompt.text)


def _as_text(prompt: Prompt) -> str:
    """A row as text for the hash. Objects are left out: theirs may hold an address, and a set has no order."""
    columns = sorted(prompt.columns.items(), key=lambda item: item[0])
    return repr((prompt.text, [(key, value) if is_json(value) else (key,) for key, value in columns]))


def _prompts(rows: Iterable[Row], argument: str) -> list[Prompt]:
    if fix := _row_fix(rows, argument):
        raise DataError(f"{argument} is a {type(rows).__name__}: {fix}.")
    prompts = [_prompt(row, number, argument) for number, row in enumerate(rows)]
    if not prompts:
        raise DataError(f"{argument} is empty. Give it rows with a prompt.")
    return prompts


def _row_fix(rows: Any, argument: str) -> str:
    """How to make rows of what is something else; "" for rows."""
    if isinstance(rows, Mapping):  # a DatasetDict, or data sets by name
        return f"give one of its parts, {argument}[{next(iter(rows), 'train')!r}]"
    if isinstance(rows, str):
        return 'load it, as by datasets.load_dataset("json", data_files=..., split="train")'
    if hasattr(rows, "to_dicts"):  # a table of polars
        return f"give its rows, {argument}.to_dicts()"
    if type(rows).__name__ == "DataFrame":  # of pandas, which need not be installed
        return f'give its rows, {argument}.to_dict("records")'
    if hasattr(rows, "__len__"):
        return ""
    if hasattr(rows, "take"):
        return f"a stream has no length. Take a part of it, list({argument}.take(1000))"
    return f"it has no length. Give list({argument})"


def _prompt(row: Any, number: int, argument: str) -> Prompt:
    if not isinstance(row, Mapping) or "prompt" not in row:
        found = f"has the columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"is a {_kind(row)}"
        raise DataError(f"{argument}: row {number} {found}; it needs a column named prompt. Rename yours.")
    columns = {str(key): value for key, value in row.items() if key not in ("prompt", "completion", "completion_ids")}
    return Prompt(f"{argument}-{number}", _text(row["prompt"], number, argument), row.get("answer"), columns=columns)


def _text(prompt: Any, number: int, argument: str) -> str | tuple[dict[str, str], ...]:
    if isinstance(prompt, str):
        if not prompt:
            raise DataError(f"{argument}: the prompt of row {number} is empty. Leave the row out.")
        return _written(prompt, number, argument)
    messages = prompt if isinstance(prompt, list | tuple) else []
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise DataError(
                f"{argument}: the prompt of row {number} holds a message that is not {{role: text, content: text}}. "
                "Images and tools are not taken."
            )
    if not messages:
        raise DataError(
            f"{argument}: the prompt of row {number} is a {_kind(prompt)}; give a text or a list of messages."
        )
    return tuple({"role": m["role"], "content": _written(m["content"], number, argument)} for m in messages)


def _written(text: str, number: int, argument: str) -> str:
    """The text, if a tokenizer takes it; DataError otherwise."""
    if not is_unicode(text):
        raise DataError(
            f"{argument}: the prompt of row {number} holds half a surrogate pair, which is no character. Leave the row "
            'out, or mend it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        )
    return text


def _kind(value: Any) -> str:
    return "list without messages" if isinstance(value, list | tuple) else type(value).__name__
