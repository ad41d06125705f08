"""Environments of users as `vapo.types.Environment`: those that take turns, and those that are tools."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vapo.tasks.environments.channels import (
    Channel,
    EnvironmentFaultError,
    EnvironmentRaisedError,
    EnvironmentServer,
    ThreadServer,
)
from vapo.tasks.environments.tool_calls import MAX_CALLS, ToolCall, tool_calls
from vapo.tasks.verifiers.functions import verdict_of_score
from vapo.tasks.verifiers.pool import read_verdict
from vapo.types import Environment, Prompt, Reply, Verdict


class Players:
    """Makes the environment of each episode: a `FullTask.environment` with limits.

    `stateless` says that there are tools only: one that is too slow is an error that the model reads, and the next call
    goes to a new process. `right_at` is the score from which an environment's own reward is right; None leaves the
    reward to reward functions. Close it when done.
    """

    def __init__(
        self,
        server: EnvironmentServer | ThreadServer,
        *,
        stateless: bool = False,
        right_at: float | None = None,
    ) -> None:
        self.server, self.stateless, self._right_at = server, stateless, right_at
        self.workers, self.max_characters = server.workers, server.limits.max_characters

    def __call__(self, prompt: Prompt, seed: int) -> Environment:
        """The environment of one episode."""
        kind = TurnPlayer if self.server.takes_turns else ToolPlayer
        return kind(self.server.open, prompt, seed, stateless=self.stateless, right_at=self._right_at)

    def close(self) -> None:
        """End all processes."""
        self.server.close()


class _Player:
    """An environment behind a channel."""

    def __init__(
        self,
        connect: Callable[[], Channel],
        prompt: Prompt,
        seed: int,
        *,
        stateless: bool = False,
        right_at: float | None = None,
    ) -> None:
        self._connect, self._stateless, self._right_at = connect, stateless, right_at
        fields = {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "columns": prompt.columns}
        self._opening = {"open": {"prompt": fields, "seed": seed}}
        self._channel: Channel | None = None
        self._fault: EnvironmentFaultError | None = None
        self.verdict: Verdict | None = None
        """By `get_reward` of the environment, once it is closed, if that judges."""
        self.left: dict[str, Any] = {}
        """What the environment left for reward functions: its public attributes, `messages` of an episode with tools,
        and `get_reward`, if it has that method."""

    def reset(self) -> str:
        """See `Environment.reset`. Raises EnvironmentFaultError, as all methods do."""
        self._channel = self._connect()
        text = self._ask(self._opening).get("text")
        return text if isinstance(text, str) else ""

    def close(self) -> None:
        """Let the environment close, keep what it leaves unless it has failed, and end its process."""
        if self._channel is None:
            return
        try:
            if isinstance(self._fault, EnvironmentRaisedError):  # its close() frees what it holds
                with contextlib.suppress(EnvironmentFaultError):  # the first fault is the reason of the verdict
                    self._channel.ask({"close": True})
            elif self._fault is None:
                left = self._ask({"end": True}).get("left")
                self.left = {**(left if isinstance(left, dict) else {}), **self.left}
                reward = self.left.get("get_reward")
                if self._right_at is not None and isinstance(reward, int | float):
                    self.verdict = verdict_of_score(float(reward), self._right_at)
        finally:
            self._channel.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._channel is not None
        try:
            return self._channel.ask(request)
        except EnvironmentFaultError as fault:
            self._fault = fault
            raise


class TurnPlayer(_Player):
    """An environment that answers the text of each turn."""

    def step(self, response: str) -> Reply:
        """See `Environment.step`."""
        answer = self._ask({"step": response})
        text, verdict = answer.get("text"), answer.get("verdict")
        if not isinstance(text, str):
            raise EnvironmentFaultError("the environment's process wrote what is no answer")
        judged = None if verdict is None else read_verdict(verdict)
        if verdict is not None and judged is None:
            raise EnvironmentFaultError("the environment's process wrote what is no verdict")
        messages = answer.get("messages")
        valid = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
        return Reply(text, bool(answer.get("done")), judged, tuple(valid))


class ToolPlayer(_Player):
    """Carries out the tool calls of each turn. A turn without a call ends the episode."""

    @property
    def _messages(self) -> list[dict[str, Any]]:
        return self.left.setdefault("messages", [])

    def step(self, response: str) -> Reply:
        """See `Environment.step`."""
        calls = tool_calls(response)
        self._messages.append(_message(response, calls))
        if not calls:
            return Reply(done=True)
        results = [{"role": "tool", "name": call.name, "content": self._result(call)} for call in calls[:MAX_CALLS]]
        if len(calls) > MAX_CALLS:
            results.append({"role": "tool", "name": "", "content": f"only the first {MAX_CALLS} calls were made"})
        self._messages.extend(results)
        return Reply("\n".join(result["content"] for result in results), messages=tuple(results))

    def _result(self, call: ToolCall) -> str:
        """What the model reads of a call."""
        if call.fault:
            return str({"error": call.fault})
        try:
            answer = self._ask({"call": call.name, "arguments": call.arguments})
        except EnvironmentFaultError:
            if not self._stateless:
                raise
            if self._channel is not None:
                self._channel.close()
            self._fault = None
            self.reset()  # a new process: the tools have no state to lose
            return str({"error": "the tool gave no answer in time, or its process died"})
        return str(answer["result"]) if "result" in answer else str({"error": answer.get("error")})


def _message(response: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """A turn of the policy as a chat message, in the form that TRL's reward functions read."""
    message: dict[str, Any] = {"role": "assistant", "content": response}
    if calls:
        message["content"] = response.partition("<tool_call>")[0].strip()
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return message
