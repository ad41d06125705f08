"""A filled-in `task.columns` for a row of an unknown layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vapo.tasks.dialogues import SYSTEM_COLUMNS, is_dialogue, role_of
from vapo.tasks.row_files import Row

BEFORE = ("context", "passage", "article", "paragraph", "document", "story", "background", "body")
AFTER = ("input", "inputs", "choices", "options")
"""Columns that belong to a problem. Their text is joined before or after it, separated by a blank line."""
_PROMPTS = (
    "question", "problem", "prompt", "query", "instruction", "messages", "conversations", "conversation", "dialogue",
    "dialog", "turns", "chat", "input",
)  # fmt: skip
_ANSWERS = (
    "answer", "answers", "final_answer", "gold", "gold_answer", "ground_truth", "reference_answer", "expected_answer",
    "correct_answer", "target", "label", "completion", "solution", "output", "response", "reward_model",
)  # fmt: skip
"""Names of columns that may hold the problem and the gold answer, likely ones first."""
_KEYS = ("text", "value", "content", "ground_truth", "answer", "label")
"""Names of what holds the answer inside a column."""


def columns_option(prompt: Iterable[str] | str, answer: str) -> str:
    """The option that names these columns, as it is typed.

    >>> columns_option(["context", "question"], "answers.0")
    "--set 'task.columns={prompt: [context, question], answer: answers.0}'"
    """
    return f"--set 'task.columns={{prompt: {prompt_words(prompt)}, answer: {answer}}}'"


def prompt_words(prompt: Iterable[str] | str) -> str:
    """The columns of a prompt as `task.columns` writes them: one name, or a list."""
    names = [prompt] if isinstance(prompt, str) else list(prompt)
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def suggested_columns(row: Row) -> str:
    """The option that names problem and answer of a row; `...` stands for what cannot be told."""
    names = {str(key).lower(): str(key) for key in row if row[key] not in (None, "", [], {})}
    values = {name: row[original] for name, original in names.items()}
    problem = next((name for name in _PROMPTS if name in values and _is_problem(values[name])), None)
    problem = problem or next(
        (name for name, value in values.items() if "question" in name and _is_problem(value)), None
    )
    answer = next((name for name in _ANSWERS if name in values and name != problem), None)
    path = value_path(names[answer], values[answer]) if answer else "..."
    if problem is None:
        return columns_option("...", path)
    turns = values[problem]
    if is_dialogue(turns):
        if answer is None and role_of(turns[-1]) == "assistant":
            path = value_path(names[problem], turns)
        around = [name for name in SYSTEM_COLUMNS if isinstance(values.get(name), str)][:1]
        return columns_option([names[name] for name in (*around, problem)], path)
    before = [name for name in BEFORE if isinstance(values.get(name), str) and name != answer]
    after = [name for name in AFTER if _can_follow(values.get(name)) and name not in (problem, answer)]
    return columns_option([names[name] for name in (*before, problem, *after)], path)


def value_path(name: str, value: Any) -> str:
    """The name of the text or number in a column that holds a list, a mapping or messages.

    >>> value_path("answers", {"text": ["Ann"], "answer_start": [3]})
    'answers.text.0'
    """
    if isinstance(value, Mapping) and value:
        key = next((key for key in _KEYS if value.get(key) not in (None, "", [], {})), None)
        key = next(iter(value)) if key is None else key
        return value_path(f"{name}.{key}", value[key])
    if isinstance(value, list) and value:
        last = is_dialogue(value) and len(value) > 1 and role_of(value[-1]) == "assistant"
        return value_path(f"{name}.{-1 if last else 0}", value[-1 if last else 0])
    return name


def _is_problem(value: Any) -> bool:
    return isinstance(value, str) or is_dialogue(value)


def _can_follow(value: Any) -> bool:
    texts: Sequence[Any] = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)
