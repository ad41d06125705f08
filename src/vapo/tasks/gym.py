"""Tasks on the data sets of reasoning-gym, such as `reasoning-gym/countdown`. Their scorers run in worker processes.

Scorers give partial scores, and some accept any answer. Here an answer is right only if it gets the full score, and,
if the scorer also gives it to `NO_ANSWER`, only if it equals the gold answer.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vapo.errors import ConfigError, DataError, counted
from vapo.ranges import check_ranges, number
from vapo.tasks.verifiers.answers import last_answer
from vapo.tasks.verifiers.pool import Limits, VerifierPool
from vapo.types import Prompt, Verdict, Verifier

PREFIX = "reasoning-gym/"
INSTRUCTION = "{problem}\n\nThink step by step, then write your final answer between <answer> and </answer>."
COMPOSITE = "composite"
NO_GYM = "reasoning-gym tasks need its package: pip install reasoning-gym."
NO_ANSWER = "I do not know"
FULL = 1.0
"""The score of a right answer. Some scorers give nearly 1 for a long answer with one wrong letter."""
NUM_TESTED = 20
"""Number of gold answers on which the scorer is tested at the start."""


@dataclass(frozen=True)
class GymOptions:
    """The number of items, their difficulty and the form of the prompts."""

    size: int = number(10_000, ge=1, unit="items")
    """The number of items to train on."""
    heldout: int = number(200, ge=1, unit="items")
    """The number of items to evaluate on."""
    seed: int = 0
    """Seed of all items."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the data set, such as its difficulty, passed to it unchanged."""
    template: str = INSTRUCTION
    """The text of the prompt, with {problem} for the question."""
    system: str | None = None
    """The system message before the question."""
    verifier_workers: int | None = number(None, ge=1, unit="processes")
    """The number of worker processes that judge; null means one per core, at most 8."""
    verifier_timeout_s: float = number(2.0, ge=0.05, le=600, unit="seconds")
    """Time limit of one verdict; a response that takes longer is invalid."""
    verifier_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of a worker process."""
    max_response_tokens: int = number(512, ge=1, unit="tokens")
    """Length limit of a response, if rollout.max_response_tokens sets none."""

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        if "{problem}" not in self.template:
            raise ConfigError(f"task.template must hold {{problem}}, where the problem goes, got {self.template!r}.")


class Gym:
    """A task on a data set of reasoning-gym; close it when done. `notes` counts gold answers refused by the scorer."""

    def __init__(self, dataset: str, options: GymOptions) -> None:
        o = self.options = options
        self.name = PREFIX + dataset
        self.max_response_tokens = o.max_response_tokens
        items = make_dataset(**_arguments(dataset, o))
        self.heldout = Items(items, range(o.size, o.size + o.heldout), self.name, o)
        self.train = Items(items, range(o.size), self.name, o, avoid=frozenset(map(_question, self.heldout)))
        self.pool = gym_pool(dataset, o, o.verifier_workers)
        try:
            self.notes = self._test_scorer()
        except BaseException:
            self.close()
            raise

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if the scorer gives the last marked answer the full score; see `scored_verdict`."""
        return self.verify_all([(prompt, response)])[0]

    def verify_all(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdicts in order, judged by all workers in parallel."""
        return self.pool.judge(items, on_progress)

    def final_answer(self, response: str) -> str | None:
        """The last marked answer, for the votes of maj@k."""
        answer = gym_answer(response)
        return " ".join(answer.split()) or None if answer else None

    def close(self) -> None:
        """End the verifier's processes."""
        self.pool.close()

    def _test_scorer(self) -> list[str]:
        """A note if the scorer refuses some gold answers; DataError if it cannot judge one of them."""
        prompts = [self.heldout[i] for i in range(min(NUM_TESTED, len(self.heldout)))]
        verdicts = self.verify_all([(p, f"<answer>{p.answer['answer']}</answer>") for p in prompts])
        if broken := [v for v in verdicts if not v.valid]:
            raise DataError(
                f"{self.name}: its scorer fails on {len(broken)} of {counted(len(verdicts), 'item')}: "
                f"{broken[0].reason}"
            )
        refused = sum(not verdict.right for verdict in verdicts)
        if refused:
            return [f"{self.name}: its scorer refuses {refused} of {len(prompts)} of its own answers"]
        return []


def gym_pool(dataset: str, options: GymOptions, workers: int | None) -> VerifierPool:
    """The data set's scorer in worker processes."""
    limits = Limits(options.verifier_timeout_s, options.verifier_memory_mb)
    return VerifierPool("reasoning-gym", _arguments(dataset, options), workers=workers, limits=limits)


def _arguments(dataset: str, options: GymOptions) -> dict[str, Any]:
    o = options
    return {"dataset": dataset, "size": o.size + o.heldout, "seed": o.seed, "config": dict(o.config)}


class Items(Sequence[Prompt]):
    """The items of a data set as prompts, made when they are read. Skips the questions in `avoid`."""

    def __init__(
        self, dataset: Any, indices: range, name: str, options: GymOptions, avoid: frozenset[str] = frozenset()
    ) -> None:
        self._dataset, self._indices, self._name, self._options, self._avoid = dataset, indices, name, options, avoid

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Prompt:  # type: ignore[override]
        for step in range(min(len(self), 1000)):
            at = self._indices[(range(len(self))[index] + step) % len(self)]
            item = self._dataset[at]
            question = self._options.template.replace("{problem}", str(item["question"]))
            if question not in self._avoid:
                system = [{"role": "system", "content": self._options.system}] if self._options.system else []
                answer = {"index": at, "answer": str(item["answer"])}
                return Prompt(f"{self._name}/{at}", (*system, {"role": "user", "content": question}), answer)
        raise DataError(
            f"{self._name} has too few different questions with this config: 1,000 in a row are also held out. "
            "Lower task.heldout, or give task.config a larger range of questions."
        )


def make_dataset(dataset: str, size: int, seed: int, config: Mapping[str, Any]) -> Any:
    """The data set of reasoning-gym; ConfigError for an unknown name or an invalid config."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(NO_GYM) from error
    if dataset == COMPOSITE:
        raise ConfigError(
            "reasoning-gym's composite needs Python objects, which YAML cannot hold. Choose one of its data sets."
        )
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, list(DATASETS), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"reasoning-gym has no data set {dataset!r}; {hint}`vapo tasks` lists all {len(dataset_names())}."
        )
    if taken := sorted({"size", "seed"} & set(config)):
        raise ConfigError(f"task.config sets {taken[0]!r}, which has an option of its own: task.{taken[0]}.")
    known = {f.name for f in fields(DATASETS[dataset][1])} - {"size", "seed"}
    if unknown := sorted(set(config) - known):
        raise ConfigError(
            f"task.config: {dataset} has no setting {unknown[0]!r}. There are: {', '.join(sorted(known))}."
        )
    try:
        return reasoning_gym.create_dataset(dataset, **{**config, "size": size, "seed": seed})
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"task.config: {dataset} refuses these settings: {error}") from error


def make_verifier(dataset: str, size: int, seed: int, config: Mapping[str, Any]) -> Verifier:
    """The scorer of the data set as a verifier. Call it in a worker process only: scorers evaluate their input."""
    items = make_dataset(dataset, size, seed, config)

    def verify(prompt: Prompt, response: str, /) -> Verdict:
        answer = gym_answer(response)
        if answer is None:
            return Verdict("wrong", "no marked answer", "no_answer")
        item = items[prompt.answer["index"]]
        if str(item["answer"]) != prompt.answer["answer"]:
            return Verdict("invalid", "this prompt is not of this data set: check task.seed, task.size and task.config")
        return scored_verdict(items, item, answer)

    return verify


def scored_verdict(scorer: Any, item: Mapping[str, Any], answer: str) -> Verdict:
    """The verdict on an answer; `scorer.score_answer(answer, item)` returns 1 for a right answer."""
    gold = str(item["answer"])
    try:
        score = float(scorer.score_answer(answer, item))
    except Exception as error:
        # some scorers raise on unreadable answers; if the gold answer gets the full score, the answer is wrong
        if _score(scorer, gold, item) >= FULL:
            return Verdict("wrong", f"unreadable for the scorer: {type(error).__name__}", "unreadable")
        return Verdict("invalid", f"the scorer raised {type(error).__name__}: {error}")
    if not score >= FULL:  # nan, too
        return Verdict("wrong", f"score {score:.2g}", "wrong_answer", score if math.isfinite(score) else None)
    if _score(scorer, NO_ANSWER, item) >= FULL and answer.strip().casefold() != gold.strip().casefold():
        return Verdict("wrong", "not the gold answer, and the scorer accepts anything here", "wrong_answer")
    return Verdict("right")


def gym_answer(response: str) -> str | None:
    """The text in the last `<answer>` tags, else the answer at any other mark; None if there is none."""
    start, end = response.rfind("<answer>"), response.rfind("</answer>")
    if 0 <= start < end:
        return response[start + len("<answer>") : end].strip()
    return last_answer(response)


def dataset_names() -> list[str]:
    """The names of all tasks of reasoning-gym, empty if it is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return [PREFIX + name for name in sorted(DATASETS) if name != COMPOSITE]


def _question(prompt: Prompt) -> str:
    """The text of the last message."""
    assert not isinstance(prompt.text, str)
    return prompt.text[-1]["content"]


def _score(scorer: Any, answer: str, item: Mapping[str, Any]) -> float:
    """The score of a test answer, 0 if the scorer cannot read it."""
    try:
        return float(scorer.score_answer(answer, item))
    except Exception:  # some scorers raise on unreadable answers: prime_factorization on words
        return 0.0
