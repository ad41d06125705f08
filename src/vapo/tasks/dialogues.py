"""Dialogues in rows, as the messages of a prompt: turns of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vapo.tasks.row_faults import Fault

SYSTEM_COLUMNS = ("system", "system_prompt")
"""Columns that hold the system message of the dialogue beside them."""
_SHAREGPT = "conversations"
_ROLES = {
    "human": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""Names of the roles in dialogues, besides those of chat templates."""

Message = dict[str, str]


class Dialogue(NamedTuple):
    """The turns of a row, before they are checked."""

    turns: Sequence[Any]
    system: Any = None
    """The system message, if the turns have none."""
    templated: bool = False
    """Whether `task.template` goes around the text of the last user turn, and `task.system` before the turns."""


def is_dialogue(value: Any) -> bool:
    """Whether a column holds a list of turns."""
    return (
        isinstance(value, list)
        and all(isinstance(turn, Mapping) for turn in value)
        and any("role" in turn or "from" in turn for turn in value)
    )


def dialogue_of(turns: Sequence[Any], name: str = "", system: Any = None) -> Dialogue:
    """The dialogue of a column. Those of ShareGPT are templated: their column's name says so, or the keys of a turn."""
    keys = any(isinstance(turn, Mapping) and turn.get("from") and "value" in turn for turn in turns)
    return Dialogue(turns, system, keys or name.rpartition(".")[2].lower() == _SHAREGPT)


def role_of(turn: Any) -> str | None:
    """The role of a turn as chat templates call it; None if it has none."""
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, Mapping) else None
    return _ROLES.get(role.lower(), role) if isinstance(role, str) else None


def messages_of(dialogue: Dialogue, template: str, system: str | None) -> tuple[Message, ...] | Fault:
    """The messages of a prompt, or the fault in them. The answer of the assistant at the end is left out."""
    messages = []
    for turn in dialogue.turns:
        message = _message(turn)
        if isinstance(message, Fault):
            return message
        messages.append(message)
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool") or not messages[-1]["content"].strip():
        return Fault("messages that do not end with a user's or a tool's")
    if dialogue.templated and messages[-1]["role"] == "user":
        problem = messages[-1]["content"].strip()
        messages[-1] = {"role": "user", "content": template.replace("{problem}", problem)}
    if all(message["role"] != "system" for message in messages):
        own = dialogue.system
        if own is not None and not isinstance(own, str):
            return Fault("a system message that is not text", f"a {type(own).__name__}")
        text = own.strip() if own else ""
        if text := text or (system or "") * dialogue.templated:
            messages.insert(0, {"role": "system", "content": text})
    return tuple(messages)


def _message(turn: Any) -> Message | Fault:
    role = role_of(turn)
    content = next((turn[key] for key in ("content", "value") if turn.get(key) is not None), None) if role else None
    if isinstance(content, list):  # parts, as in OpenAI's messages
        content = _parts_text(content)
    if isinstance(content, Fault):
        return content
    if role is None or not isinstance(content, str):
        held = turn.items() if isinstance(turn, Mapping) else ()
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in held)
        return Fault("a message without role and content", f"it holds {kinds or f'a {type(turn).__name__}'}")
    return {"role": role, "content": content}


def _parts_text(parts: Sequence[Any]) -> str | Fault:
    """The text of a message that is a list of parts, one part a line."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            return Fault("a message with a part that is not text", str(kind or f"a {type(part).__name__}"))
        texts.append(text)
    return "\n".join(texts)
