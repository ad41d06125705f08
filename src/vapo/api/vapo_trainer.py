"""`VAPOTrainer`: training with the constructor of TRL's `GRPOTrainer`, on objects that are in memory."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from vapo.api.callbacks import CallbackObserver, evaluation_metrics, usable_callback
from vapo.api.trainer_arguments import (
    RewardLike,
    adapters,
    named_reward,
    players,
    refuse,
    reward_functions,
    tokenizer_of,
)
from vapo.api.trainer_config import VAPOConfig, in_arguments
from vapo.api.uploading import upload_policy
from vapo.durability import checkpoint
from vapo.errors import ConfigError, ModelError, StoppedError, VapoError
from vapo.models.loading import load_policy
from vapo.models.saving import save_model
from vapo.reports.live import LiveView
from vapo.reports.runfiles import read_jsonl
from vapo.session import lifecycle
from vapo.session.config import Config, resolve
from vapo.session.evaluated_run import find_model, is_run
from vapo.session.evaluation import evaluate_model
from vapo.session.layers import Layer, Source, file_layer, merge
from vapo.session.run_dirs import check_folder
from vapo.session.signals import carry_out
from vapo.session.whole_folders import whole_folder
from vapo.tasks.records import RecordsTask, Row
from vapo.tasks.verifiers.rewards import Rewards
from vapo.trainer.run import Run

if TYPE_CHECKING:
    from peft import PeftConfig

START, START_MARK = "start", "vapo_start.txt"
"""OUTPUT_DIR-start keeps a model that was given as an object: the run resumes from it. The file marks it as ours."""


class AskedToStopError(VapoError):
    """A callback set `control.should_training_stop`: the run has saved and stopped."""


class VAPOTrainer:
    """Reinforcement learning with a critic, with the arguments of TRL 1.16's `GRPOTrainer`.

    `model` is a hub id, a folder or a causal language model. `reward_funcs` are one or several of: a function with
    TRL's signature (see `Rewards`), the id or folder of a reward model, a module that returns logits (then with
    `reward_processing_classes`, else the tokenizer beside its weights, else the policy's). `args` is a `VAPOConfig`.
    `train_dataset` and `eval_dataset` are `datasets.Dataset`s or lists of dicts with a `prompt` (a text or messages)
    and any columns for the reward functions. `processing_class` is the tokenizer; None takes the model's. `callbacks`
    are transformers'. `peft_config` is a LoraConfig of which `r` and `lora_alpha` are taken.

    `tools` are functions that the model may call, `environment_factory` makes an object whose `reset(**row)` begins an
    episode and whose public methods are tools (docs/environments.md). A class with `step(response)` is an environment
    of ours. They run in processes of their own, if they can be imported, each call within `args.tool_timeout_s`.

    Reward functions run in this process, without limits of time and memory: to judge untrusted text by programs, name
    the function in `task.verifier` of a settings file instead.

    Raises ConfigError, DataError and ModelError before weights load.
    """

    def __init__(
        self,
        model: str | PathLike[str] | PreTrainedModel,
        reward_funcs: RewardLike | Sequence[RewardLike] | None = None,
        args: VAPOConfig | None = None,
        train_dataset: Iterable[Row] | None = None,
        eval_dataset: Iterable[Row] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        refuse(
            optimizers=any(part is not None for part in optimizers),
            quantization_config=quantization_config is not None,
            rollout_func=rollout_func is not None,
            environment_factory=isinstance(environment_factory, Mapping),
        )
        told = [usable_callback(callback) for callback in callbacks or ()]
        self.args = args or VAPOConfig()
        if not isinstance(self.args, VAPOConfig):
            raise ConfigError(f"args is a {type(self.args).__name__}. Give a VAPOConfig: it takes the same arguments.")
        if train_dataset is None:
            raise ConfigError("VAPOTrainer needs a train_dataset: rows with a prompt.")
        if isinstance(model, PathLike):
            model = str(model)
        if not isinstance(model, str | PreTrainedModel):
            raise ConfigError(
                f"model is a {type(model).__name__}. Give a hub id, a folder, or a causal language model."
            )
        self.output_dir = Path(self.args.output_dir).absolute()
        self._trusts = self.args.trusts_remote_code
        self.processing_class = processing_class or tokenizer_of(model, self._trusts)
        functions, notes = reward_functions(
            reward_funcs or [], reward_processing_classes, self.processing_class, trust_remote_code=self._trusts
        )
        weights = self.args.reward_weights
        self._players = players(environment_factory, tools, self.args)
        if self._players is not None and self._players.server.rewards:
            functions.append(named_reward(environment_factory))
            weights = None if weights is None else [*weights, 1.0]
        if not functions:
            raise ConfigError("reward_funcs is empty. Give a reward function, or an environment with get_reward().")
        rewards = Rewards(functions, weights, right_at=self.args.right_at)
        self.task = self._task(train_dataset, eval_dataset, rewards)
        self.task.notes += notes
        self._given = model
        self._asked = False
        settings = self.args.as_settings(len(self.task.train))
        self._source = model if isinstance(model, str) and processing_class is None else ""
        extra = {"model": {"policy": self._source or str(self._start), **adapters(peft_config)}}
        layers = [file_layer("VAPOConfig", settings), file_layer("VAPOTrainer", extra)]
        layers.append(file_layer("VAPOConfig(settings=...)", self.args.settings))
        with _named_by_arguments():
            self._config = resolve(layers)
        self._settings = _resumable(layers)
        steps = self._config.sections.trainer.steps
        self._observer = CallbackObserver(told, self.args, steps, processing_class=self.processing_class)
        self._model: PreTrainedModel | None = None

    @property
    def _start(self) -> Path:
        return self.output_dir.with_name(f"{self.output_dir.name}-{START}")

    @property
    def config(self) -> Config:
        """All settings of the run."""
        return lifecycle.with_task(self._config, self.task)

    @property
    def state(self) -> Any:
        """transformers' TrainerState: `global_step` counts rollout steps, `log_history` has a dict for each log."""
        return self._observer.state

    @property
    def log_history(self) -> list[dict[str, Any]]:
        """What was logged: the metrics of every step, and `eval_*` of every evaluation."""
        return self.state.log_history

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that was not written to its end."""
        return read_jsonl(self.output_dir / "metrics.jsonl")

    @property
    def model(self) -> PreTrainedModel:
        """The trained policy: of policy/, or of the newest checkpoint; before training the model that was given."""
        if self._model is None:
            trained = self._trained()
            if trained is None and isinstance(self._given, PreTrainedModel):
                return self._given
            self._model = load_policy(trained or str(self._given), trust_remote_code=self._trusts)
        return self._model

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> dict[str, float]:
        """Train to the end, in `output_dir`; the metrics of the last step.

        `resume_from_checkpoint` True goes on from the newest checkpoint in `output_dir`, exactly; a path has to be that
        folder, or the newest checkpoint in it. In the main thread Ctrl-C and SIGTERM save and stop, and a stop that a
        callback asked for returns as if training had ended: its state is saved.

        Raises StoppedError after Ctrl-C or SIGTERM, DivergedError, VerifierBrokenError; ConfigError where a resume
        finds other rows or settings.
        """
        with LiveView() as self._observer.view:
            try:
                with _named_by_arguments():
                    carry_out(lambda: self._run(resume_from_checkpoint), self._finish)
            except AskedToStopError:
                pass
            finally:
                self._observer.end()
        self._model = None
        steps = [line for line in self.metrics if line.get("phase") == "train"]
        return {key: value for key, value in (steps[-1] if steps else {}).items() if isinstance(value, int | float)}

    def _finish(self, run: Run, on_new: Callable[[Run], None]) -> None:
        """Carry out the run; raises AskedToStopError where it ended because a callback asked for it."""
        self._observe(run)

        def took_over(new: Run) -> None:
            on_new(new)
            self._observe(new)

        again = partial(lifecycle.resume, self.output_dir, self._observer, self.task)
        try:
            lifecycle.finish_through(run, again, took_over, task=self.task)
        except StoppedError as error:
            if type(error) is StoppedError and self._asked:
                raise AskedToStopError(str(error)) from None
            raise

    def _observe(self, run: Run) -> None:
        """Tell callbacks of this run from now on, and let them stop it."""
        self._asked = False

        def stop() -> None:
            self._asked = run.stop_requested = True

        run.on_step.append(lambda: self._observer.step_begins(run.state.step))
        run.on_save.append(lambda: self._observer.tell("on_save"))
        self._observer.begin(run.state.step, getattr(run.policy, "model", None), stop)

    def _run(self, resume: bool | str | Path | None) -> Run:
        if not resume:
            if (self.output_dir / "config.yaml").exists():
                raise ConfigError(
                    f"output_dir={self.output_dir} holds a run already. Go on with it by "
                    "train(resume_from_checkpoint=True), or choose another folder."
                )
            check_folder(self.output_dir)
            self._try_rewards()
            self._keep_start()
            return lifecycle.begin(self.config, self.output_dir, self._observer, self.task)
        kept = checkpoint.names(self.output_dir / "checkpoints")
        allowed = [self.output_dir, *(self.output_dir / "checkpoints" / name for name in kept[:1])]
        if resume is not True and Path(resume).absolute() not in allowed:
            raise ConfigError(
                f"resume_from_checkpoint={resume}: a run goes on in its own folder from its newest checkpoint, here "
                f"{allowed[-1]}. Give True, or that one."
            )
        settings = Layer(Source.OPTION, "VAPOConfig", self._settings)
        return lifecycle.resume(self.output_dir, self._observer, self.task, changes=[settings])

    def _try_rewards(self) -> None:
        """Raise ConfigError if the reward functions fail on a made-up response: sampling the first ones takes long.

        Functions that may read an environment are not tried, because there is none yet.
        """
        if self._players is not None or self._config.sections.trainer.max_invalid_ratio == 1:
            return
        tokenizer = self.processing_class
        end = str(tokenizer.eos_token or "")
        if fault := self.task.trial(lambda text: tokenizer(text + end, add_special_tokens=False)["input_ids"]):
            raise ConfigError(
                f"The reward functions fail on a first trial: {fault}. Mend the function, or allow responses that it "
                "cannot judge: settings={'trainer': {'max_invalid_ratio': 1.0}}."
            )

    def _task(self, train: Iterable[Row], heldout: Iterable[Row] | None, rewards: Rewards) -> RecordsTask:
        iterations = self.args.max_tool_calling_iterations
        limit = self.args.max_completion_length
        turns = limit if iterations is None else iterations + 1  # the last one answers
        return RecordsTask(train, heldout, rewards, limit, self._players, turns)

    def _keep_start(self) -> None:
        """Write a model that was given as an object, or with another tokenizer, to where the run finds it again."""
        if self._source:
            return
        if self._start.exists() and not (self._start / START_MARK).exists():
            raise ConfigError(
                f"{self._start} is there and not ours; it would hold the model. Choose another output_dir."
            )
        given = (
            self._given
            if isinstance(self._given, PreTrainedModel)
            else load_policy(self._given, trust_remote_code=self._trusts)
        )
        temporary = self._start.with_name(f".{self._start.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_model(given, self.processing_class, temporary)
        (temporary / START_MARK).write_text("The model that a VAPOTrainer was given; its run resumes from here.\n")
        checkpoint.remove(self._start)
        temporary.rename(self._start)

    def evaluate(self, eval_dataset: Iterable[Row] | None = None) -> dict[str, float]:
        """avg@k and pass@k of the trained policy (before training: of the given model) on held-out rows: `eval_*`.

        `eval_dataset` None takes the trainer's own.
        """
        task = self.task
        if eval_dataset is not None:
            task = self._task(eval_dataset, eval_dataset, task.rewards)
        trained = self._trained()
        if trained is None:
            self._keep_start()
        config = lifecycle.with_task(self._config, task)
        model = replace(config.sections.model, policy=str(trained or config.sections.model.policy))
        config = dataclasses.replace(config, sections=config.sections.model_copy(update={"model": model}))
        with LiveView() as view:
            result = evaluate_model(config, None, view, task=task)
        metrics = evaluation_metrics(result.summary())
        self._observer.evaluated(metrics)
        return metrics

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Copy the trained policy, a Hugging Face folder, to `output_dir`; without one it lies in policy/ already."""
        policy = self._policy()
        if output_dir is not None:
            with whole_folder(policy, merged=True) as folder:
                shutil.copytree(folder, output_dir, dirs_exist_ok=True)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        repo_id: str | None = None,
        *,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **more: Any,
    ) -> str | Future[str]:
        """Upload the trained policy with its model card; the address of the commit, a future of it if not `blocking`.

        The repository is `repo_id`, args.hub_model_id, or the name of `output_dir` under your account. `more` are
        further arguments of `HfApi.upload_folder`. Those of transformers' and TRL's model cards are taken, too, and
        change nothing: the card is made of the run.
        """
        return upload_policy(
            self._policy(),
            repo_id or self.args.hub_model_id or self.output_dir.name,
            commit_message,
            blocking=blocking,
            token=token or self.args.hub_token,
            revision=revision,
            private=self.args.hub_private_repo if private is None else private,
            more=more,
        )

    def _policy(self) -> Path:
        """The folder of the trained policy. Raises ModelError if there is none."""
        if (trained := self._trained()) is None:
            raise ModelError(f"There is no trained policy in {self.output_dir} yet: call train() first.")
        return trained

    def _trained(self) -> Path | None:
        """The folder of the trained policy, or of the newest healthy checkpoint's where training was stopped."""
        if not is_run(self.output_dir):
            return None
        try:
            return Path(find_model(str(self.output_dir)).folder)
        except ConfigError:  # it was stopped before its first checkpoint
            return None


def _resumable(layers: Sequence[Layer]) -> dict[str, Any]:
    """The settings that a resume lays over the run's: all but those that name the method and the start."""
    whole: dict[str, Any] = {}
    for layer in layers:
        whole = merge(whole, layer.values)
    algorithm = {key: value for key, value in whole.get("algorithm", {}).items() if key not in ("preset", "without")}
    model = {key: value for key, value in whole.get("model", {}).items() if key not in ("policy", "critic")}
    return {**whole, "algorithm": algorithm, "model": model}


@contextmanager
def _named_by_arguments() -> Iterator[None]:
    """Let errors name the arguments of VAPOConfig in place of settings."""
    try:
        yield
    except VapoError as error:
        error.args = (in_arguments(str(error)), *error.args[1:])
        raise
