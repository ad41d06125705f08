"""Finds the problem and the gold answer of each row of a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from vapo.errors import DataError
from vapo.tasks.dialogues import SYSTEM_COLUMNS, dialogue_of, is_dialogue, role_of
from vapo.tasks.layout_advice import AFTER, BEFORE, columns_option, suggested_columns, value_path
from vapo.tasks.row_files import Row
from vapo.tasks.verifiers.answers import last_answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOT_JOINED = (*SYSTEM_COLUMNS, "hint", "hints", "starter_code", "image", "images")
"""Columns that may belong to a problem. They are not part of the prompt, and a note reports them."""
_SOLUTIONS = ("solution", "solutions", "answer", "output", "response", "completion", "rationale", "explanation", "text")
"""Columns with spaces in their texts that are no part of a problem."""
_CHOICE = re.compile(r"(?:op|opt|option|choice)[ _]?([a-h]|[0-9])")
_LETTER = re.compile(r"([a-h])")
_INDEX = re.compile(r"-?[0-9]+")


class Layout(NamedTuple):
    """A common layout of data sets: the columns that identify it, and the function that reads problem and answer."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], tuple[Any, Any]]
    prompt: Sequence[str] = ()
    """The columns of the problem, as `task.columns` would name them."""
    answer: str = ""
    """The column of the answer, as `task.columns` would name it."""
    joined: tuple[str, ...] = ()
    """The columns whose texts form the problem, in order, if there are several."""
    choices: tuple[str, ...] = ()
    """The columns whose texts follow the problem as lettered lines."""
    system: str = ""
    """The column of the system message, if the problem is a dialogue."""
    has_system: bool = False
    """Whether the dialogue of the first row has a system message already."""
    not_joined: tuple[str, ...] = ()
    """Columns of the first row that may belong to the problem and are not in the prompt."""
    left_out: tuple[str, ...] = ()
    """The same, where `task.columns` does not name them."""
    is_dialogue: bool = False


def gold_answer(answer: Any) -> Any:
    """The marked answer if the column holds a whole solution (with `####` or `\\boxed{}`), else the column's value."""
    marked = isinstance(answer, str) and ("####" in answer or "\\boxed" in answer)
    return last_answer(answer) if marked else answer


def _verl(row: Row) -> tuple[Any, Any]:
    return row["prompt"], (row["reward_model"] or {}).get("ground_truth")


def _gsm8k(row: Row) -> tuple[Any, Any]:
    """The answer alone, where the last line is `#### 72`; elsewhere a `####` may be a heading or a comment."""
    answer = row["answer"]
    last = answer.strip().rpartition("\n")[-1] if isinstance(answer, str) else ""
    return row["question"], last.removeprefix("####").strip() if last.startswith("####") else answer


def _open_reasoner(row: Row) -> tuple[Any, Any]:
    return row["0"]["value"], row["1"]["ground_truth"]["value"]


LAYOUTS: tuple[Layout, ...] = (
    Layout("verl (DAPO-Math-17k)", ("prompt", "reward_model"), _verl, answer="reward_model.ground_truth"),
    Layout("Open-Reasoner-Zero", ("0", "1"), _open_reasoner, answer="1.ground_truth.value"),
    Layout("prompt / answer", ("prompt", "answer"), lambda row: (row["prompt"], row["answer"])),
    Layout("prompt / solution (TRL)", ("prompt", "solution"), lambda row: (row["prompt"], row["solution"])),
    Layout("problem / answer (AIME, MATH-500, DeepScaleR, OpenR1)", ("problem", "answer"),
           lambda row: (row["problem"], row["answer"])),
    Layout("problem / solution (MATH)", ("problem", "solution"),
           lambda row: (row["problem"], last_answer(str(row["solution"])))),
    Layout("question / answer (GSM8K)", ("question", "answer"), _gsm8k),
    Layout("messages / answer", ("messages", "answer"), lambda row: (row["messages"], row["answer"])),
    Layout("conversations / answer", ("conversations", "answer"),
           lambda row: (row["conversations"], row["answer"])),
    Layout("instruction / output (Alpaca)", ("instruction", "output"), lambda row: (row["instruction"], row["output"])),
)  # fmt: skip
"""The first layout whose columns are all present is used. Upper and lower case of column names are equal."""


