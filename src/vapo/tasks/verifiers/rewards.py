"""Several reward functions in this process, called as TRL calls them, and their weighted sum as one verdict."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from threading import Thread
from types import SimpleNamespace
from typing import Any, SupportsFloat

from vapo.errors import ConfigError, counted
from vapo.tasks.verifiers.functions import verdict_of_score
from vapo.types import Episode, Prompt, Verdict

RewardFunction = Callable[..., Any]
NONE_APPLIES = "no reward function applies: all of them gave None"


class Rewards:
    """Reward functions with names and weights.

    A function gets TRL 1.16's keyword arguments, or those of them that it names: `prompts`, `completions` (messages
    where the prompt is messages), `completion_ids` (stop token included), every column of the data, each with one entry
    per response; `environments`, what is left of them (`LeftEnvironment`); and `trainer_state` (`global_step`),
    `log_extra` and `log_metric`, which drop what they get. It returns one number per response: an int, a float, a bool,
    a numpy scalar, a tensor of one element. None means that the function does not apply to that response. Coroutine
    functions run together.

    The score of a response is the sum of weight times reward over the functions that apply. It is right from
    `right_at` on (None: 99 % of the positive weights' sum, which is full marks for rewards from 0 to 1). Where no
    function applies, or one gives NaN, an infinity or no number, the verdict is invalid, with the reason; so are all
    verdicts of a call in which a function raises, or gives another number of rewards.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        right_at: float | None = None,
    ) -> None:
        self.functions = list(functions)
        self.weights = [1.0] * len(self.functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.functions):
            raise ConfigError(
                f"reward_weights has {counted(len(self.weights), 'weight')} for "
                f"{counted(len(self.functions), 'reward function')}. Give one for each."
            )
        self.names = _names(self.functions)
        full = sum(weight for weight in self.weights if weight > 0)
        if right_at is None and not full > 0:
            raise ConfigError(
                "No reward has a positive weight, so there are no full marks. Say from which score on a response is "
                "right: right_at=..."
            )
        self.right_at = 0.99 * full if right_at is None else right_at

    def judge(self, groups: Sequence[Sequence[Episode]]) -> list[Verdict]:
        """One verdict for each episode of all groups, in order. Every function is called once for all of them."""
        episodes = [episode for group in groups for episode in group]
        arguments = _arguments(episodes)
        calls = [partial(function, **_named(function, arguments)) for function in self.functions]
        given: list[list[float | None]] = []
        for name, result in zip(self.names, _results(calls), strict=True):
            if isinstance(result, Exception):
                return [Verdict("invalid", f"{name} raised {type(result).__name__}: {result}")] * len(episodes)
            rewards = _rewards(result)
            if rewards is None or len(rewards) != len(episodes):
                gave = f"a {type(result).__name__}" if rewards is None else counted(len(rewards), "reward")
                wanted = counted(len(episodes), "completion")
                return [Verdict("invalid", f"{name} gave {gave} for {wanted}")] * len(episodes)
            given.append(rewards)
        return [self._verdict([rewards[i] for rewards in given]) for i in range(len(episodes))]

    def _verdict(self, rewards: Sequence[float | None]) -> Verdict:
        applying = [
            (name, weight, reward)
            for name, weight, reward in zip(self.names, self.weights, rewards, strict=True)
            if reward is not None
        ]
        for name, _, reward in applying:
            if not math.isfinite(reward):
                return Verdict("invalid", f"{name} gave {reward}, not a finite number")
        if not applying:
            return Verdict("invalid", NONE_APPLIES)
        verdict = verdict_of_score(sum(weight * reward for _, weight, reward in applying), self.right_at)
        parts = {name: reward for name, _, reward in applying}
        return Verdict(verdict.status, verdict.reason, verdict.kind, verdict.score, parts)


