"""The types that all rooms share: prompt, decoding, completion, verdict, episode, task.

These are records of single samples. `Batch` (`vapo.trainer.batch`) has the tensors of a whole step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

WrongKind = Literal["unspecified", "no_answer", "unreadable", "wrong_answer"]
KINDS: tuple[WrongKind, ...] = get_args(WrongKind)
FinishReason = Literal["stop", "length"]
Progress = Callable[[str, int, int], None]
"""Called with what is running, how much of it is done, and the total. An exception from it ends the work."""


@dataclass(frozen=True)
class Prompt:
    """One problem, as a task states it and as a model reads it.

    `id` is stable across runs and machines: seeds and epochs derive from it. `text` is a plain string or a
    list of chat messages (`{"role": ..., "content": ...}`). `answer` is what the task's verifier needs,
    as JSON; `columns` are the other columns of its row in a data set, for verifiers that ask for them.
    `token_ids` is empty until a tokenizer has rendered the prompt. `privileged_ids` are tokens that only the critic
    reads, between prompt and response.
    """

    id: str
    text: str | tuple[dict[str, str], ...]
    answer: Any = None
    token_ids: tuple[int, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    privileged_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How to sample: `temperature` 0 is greedy; `top_p` keeps the smallest set of that much probability.

    Sampling ends with one of `stop_token_ids` (the stop token is part of the response) or after
    `max_tokens` response tokens.
    """

    max_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    `token_ids` includes the stop token if there was one; `logprobs` (nats, one per token) are those of the
    distribution sampled from. `finish_reason` comes from the sampler, never from counting tokens: "stop"
    after a stop token, "length" at the limit. `policy_version` is the trainer's step the weights belong to.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement. `invalid` means it could not judge (timeout, crash, bad gold); never count it as wrong.

    `reason` is for people. `kind` is for counting why responses are wrong: no answer found, answer unreadable, or
    another answer. A verifier may leave it unspecified. `score` is the verifier's finite score, None if it gave none;
    `parts` are the rewards that it is made of, by name, before their weights.
    """

    status: Literal["right", "wrong", "invalid"]
    reason: str = ""
    kind: WrongKind = field(default="unspecified", compare=False)  # verdicts with equal status and reason are equal
    score: float | None = field(default=None, compare=False)
    parts: Mapping[str, float] = field(default_factory=dict, compare=False, hash=False)

    @property
    def right(self) -> bool:
        """True only for a verified right answer."""
        return self.status == "right"

    @property
    def valid(self) -> bool:
        """False when the verifier could not judge."""
        return self.status != "invalid"


@dataclass(frozen=True)
class Turn:
    """A part of an episode after the prompt, written by the policy or by the environment (such as a tool's output).

    `logprobs` belongs to the policy's turns, one per token as in `Completion`; it is empty in the environment's. `text`
    is what the policy wrote, without the stop token, or what the environment said; files leave it out.
    """

    author: Literal["policy", "environment"]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        expected = len(self.token_ids) if self.author == "policy" else 0
        if len(self.logprobs) != expected:
            raise ValueError(f"a turn of the {self.author} needs {expected} logprobs, got {len(self.logprobs)}")


NOT_JUDGED = Verdict("invalid", "not judged yet")
"""The verdict of an episode before anyone has judged it."""


@dataclass(frozen=True)
class Episode:
    """A prompt, what followed it turn by turn, and the verdict. `sample` counts the episodes of one prompt from 0.

    Training uses the policy's tokens only. `finish_reason` is "length" if a limit on tokens or turns ended the episode.
    `policy_version` is the trainer's step whose weights wrote all of its turns. `response` is the text that the
    verifier judges: the policy's turns, one to a line. `environment` is what the environment left for reward functions
    to read, and `judged` says that the verdict is the environment's; files leave both out.
    """

    prompt: Prompt
    sample: int
    turns: tuple[Turn, ...]
    response: str
    finish_reason: FinishReason
    policy_version: int
    verdict: Verdict = NOT_JUDGED
    environment: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    judged: bool = field(default=False, compare=False)
    opened: int = 0
    """Tokens of the response's limit that the environment's first words took inside the prompt."""

    @classmethod
    def of_completion(
        cls, prompt: Prompt, sample: int, completion: Completion, response: str, verdict: Verdict = NOT_JUDGED
    ) -> Episode:
        """The episode of one turn: a prompt and one completion."""
        turns = (Turn("policy", completion.token_ids, completion.logprobs, response),)
        return cls(prompt, sample, turns, response, completion.finish_reason, completion.policy_version, verdict)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens after the prompt."""
        return tuple(token for turn in self.turns for token in turn.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """One number per token after the prompt, in nats; 0 where the environment wrote."""
        return tuple(x for turn in self.turns for x in (turn.logprobs or (0.0,) * len(turn.token_ids)))

    @property
    def written(self) -> tuple[bool, ...]:
        """For each token after the prompt, whether the policy wrote it."""
        return tuple(turn.author == "policy" for turn in self.turns for _ in turn.token_ids)

    @property
    def turn_starts(self) -> tuple[bool, ...]:
        """For each token after the prompt, whether a turn of the policy begins with it."""
        return tuple(turn.author == "policy" and i == 0 for turn in self.turns for i in range(len(turn.token_ids)))

    @property
    def num_turns(self) -> int:
        """Turns of the policy."""
        return sum(turn.author == "policy" for turn in self.turns)

    @property
    def truncated(self) -> bool:
        """Whether a limit on tokens or turns cut the episode off."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Reply:
    """What an environment answers to a turn of the policy."""

    text: str = ""
    """Follows the policy's turn; its tokens are not trained. Nothing follows the last turn of an episode."""
    done: bool = False
    """The episode is over."""
    verdict: Verdict | None = None
    """Of the whole episode; None lets the task's verifier judge the response. Read if the episode ends here."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The text as chat messages, where it is not a user's: results of tools. Empty makes it one message of a user."""


class Environment(Protocol):
    """The world of one episode; made afresh for every sample.

    One that hides something, such as a code or a deck, may have `redraw(seed)`: hide something else that agrees with
    all it has answered. `vapo critic` then judges by what the text tells.
    """

    def reset(self) -> str:
        """The text that follows the prompt at once; "" for none."""
        ...

    def step(self, response: str) -> Reply:
        """The answer to the text of the policy's turn, which has no stop token."""
        ...

    def close(self) -> None:
        """End what the world holds. Called once, whether the episode ended or not."""
        ...


class Task(Protocol):
    """Where problems come from and who judges the answers.

    `train` and `heldout` are disjoint sequences (`len`, indexing, equal index means equal prompt); they may make
    their items lazily. `max_response_tokens` is the length the task was designed for.

    A task may have more parts; `vapo.tasks.full_task.FullTask` has the defaults of those it lacks:

    - `final_answer(response) -> str | None`: the short answer a response ends in; maj@k votes on it.
    - `vote(response) -> str | None`: what maj@k votes on instead, such as one spelling of equal answers.
    - `verify_all(items, on_progress) -> list[Verdict]`: judges many (prompt, response) pairs faster than one by one,
      and calls `on_progress(done, total)` from time to time.
    - `verify_groups(groups, on_progress) -> list[Verdict]`: compares the responses to a prompt, and is called in place
      of the other two. A group is a sequence of `Episode`, all of one prompt. One verdict for each episode, in order.
    - `environment(prompt, seed) -> Environment`: makes the world of one episode. The policy then takes turns with it,
      until it says that the episode is done, or `max_turns: int` of the policy's turns are over. A turn ends with a
      stop token, or with one of `turn_ends`, texts of one token each, which the environment gets to read.
    - `tools`: JSON schemas of functions that the environment offers; the chat template puts them into the prompt.
    - `close()`: ends the processes and closes the files that the task holds.
    - `notes`: a list of sentences about the problems, shown to the user.
    """

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> PromptSet: ...
    @property
    def heldout(self) -> PromptSet: ...
    @property
    def max_response_tokens(self) -> int: ...

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Judge the decoded response text (end tokens and padding removed). Never raises on any text."""
        ...


class Verifier(Protocol):
    """Judges a response text; the callable part of a task. Never raises on any text."""

    def __call__(self, prompt: Prompt, response: str, /) -> Verdict: ...


class PromptSet(Protocol):
    """A sized, indexable set of prompts; the same index is always the same prompt."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Prompt: ...


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of the parts: the same on every machine, in every process and release.

    >>> stable_hash(0, "step", 3) == stable_hash(0, "step", 3)
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample_seed(run_seed: int, step: int | str, prompt_id: str, sample: int) -> int:
    """The seed of one sample, so that a sample is the same alone, in a batch and after a resume."""
    return stable_hash("sample", run_seed, step, prompt_id, sample)