def choose_layout(row: Row, columns: Mapping[str, str | Sequence[str]], where: str) -> Layout:
    """The layout that fits this row.

    `columns` ({"prompt": ..., "answer": ...}) names the user's own columns. A dot leads into nested columns, and the
    prompt may be a list of columns, which are joined. Without `columns` the layout is the first known one that fits;
    columns in `BEFORE` and `AFTER` are then joined to the problem if it is text. Raises DataError, with the names of
    the columns, if no layout fits or it is unclear how to join a column.
    """
    if columns:
        return _named_layout(row, columns, where)
    lower_case = lowered(row)
    names = {name: str(original) for name, original in zip(lower_case, row, strict=True)}
    for layout in LAYOUTS:
        if all(name in lower_case for name in layout.columns):
            found = _with_joined_columns(layout, lower_case, names, where)
            prompt = [names[name] for name in found.joined or (layout.columns[0],)]
            return found._replace(prompt=prompt, answer=layout.answer or names[layout.columns[1]])
    raise DataError(
        f"{where} has the columns {', '.join(map(str, row))}: none of the known layouts.",
        fix=f"Name the prompt and the answer: {suggested_columns(row)}.",
    )


def _named_layout(row: Row, columns: Mapping[str, str | Sequence[str]], where: str) -> Layout:
    """The layout of the user's own columns; DataError if the first row cannot be read with them."""
    if set(columns) != {"prompt", "answer"}:
        raise DataError(f"task.columns takes the two keys prompt and answer, got {', '.join(columns) or 'none'}.")
    problem, answer = columns["prompt"], columns["answer"]
    if not isinstance(answer, str):
        raise DataError(f"task.columns.answer names one column, got {answer!r}. Only prompt may be a list.")
    names = _listed(problem)
    parts, gold = {name: pick(row, name, where) for name in names}, pick(row, answer, where)
    if isinstance(gold, int) and not isinstance(problem, str) and any(map(_is_choices, parts.values())):
        raise DataError(
            f"{where}: the answer {gold} counts choices from 0 or from 1, but the prompt shows them as lettered "
            "lines. Name a column with the letter or the text of the right choice."
        )
    dialogues = [name for name in names if is_dialogue(parts[name])]
    if dialogues:
        _check_beside_dialogue(dialogues, names, answer, where)
    elif len(names) > 1:
        for name, part in parts.items():
            _check_part(name, part, where)
    tops = {name if name in row else name.split(".")[0] for name in (*names, answer)}
    beside = [str(name) for name, value in row.items() if name not in tops and isinstance(value, str) and value]
    known = [name for name in beside if name.lower() in (*BEFORE, *AFTER, *NOT_JOINED)]
    left_out = known or [name for name in beside if _may_be_a_part(name.lower(), row[name])]
    read = partial(_read_named, problem, answer, where)
    return Layout("task.columns", (), read, names, answer, left_out=tuple(left_out), is_dialogue=bool(dialogues))


def _check_beside_dialogue(dialogues: Sequence[str], names: Sequence[str], answer: str, where: str) -> None:
    """DataError if columns other than the system message are to be joined to messages."""
    dialogue, *more = dialogues
    system = [name for name in names if _is_system(name)][:1]
    if others := [name for name in names if name not in (dialogue, *system)]:
        text = f"{', '.join(others)} cannot be joined to {'each other' if more else 'them'}"
        raise DataError(
            f"{where}: {dialogue} holds messages, and {text}; only a column system or system_prompt can, as their "
            "system message.",
            fix=f"Write the text of {', '.join(others)} into the user's turn of each row, or leave it out: "
            f"{columns_option([*system, dialogue], answer)}.",
        )


def _check_part(name: str, part: Any, where: str) -> None:
    """DataError if a column of the first row cannot be joined to a problem."""
    try:
        _lettered("" if part is None else part)
    except TypeError as error:
        raise DataError(
            f"{where}: {name} holds a {type(part).__name__}, which cannot be joined to the problem. "
            f"Name a text in it, as in {value_path(name, part)}, or a list of texts."
        ) from error


