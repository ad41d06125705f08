"""One episode of a user's environment or tools, which answers requests; beside the trainer, never in it.

{"open": {"prompt": {"id", "text", "answer", "columns"}, "seed": 7}}    {"text": "..."}
{"step": "..."}                        {"text": "...", "done": false, "verdict": null, "messages": []}
{"call": "name", "arguments": {}}      {"result": "..."}  {"error": "..."}
{"end": true}                          {"left": {...}}
{"close": true}                        {}, after a request that failed
any of them                            {"failed": "why"}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from vapo.tasks.environments.offers import Offer, named_arguments, tool_methods
from vapo.tasks.verifiers.functions import OneLoop, to_verdict
from vapo.types import Prompt, Reply, Verdict

MAX_LEFT = 100_000
"""Characters of one attribute that an environment may leave for reward functions."""


class Host:
    """Answers the requests of one episode. `right_at` is the score from which a verdict is right."""

    def __init__(self, offer: Offer, *, right_at: float, max_characters: int) -> None:
        self._offer, self._right_at, self._most = offer, right_at, max_characters
        self._environment: Any = None
        self._tools: dict[str, Callable[..., Any]] = {}
        self._loop = OneLoop()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; `failed` with the reason where the user's code raises or gives something else."""
        try:
            if "open" in request:
                return {"text": self._cut(self._open(**request["open"]))}
            if "step" in request:
                return self._step(request["step"])
            if "call" in request:
                return self._call(request["call"], request.get("arguments"))
            if "close" in request:
                self._close()
                return {}
            return {"left": self._end()}
        except Exception as error:  # the user's code may raise anything
            return {"failed": f"the environment raised {type(error).__name__}: {str(error)[:300]}"}

    def _open(self, prompt: Mapping[str, Any], seed: int) -> str:
        """Make the environment; the text that it begins with."""
        self._tools = {function.__name__: function for function in self._offer.functions}
        if self._offer.factory is None:
            return ""
        whole = Prompt(**prompt)
        values = {**whole.columns, "answer": whole.columns.get("answer", whole.answer), "prompt": whole, "seed": seed}
        self._environment = self._offer.factory(**named_arguments(self._offer.factory, values))
        if self._offer.takes_turns:
            text = self._loop.awaited(self._environment.reset(**named_arguments(self._environment.reset, values)))
        else:
            self._tools |= {name: getattr(self._environment, name) for name in tool_methods(type(self._environment))}
            row = {"answer": whole.answer, **whole.columns, "prompt": whole.columns.get("prompt", whole.text)}
            text = self._loop.awaited(self._environment.reset(**named_arguments(self._environment.reset, row)))
        if text is not None and not isinstance(text, str):
            raise TypeError(f"reset gave a {type(text).__name__}, not a text or None")
        return text or ""

    def _step(self, response: str) -> dict[str, Any]:
        reply = self._loop.awaited(self._environment.step(response))
        reply = Reply(reply) if isinstance(reply, str) else reply
        if not isinstance(reply, Reply) or not isinstance(reply.text, str):
            what = reply.text if isinstance(reply, Reply) else reply
            raise TypeError(f"step gave a {type(what).__name__}, not a text or a vapo.types.Reply")
        verdict = None if reply.verdict is None else self._verdict(reply.verdict)
        messages = [{"role": str(m["role"]), "content": self._cut(str(m["content"]))} for m in reply.messages]
        return {"text": self._cut(reply.text), "done": bool(reply.done), "verdict": verdict, "messages": messages}

    def _verdict(self, given: Any) -> list[Any]:
        verdict: Verdict = to_verdict(self._loop.awaited(given), self._right_at)
        score = None if verdict.score is None else float(verdict.score)
        return [verdict.status, verdict.reason[:300], verdict.kind, score]

    def _call(self, name: str, arguments: Any) -> dict[str, Any]:
        """The result of a tool. What the tool raises is for the model to read."""
        if name not in self._tools:
            return {"error": f"there is no tool {name!r}; there are: {', '.join(self._tools)}"[:300]}
        try:
            return {"result": self._cut(str(self._loop.awaited(self._tools[name](**arguments))))}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}

    def _end(self) -> dict[str, Any]:
        """What the environment leaves; then it is closed, also where its reward fails."""
        try:
            return {} if self._environment is None else self._left()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            if (close := self._method("close")) is not None:
                self._loop.awaited(close())
        finally:
            self._loop.close()

    def _left(self) -> dict[str, Any]:
        """The public attributes of the environment that are JSON, and its reward."""
        left = {}
        for name, value in vars(self._environment).items() if hasattr(self._environment, "__dict__") else ():
            with contextlib.suppress(TypeError, ValueError, RecursionError):
                if not name.startswith("_") and len(json.dumps(value, allow_nan=False)) <= MAX_LEFT:
                    left[name] = value
        if (get_reward := self._method("get_reward")) is not None:
            reward = self._loop.awaited(get_reward())
            left["get_reward"] = None if reward is None else float(reward)
        return left

    def _method(self, name: str) -> Callable[[], Any] | None:
        """A method that an environment may have."""
        method = getattr(self._environment, name, None)
        return method if callable(method) else None

    def _cut(self, text: str) -> str:
        """The text without what goes far beyond the limit; the trainer cuts it with a mark."""
        return text[: self._most + 1]