def _names(functions: Sequence[RewardFunction]) -> list[str]:
    """A name for each function, distinct: they are the names of metrics. Of equal ones the later get a number."""
    own: list[str] = []
    for function in functions:
        inner = function.func if isinstance(function, partial) else function
        own.append(str(getattr(inner, "__name__", type(inner).__name__)).strip("<>"))
    names: list[str] = []
    for place, name in enumerate(own):
        taken = {*names, *own} if name in own[:place] else set()
        free = (numbered for number in count(2) if (numbered := f"{name}_{number}") not in taken)
        names.append(next(free) if taken else name)
    return names


def _arguments(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What TRL gives a reward function for these responses."""
    prompts = [episode.prompt for episode in episodes]
    columns = dict.fromkeys(key for prompt in prompts for key in prompt.columns)
    left = {"environments": [LeftEnvironment(e.environment) for e in episodes]}
    return {
        **{key: [prompt.columns.get(key) for prompt in prompts] for key in columns},
        **(left if any(e.environment for e in episodes) else {}),
        "prompts": [_text(prompt) for prompt in prompts],
        "completions": [
            episode.response if isinstance(episode.prompt.text, str) else _messages(episode) for episode in episodes
        ],
        "completion_ids": [list(episode.token_ids) for episode in episodes],
        "trainer_state": SimpleNamespace(global_step=max((e.policy_version for e in episodes), default=0)),
        "log_extra": _drop,
        "log_metric": _drop,
    }


class LeftEnvironment(SimpleNamespace):
    """What is left of an environment when its episode is over: its public attributes that are JSON."""

    def __init__(self, left: Mapping[str, Any]) -> None:
        super().__init__(**{name: value for name, value in left.items() if name != "get_reward"})
        self._reward = left.get("get_reward")

    def get_reward(self) -> float | None:
        """What the environment's own `get_reward` gave at the end."""
        return self._reward


def environment_reward(environments: Sequence[LeftEnvironment], **_: Any) -> list[float | None]:
    """The environments' own rewards, as a reward function."""
    return [environment.get_reward() for environment in environments]


def _messages(episode: Episode) -> list[dict[str, Any]]:
    """The episode as chat messages: the policy's turns, with their calls of tools, and what was answered."""
    messages = [dict(message) for message in episode.environment.get("messages", ())]
    if not messages:
        roles = {"policy": "assistant", "environment": "user"}
        return [{"role": roles[turn.author], "content": turn.text} for turn in episode.turns] or [
            {"role": "assistant", "content": episode.response}
        ]
    written = [turn.text for turn in episode.turns if turn.author == "policy"]
    if len(written) > sum(message["role"] == "assistant" for message in messages):  # the last turn was cut off
        messages.append({"role": "assistant", "content": written[-1]})
    return messages


def _text(prompt: Prompt) -> Any:
    return prompt.text if isinstance(prompt.text, str) else [dict(message) for message in prompt.text]


def _named(function: RewardFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(arguments)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in arguments.items() if key in names}


def _results(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the calls return, or the exception that they raise; what they return to be awaited is awaited together."""
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:  # the functions are the user's
            results.append(error)
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        for i, result in zip(waiting, _awaited([results[i] for i in waiting]), strict=True):
            results[i] = result
    return results


def _awaited(awaitables: Sequence[Any]) -> list[Any]:
    """What the awaitables give, or the exception that they raise. A thread has their loop, because the caller may be
    inside one, as notebooks are."""
    found: list[Any] = []

    async def gather() -> None:
        found.extend(await asyncio.gather(*awaitables, return_exceptions=True))

    thread = Thread(target=lambda: asyncio.run(gather()), name="rewards")
    thread.start()
    thread.join()
    return found


def _rewards(result: Any) -> list[float | None] | None:
    """The rewards as floats, None where a function does not apply, NaN for what is no number; None if it is no list."""
    listed = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(listed, list | tuple):
        return None
    return [None if x is None else _number(x) for x in listed]


def _number(reward: Any) -> float:
    """The reward as a float; NaN for what is no number, such as a tensor of several, or too large for one."""
    try:
        return float(reward) if isinstance(reward, SupportsFloat) else math.nan
    except (OverflowError, TypeError, ValueError, RuntimeError):
        return math.nan


def _drop(*_: Any, **__: Any) -> None:
    """Drop what a reward function logs."""