def _with_joined_columns(layout: Layout, row: Row, names: Mapping[str, str], where: str) -> Layout:
    """The layout with the other columns that belong to the problem; DataError if it is unclear how to join one.

    `names` gives the names of columns as the row writes them.
    """
    problem, others = layout.columns[0], [name for name in row if name not in layout.columns]
    if not isinstance(row[problem], str):
        return _beside_dialogue(layout, row, others)
    for name in others:
        if name in (*BEFORE, *AFTER) and row[name] and not isinstance(row[name], str):
            advice = columns_option([names[problem], names[name]], names[layout.columns[1]])
            raise DataError(
                f"{where} has a column {name!r} beside {problem!r}, which may be a part of the problem and holds a "
                f"{type(row[name]).__name__}: choose whether to use it.",
                fix=f"{advice} puts it after the problem (a list as lettered lines), prompt: {names[problem]} leaves "
                "it out.",
            )
    before, after = ([name for name in known if name in others] for known in (BEFORE, AFTER))
    pattern = _choice_pattern(row, others, layout.columns[1])
    joined, choices = (*before, problem, *after), tuple(_choice_columns(row, pattern).values())
    not_joined = tuple(
        name
        for name in others
        if row[name] and name not in (*joined, *choices) and (name in NOT_JOINED or _may_be_a_part(name, row[name]))
    )
    # later rows may have parts that the first one lacks
    before, after = ([name for name in known if name not in layout.columns] for known in (BEFORE, AFTER))
    read = partial(_read_with_choices, partial(_read_joined, layout.read, (*before, problem, *after)), pattern)
    return layout._replace(
        read=partial(_read_lowered, read),
        joined=joined if len(joined) > 1 else (),
        choices=choices,
        not_joined=not_joined,
    )


def _beside_dialogue(layout: Layout, row: Row, others: Sequence[str]) -> Layout:
    """The layout of messages, which are the complete prompt apart from a system message in a column of its own."""
    problem = layout.columns[0]
    system = next((name for name in SYSTEM_COLUMNS if name in others and isinstance(row[name], str | None)), "")
    known = [name for name in (*BEFORE, *AFTER, *NOT_JOINED) if name in others and name != system]
    turns = row[problem] if isinstance(row[problem], list) else []
    return layout._replace(
        read=partial(_read_lowered, partial(_read_dialogue, layout.read, problem, system)),
        system=system,
        has_system=any(role_of(turn) == "system" for turn in turns),
        not_joined=tuple(name for name in known if row[name]),
        is_dialogue=True,
    )


def _may_be_a_part(name: str, value: Any) -> bool:
    """Whether a column that is not in the prompt holds words that may belong to a problem."""
    return isinstance(value, str) and len(value.split()) > 1 and name not in _SOLUTIONS


def _choice_pattern(row: Row, names: Sequence[str], answer: str) -> re.Pattern[str]:
    """The names of columns that hold a choice: option_a, opb, choice1, or A, B.

    Columns that are single letters count only where the answer is one of them: a and b may be numbers of the problem.
    """
    letters = {name.upper() for name in names if _LETTER.fullmatch(name)}
    named = any(_CHOICE.fullmatch(name) for name in names)
    is_letter = isinstance(row[answer], str) and row[answer].strip("() .") in letters
    return _LETTER if is_letter and not named else _CHOICE


def _choice_columns(row: Row, pattern: re.Pattern[str]) -> dict[str, str]:
    """The columns of a row's choices by their label, in order, without empty ones; {} if there are fewer than two."""
    found = {match[1].upper(): name for name in row if (match := pattern.fullmatch(name))}
    labels = sorted(label for label in found if row[found[label]] not in (None, ""))
    return {label: found[label] for label in labels} if len(labels) > 1 else {}


def _read_with_choices(read: Callable[[Row], tuple[Any, Any]], pattern: re.Pattern[str], row: Row) -> tuple[Any, Any]:
    """The problem with its choices as lettered lines, and the answer; TypeError if the problem is not text."""
    problem, answer = read(row)
    choices = _choice_columns(row, pattern)
    if not choices:
        return problem, answer
    if not isinstance(problem, str):
        raise TypeError("a part of the problem is not text")
    return _joined([problem, "\n".join(f"{label}. {row[name]}" for label, name in choices.items())]), answer


