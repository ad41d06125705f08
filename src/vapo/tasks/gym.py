"""Every data set of reasoning-gym, by name: `reasoning-gym/countdown`. Its own scorer judges, in worker processes.

Scorers give partial scores, and some accept too much. A reward here is an outcome: only a full score counts as right,
and only where the scorer does not accept an answer without content.
"""

from __future__ import annotations

import difflib
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
"""Some scorers give nearly 1 for a long answer with one wrong letter."""
TRIED = 20
"""Items on which the scorer is tested at the start."""


@dataclass(frozen=True)
class GymOptions:
    """How many items, how hard they are, and how they are put."""

    size: int = number(10_000, ge=1, unit="items")
    """Items to train on."""
    heldout: int = number(200, ge=1, unit="items")
    """Items to evaluate on."""
    seed: int = 0
    """Seed of all items."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the data set itself, such as its difficulty; it gets them as they are."""
    template: str = INSTRUCTION
    """What the model is asked, with {problem} where the item's question goes."""
    system: str | None = None
    """The system message before the question."""
    verifier_workers: int | None = number(None, ge=1, unit="processes")
    """Processes that judge; null takes one per core, at most 8."""
    verifier_timeout_s: float = number(2.0, ge=0.05, le=600, unit="seconds")
    """Time limit of one verdict; a response that takes longer is invalid."""
    verifier_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of a process that judges."""
    max_response_tokens: int = number(512, ge=1, unit="tokens")
    """Length limit of a response, where rollout.max_response_tokens sets none."""

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        if "{problem}" not in self.template:
            raise ConfigError(f"task.template must hold {{problem}}, where the problem goes; got {self.template!r}.")


class Gym:
    """A task over one data set of reasoning-gym; close it when done. `notes` has the faults of the scorer."""

    def __init__(self, dataset: str, options: GymOptions) -> None:
        o = self.options = options
        self.name = PREFIX + dataset
        self.max_response_tokens = o.max_response_tokens
        recipe = {"dataset": dataset, "size": o.size + o.heldout, "seed": o.seed, "config": dict(o.config)}
        items = make_dataset(**recipe)
        self.heldout = Items(items, range(o.size, o.size + o.heldout), self.name, o)
        self.train = Items(items, range(o.size), self.name, o, avoid=frozenset(map(_question, self.heldout)))
        self.pool = VerifierPool(
            "reasoning-gym",
            recipe,
            workers=o.verifier_workers,
            limits=Limits(o.verifier_timeout_s, o.verifier_memory_mb),
        )
        try:
            self.notes = self._tried()
        except BaseException:
            self.close()
            raise

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Right if the item's scorer gives the last marked answer its full score."""
        return self.verify_all([(prompt, response)])[0]

    def verify_all(
        self, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """The verdicts, judged by all workers in parallel."""
        return self.pool.judge(items, on_progress)

    def final_answer(self, response: str) -> str | None:
        """The last marked answer, on which maj@k votes."""
        answer = gym_answer(response)
        return " ".join(answer.split()) or None if answer else None

    def close(self) -> None:
        """End the verifier's processes."""
        self.pool.close()

    def _tried(self) -> list[str]:
        """Notes on gold answers that the scorer refuses; DataError if it cannot judge."""
        prompts = [self.heldout[i] for i in range(min(TRIED, len(self.heldout)))]
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


class Items(Sequence[Prompt]):
    """Items of a data set as prompts, made lazily. Skips the questions in `avoid`."""

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
            "Lower task.heldout, or make the items more varied with task.config."
        )


def make_dataset(dataset: str, size: int, seed: int, config: Mapping[str, Any]) -> Any:
    """The reasoning-gym data set; ConfigError for a name or a config it does not take."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(NO_GYM) from error
    if dataset == COMPOSITE:
        raise ConfigError(
            "reasoning-gym's composite mixes other data sets by objects no YAML can hold. Take one of them."
        )
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, list(DATASETS), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"reasoning-gym has no data set {dataset!r}; {hint}`vapo tasks` lists all {len(dataset_names())}."
        )
    known = {f.name for f in fields(DATASETS[dataset][1])}
    if unknown := sorted(set(config) - known):
        raise ConfigError(
            f"task.config: {dataset} has no setting {unknown[0]!r}. There are: {', '.join(sorted(known))}."
        )
    try:
        return reasoning_gym.create_dataset(dataset, **{**config, "size": size, "seed": seed})
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"task.config: {dataset} refuses these settings: {error}") from error


def make_verifier(dataset: str, size: int, seed: int, config: Mapping[str, Any]) -> Verifier:
    """The data set's scorer as a verifier. Call it in a worker process only: scorers evaluate text they read."""
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
    """The verdict on an answer; `scorer` has `score_answer(answer, item)`, 1 for right."""
    gold = str(item["answer"])
    try:
        score = float(scorer.score_answer(answer, item))
    except Exception as error:
        # some scorers raise on unreadable answers; if the gold answer passes, the fault is the answer's
        if _score(scorer, gold, item) >= FULL:
            return Verdict("wrong", f"unreadable for the scorer: {type(error).__name__}", "unreadable")
        return Verdict("invalid", f"the scorer raised {type(error).__name__}: {error}")
    if score < FULL:
        return Verdict("wrong", f"score {score:.2g}", "wrong_answer")
    if _score(scorer, NO_ANSWER, item) >= FULL and answer.strip().casefold() != gold.strip().casefold():
        return Verdict("wrong", "not the gold answer, and the scorer accepts anything here", "wrong_answer")
    return Verdict("right")


def gym_answer(response: str) -> str | None:
    """The text in the last `<answer>` tags, else the last answer marked in any other way."""
    start, end = response.rfind("<answer>"), response.rfind("</answer>")
    if 0 <= start < end:
        return response[start + len("<answer>") : end].strip()
    return last_answer(response)


def dataset_names() -> list[str]:
    """Names of all tasks of reasoning-gym; none if it is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return [PREFIX + name for name in sorted(DATASETS) if name != COMPOSITE]


def _question(prompt: Prompt) -> str:
    assert not isinstance(prompt.text, str)
    return prompt.text[-1]["content"]


def _score(scorer: Any, answer: str, item: Mapping[str, Any]) -> float:
    """The score of a test answer, 0 if the scorer cannot read it."""
    try:
        return float(scorer.score_answer(answer, item))
    except Exception:  # scorers raise on answers they cannot read: prime_factorization on words
        return 0.0
