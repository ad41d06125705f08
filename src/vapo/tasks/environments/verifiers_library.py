"""Environments of the `verifiers` library (PyPI, the 0.1 series) as tasks: `MultiTurnEnv`, `SingleTurnEnv`.

The library's later series have no environments that a trainer steps: there an agent calls a model's server.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vapo.errors import ConfigError, counted
from vapo.tasks.builtin import split
from vapo.tasks.environments.channels import EnvironmentLimits, EnvironmentServer
from vapo.tasks.environments.players import Players
from vapo.tasks.full_task import MAX_TURNS
from vapo.tasks.verifiers.functions import RIGHT_AT
from vapo.types import Prompt, Reply, Verdict, stable_hash

NOT_USABLE = (
    "The verifiers library is not installed, or is not of the 0.1 series, whose environments a trainer can step: pip "
    "install 'verifiers<0.2'."
)
MAKER = "vapo.tasks.environments.verifiers_library:episodes_of"


def load(
    environment: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    max_turns: int = MAX_TURNS,
    max_response_tokens: int = 1024,
    heldout: int = 100,
    right_at: float = RIGHT_AT,
    timeout_s: float = 10.0,
    memory_mb: int = 4096,
    workers: int | None = None,
) -> LibraryTask:
    """The task of an installed environment, by its id, made with `arguments`.

    Its data set gives the problems, its rubric the score of an episode, which is right from `right_at` on. The library
    reads the data set in this process; episodes are played in others.

    Raises ConfigError if the library or the environment is missing, or offers tools.
    """
    made = _environment(environment, arguments or {})
    train, evaluated = _rows(made.get_dataset()), _rows(made.get_eval_dataset())
    prompts = [_prompt(environment, number, row) for number, row in enumerate(train)]
    held = [_prompt(f"{environment}-eval", number, row) for number, row in enumerate(evaluated)]
    if not held or [p.text for p in held] == [p.text for p in prompts]:  # it gives the training set for want of another
        prompts, held = (list(part) for part in split(prompts, min(heldout, max(1, len(prompts) // 10)), 1))
    limits = EnvironmentLimits(timeout_s, memory_mb, settings=("task.timeout_s", "task.memory_mb"))
    server = EnvironmentServer(
        MAKER,
        arguments={"environment": environment, "arguments": dict(arguments or {})},
        limits=limits,
        workers=workers,
    )
    players = Players(server, right_at=right_at)
    return LibraryTask(f"verifiers/{environment}", prompts, held, players, max_turns, max_response_tokens)


class LibraryTask:
    """An environment of the library: its problems, and players of its episodes."""

    def __init__(
        self,
        name: str,
        train: Sequence[Prompt],
        heldout: Sequence[Prompt],
        environment: Players,
        max_turns: int,
        max_response_tokens: int,
    ) -> None:
        self.name, self.train, self.heldout = name, tuple(train), tuple(heldout)
        self.environment, self.max_turns, self.max_response_tokens = environment, max_turns, max_response_tokens
        self.notes = [f"{name}: {counted(len(train), 'problem')} to train on, {len(heldout):,} held out"]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Invalid: only an episode that was played has a reward."""
        return Verdict("invalid", "the environment gave no reward")

    def close(self) -> None:
        """End the processes."""
        self.environment.close()


def episodes_of(environment: str, arguments: Mapping[str, Any]) -> Callable[..., LibraryEpisode]:
    """What makes the library's environment take turns with us, for a worker process."""
    made = _environment(environment, arguments)

    def factory(row: Mapping[str, Any]) -> LibraryEpisode:
        return LibraryEpisode(made, row)

    return factory


class LibraryEpisode:
    """One episode of the library's environment: the part of its `rollout` that is not the model's."""

    def __init__(self, environment: Any, row: Mapping[str, Any]) -> None:
        self._environment, self._row = environment, dict(row)
        self._loop = asyncio.new_event_loop()
        self._state: Any = None
        self._shown: list[Any] = []

    def reset(self) -> str:
        """Set up the library's state. The prompt is in the data set, so nothing follows it."""
        self._state = self._wait(self._environment.init_state(self._row, _no_client(), "policy"))
        self._wait(self._environment.setup_state(self._state))
        self._shown = list(self._wait(self._environment.get_prompt_messages(self._state)))
        return ""

    def step(self, response: str) -> Reply:
        """Add the policy's turn to the trajectory, and ask for the environment's response."""
        turn = _assistant(response)
        self._state["trajectory"].append({
            "prompt": self._shown, "completion": [turn], "response": None, "tokens": None, "reward": None,
            "advantage": None, "is_truncated": False, "trajectory_id": self._state.get("trajectory_id"), "extras": {},
        })  # fmt: skip
        if self._wait(self._environment.is_completed(self._state)):
            return Reply(done=True)
        shown = list(self._wait(self._environment.get_prompt_messages(self._state)))
        if self._wait(self._environment.is_completed(self._state)):
            return Reply(done=True)
        said = [_message(message) for message in shown[len(self._shown) + 1 :]]
        self._shown = shown
        return Reply("\n".join(message["content"] for message in said), messages=tuple(said))

    def get_reward(self) -> float:
        """The score of the library's rubric."""
        self._wait(self._environment.render_completion(self._state))
        self._wait(self._environment.rubric.score_rollout(self._state))
        return float(self._state["reward"])

    def close(self) -> None:
        """Let the environment clean up."""
        if self._state is not None:
            self._wait(self._environment.cleanup(self._state))
        self._loop.close()

    def _wait(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result


def _environment(environment: str, arguments: Mapping[str, Any]) -> Any:
    """The library's environment. Raises ConfigError."""
    try:
        library = importlib.import_module("verifiers")
    except ImportError as error:
        raise ConfigError(f"{NOT_USABLE} ({error})") from error
    if not hasattr(library, "MultiTurnEnv"):
        raise ConfigError(NOT_USABLE)
    try:
        made = library.load_environment(environment, **arguments)
    except Exception as error:  # an environment is a package of its own
        raise ConfigError(
            f"task.environment={environment} of the verifiers library cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, library.MultiTurnEnv):
        raise ConfigError(f"{environment} is a {type(made).__name__}; environments that take turns are MultiTurnEnv.")
    if getattr(made, "tool_defs", None):
        raise ConfigError(
            f"{environment} offers tools in the library's own form, which is not taken. Give the functions themselves: "
            "VAPOTrainer(tools=[...])."
        )
    return made


def _rows(data: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in data]


def _prompt(environment: str, number: int, row: Mapping[str, Any]) -> Prompt:
    given = row["prompt"]
    text: Any = given if isinstance(given, str) else tuple(_message(message) for message in given)
    identity = stable_hash(environment, number, repr(text), repr(row.get("answer")))
    return Prompt(f"{environment}/{identity:016x}", text, row.get("answer"), columns={"row": dict(row)})


def _message(message: Any) -> dict[str, str]:
    """A message of the library, an object or a dict, as role and content."""
    get = message.get if isinstance(message, Mapping) else lambda name: getattr(message, name, None)
    return {"role": str(get("role")), "content": str(get("content") or "")}


def _assistant(content: str) -> Any:
    library = importlib.import_module("verifiers")
    kind = getattr(library, "AssistantMessage", None)
    return {"role": "assistant", "content": content} if kind is None else kind(content=content)


def _no_client() -> Any:
    """A client that is never asked: the policy writes the turns."""
    library = importlib.import_module("verifiers")
    kind = getattr(library, "ClientConfig", None)
    return None if kind is None else kind(api_key_var="VAPO_NO_KEY", api_base_url="http://localhost:0/v1")