def _read_joined(read: Callable[[Row], tuple[Any, Any]], columns: Sequence[str], row: Row) -> tuple[Any, Any]:
    """The problem, joined from its columns, and the answer; TypeError if a column is not text."""
    problem, answer = read(row)
    parts = [row.get(name) or "" for name in columns]
    if sum(map(bool, parts)) < 2:
        return problem, answer
    if not all(isinstance(part, str) for part in (problem, *parts)):
        raise TypeError("a part of the problem is not text")
    lines = problem.splitlines()
    # leaves out a passage that the problem already contains; a short text may be in it by chance
    repeated = [p for p in parts if p is not problem and (p in lines or (len(p) > 40 and p in problem))]
    return _joined([part for part in parts if part is problem or part not in repeated]), answer


def _read_dialogue(read: Callable[[Row], tuple[Any, Any]], name: str, system: str, row: Row) -> tuple[Any, Any]:
    """The dialogue of column `name` with the text of column `system`, and the answer."""
    problem, answer = read(row)
    return (dialogue_of(problem, name, row.get(system)) if isinstance(problem, list) else problem), answer


def _read_named(problem: str | Sequence[str], answer: str, where: str, row: Row) -> tuple[Any, Any]:
    """The problem and the answer from the columns that the user names; TypeError for columns that cannot be joined."""
    parts, gold = {name: pick(row, name, where) for name in _listed(problem)}, pick(row, answer, where)
    dialogues = [name for name, part in parts.items() if is_dialogue(part)]
    if dialogues:
        name, *others = dialogues
        others += [other for other in parts if other not in dialogues]
        if len(others) > 1 or not all(map(_is_system, others)):
            raise TypeError("only a system message can be joined to a dialogue")
        turns = _before_answer(parts[name], name, answer)
        return dialogue_of(turns, name, parts[others[0]] if others else None), gold
    if isinstance(problem, str):
        return parts[problem], gold
    return _joined([_lettered(part) for part in parts.values() if part is not None]), gold


def _before_answer(turns: list[Any], name: str, answer: str) -> list[Any]:
    """The turns of column `name` before the one that is the answer, or all if the answer is in another column."""
    index = answer.removeprefix(f"{name}.").split(".")[0]
    return turns[: int(index)] if answer.startswith(f"{name}.") and _INDEX.fullmatch(index) else turns


def _is_system(name: str) -> bool:
    return name.rpartition(".")[2].lower() in SYSTEM_COLUMNS


def _is_choices(part: Any) -> bool:
    return isinstance(part, list) and not is_dialogue(part)


def _joined(parts: Sequence[str]) -> str:
    """The texts that are not empty, separated by blank lines."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _lettered(part: Any) -> str:
    """A column as text. A list of texts, or of labels and texts, gives lines `A. ...`; TypeError for other values."""
    labels: Sequence[Any] = LETTERS
    if isinstance(part, Mapping) and set(part) == {"label", "text"}:
        labels, part = part["label"], part["text"]
    if isinstance(part, list) and part and all(isinstance(text, str) for text in part) and len(part) <= len(labels):
        return "\n".join(f"{label}. {text}" for label, text in zip(labels, part, strict=False))
    if not isinstance(part, str):
        raise TypeError("a part of the problem is not text")
    return part


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _read_lowered(read: Callable[[Row], tuple[Any, Any]], row: Row) -> tuple[Any, Any]:
    return read(lowered(row))


def pick(row: Row, name: str, where: str) -> Any:
    """The value of a column; DataError if it does not exist.

    `a.b` is the column of that name, else b inside a; `a.0` is the first item of a list a, `a.-1` its last one.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and _INDEX.fullmatch(part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            raise DataError(f"{where} has no column {name!r}. There are: {', '.join(row)}.")
    return value


def lowered(row: Row) -> Row:
    """The row with lower-case column names, or unchanged if two names would become equal."""
    lower_case = {str(key).lower(): value for key, value in row.items()}
    return lower_case if len(lower_case) == len(row) else row
