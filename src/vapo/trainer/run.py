"""A run: the method, the networks, the engine, the task and the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from vapo.algo.method import Algorithm
from vapo.durability.watch import Watch
from vapo.errors import AbandonedError
from vapo.metrics import EventName
from vapo.models.tokens import response_text
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.turns import TurnRules
from vapo.tasks.full_task import FullTask
from vapo.trainer.batch import Batch
from vapo.trainer.clock import Clock
from vapo.trainer.network import Network
from vapo.trainer.observer import Observer
from vapo.trainer.profiler import Profiler
from vapo.trainer.record import RunFolder
from vapo.trainer.rollouts import PretrainingSource, RolloutSource
from vapo.trainer.settings import CheckpointSettings, EvaluationSettings, GuardSettings, TrainerSettings
from vapo.trainer.spans import Spans
from vapo.trainer.state import State
from vapo.types import Decoding, Episode, Progress, PromptSet


@dataclass
class Run:
    """The objects that the loop uses. Only `state`, the weights and the optimizers change from step to step."""

    config: dict[str, Any]
    """All settings as plain data; saved with every checkpoint, so that a resume can compare them."""
    seed: int
    algorithm: Algorithm
    settings: TrainerSettings
    guards: GuardSettings
    saving: CheckpointSettings
    evaluation: EvaluationSettings
    decoding: Decoding
    task: FullTask
    turns: TurnRules | None
    """How episodes of several turns are played; None where an episode is one turn."""
    train_prompts: PromptSet
    heldout_prompts: PromptSet
    tokenizer: PreTrainedTokenizerBase
    policy: Network
    critic: Network | None
    reference: Network | None
    engine: RolloutEngine
    evaluate: Callable[[int, Progress], dict[str, Any]]
    """Held-out evaluation of the engine's policy with k samples a prompt: what goes into evaluations.jsonl."""
    observer: Observer
    folder: RunFolder = field(init=False)
    """Where everything is written; set once the networks have loaded."""
    source: RolloutSource = field(init=False)
    """Where the responses of joint training come from."""
    pretraining_source: PretrainingSource = field(init=False)
    """Where the responses of value pretraining come from."""
    state: State = field(default_factory=State)
    watch: Watch = field(default_factory=Watch)
    """Receives a beat at least once per piece of work."""
    spans: Spans = field(default_factory=Spans)
    """Where its time goes; the networks count their work here, too."""
    matrix_rate: float = float("nan")
    """Floating-point operations per second of a matrix product on this machine, in the model's precision."""
    profiler: Profiler = field(default_factory=Profiler)
    """Looks at some of the steps, under `vapo train --profile`."""
    stop_requested: bool = False
    """Set by a signal handler: the run drops what it is sampling, saves and stops."""
    closing: list[Callable[[], None]] = field(default_factory=list)
    """Called in order when the run ends, after the engine was closed: they end other processes."""
    feature_bytes: int = 0
    """Value pretraining keeps so many bytes of the policy's hidden states for a side critic."""
    on_step: list[Callable[[], None]] = field(default_factory=list)
    """Called before each joint step."""
    on_save: list[Callable[[], None]] = field(default_factory=list)
    """Called after each checkpoint is written."""
    on_end: list[Callable[[bool], None]] = field(default_factory=list)
    """Called when the run ends, with whether it failed."""
    failed_saves: int = 0
    """Saves in a row that the disk refused."""

    @property
    def learners(self) -> list[Network]:
        """The networks that learn, in this order: the critic (where there is one), then the policy."""
        return [network for network in (self.critic, self.policy) if network is not None]

    @property
    def networks(self) -> list[Network]:
        """All networks whose weights belong to the run's state."""
        return [*self.learners, *([] if self.reference is None else [self.reference])]

    def hand_over(self) -> None:
        """Give the policy's weights to the rollout engine, as the version of the present step."""
        self.source.settle()
        self.engine.load_weights(self.policy.weights(), version=self.state.step)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Response text, as a verifier is given it."""
        return response_text(self.tokenizer, token_ids, self.decoding.stop_token_ids)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the text it adds, spaces included, special tokens by their names."""
        pairs = zip([None, *token_ids], token_ids, strict=False)
        return [self._added_text(before, token) for before, token in pairs]

    def _added_text(self, before: int | None, token: int) -> str:
        # decoding a token alone loses the space before it; with its neighbour it keeps it
        if before is None:
            return str(self.tokenizer.decode([token]))
        return str(self.tokenizer.decode([before, token])).removeprefix(str(self.tokenizer.decode([before])))

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Report progress of sampling, judging or evaluation; raises AbandonedError if the run is to stop."""
        self.watch.beat(what)
        self.spans.tick()
        self.observer.progress(what, done, total)
        if self.stop_requested:
            raise AbandonedError

    def clock(self) -> Clock:
        """A clock for one step; each part that it times also beats the watch."""
        return Clock(self.watch.beat, self.spans)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write a step's line to metrics.jsonl and show it."""
        with self.spans.time("log"):
            self.folder.metrics(metrics)
            self.observer.step(metrics)

    def alarm(self, message: str, **details: Any) -> None:
        """Write a warning to events.jsonl and show it to the user."""
        self.folder.event(EventName.ALARM, message=message, **details)
        self.observer.alarm(message)

    def save_rollouts(self, name: str, episodes: Sequence[Episode], batch: Batch) -> None:
        """Write responses, those in full token by token; on a disk that refuses, raise an alarm and go on."""
        try:
            with self.spans.time("log"):
                self.folder.rollouts(
                    name,
                    episodes,
                    batch,
                    self.token_texts,
                    in_full=self.settings.save_rollouts_in_full,
                    final_answer=self.task.final_answer,
                )
        except OSError as error:
            self.alarm(f"Rollouts of {name} were not written: {error}. Free space on the disk of {self.folder.path}.")

    def keep_skipped(self, name: str, batches: Sequence[Batch]) -> None:
        """Write minibatches of skipped gradient steps; on a disk that refuses, raise an alarm and go on."""
        try:
            self.folder.keep_skipped(name, batches)
        except (OSError, SafetensorError) as error:
            self.alarm(
                f"The skipped minibatches of {name} were not written: {error}. Free space on the disk of "
                f"{self.folder.path}."
            )
