"""Calls of tools in a turn of the policy, as Hermes and Qwen models write them: `<tool_call>{json}</tool_call>`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MAX_CALLS = 16
"""Calls of one turn that are carried out."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the policy wrote. `fault` says why it cannot be carried out, for the model to read."""

    name: str
    arguments: dict[str, Any]
    fault: str = ""


def tool_calls(turn: str) -> list[ToolCall]:
    """The calls in a turn, in order; those that cannot be read have a fault.

    >>> tool_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    [ToolCall(name='add', arguments={'a': 1}, fault='')]
    """
    return [_call(body) for body in _CALL.findall(turn)]


def _call(body: str) -> ToolCall:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return ToolCall("", {}, "the call is not JSON")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall("", {}, 'a call is {"name": ..., "arguments": {...}}')
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as a text of JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        return ToolCall(call["name"], {}, "the arguments are not a JSON object")
    return ToolCall(call["name"], arguments)
