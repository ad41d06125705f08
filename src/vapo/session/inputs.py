"""The inputs of a run, read before weights load: task, tokenizer, prompts, checked against each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vapo.algo.head_ranges import target_range, with_range
from vapo.algo.method import Gae
from vapo.bases.shipped import builtin_model
from vapo.errors import ConfigError, DataError, command, counted
from vapo.models.dialogue import UNTOLD_TOOLS, Dialogue
from vapo.models.gguf import cache_folder
from vapo.models.loading import SIDE_ADVICE, critic_config, side_critic_config
from vapo.models.lora import adapter_base
from vapo.models.model_source import is_gguf
from vapo.models.pretrained import count_parameters, load_config, skeleton
from vapo.models.side import check_readable, holds_side_critic, side_config
from vapo.models.tokens import load_tokenizer, read_tokenizer, render, stop_token_ids, with_privileged
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.rollout.turns import TurnRules
from vapo.session.config import Config
from vapo.session.layers import Origin, Source
from vapo.session.path_checks import TASK_FILES
from vapo.session.rendered_prompts import RenderedPrompts
from vapo.session.sampling_room import SamplingRoom, sampling_room
from vapo.session.schema import TaskConfig
from vapo.session.turn_taking import refuse_bootstrap, turn_rules
from vapo.tasks.catalog import check_task, find_task
from vapo.tasks.full_task import FullTask, do_nothing, part_of
from vapo.tasks.verifiers.functions import file_of_module, refuse_while_importing
from vapo.trainer.observer import Observer
from vapo.types import Decoding, Progress, Prompt, Task


@dataclass(frozen=True)
class Inputs:
    """Task, tokenizer, prompts, where the weights are, limits."""

    task: FullTask
    tokenizer: PreTrainedTokenizerBase
    policy_source: str
    critic_source: str
    """Empty for a side critic with new weights."""
    train_prompts: RenderedPrompts
    """The held-out ones again where nothing is to be trained."""
    heldout_prompts: RenderedPrompts
    decoding: Decoding
    parameters: int
    """Of the policy."""
    turns: TurnRules | None = None
    """How episodes of several turns are played; None where the task has no environment."""
    notes: tuple[str, ...] = ()
    """What the user should know of the models, the response limit, and how prompts are rendered."""
    task_by_name: bool = True
    """Whether the task was made from its name and options, so that another process can make it, too."""


def read_inputs(
    config: Config,
    task: Task | None = None,
    saved: Path | None = None,
    *,
    to_train: bool = True,
    on_progress: Progress | None = None,
) -> Inputs:
    """Task, tokenizer and prompts, checked against each other; raises ConfigError, DataError, ModelError.

    A `task` object given here takes the place of the one the configuration names; networks come from the
    checkpoint `saved` if there is one, so that a run can go on without the models it started from. Without
    `to_train` no training prompts are needed. The task may hold processes: call `close_task` in the end.
    """
    refuse_while_importing("a run or an evaluation")
    sections = config.sections
    made = task is None
    graded = config.algorithm.reward.by == "score"
    task = task or find_task(sections.task.name, sections.task.options, on_progress, to_train=to_train, graded=graded)
    try:
        full = check_task(task, ("train", "heldout") if to_train else ("heldout",))
        return replace(_checked(config, full, saved, to_train, on_progress), task_by_name=made)
    except BaseException:
        if made:
            close_task(task)
        raise


def with_whole_paths(config: Config, *, task_too: bool = True) -> Config:
    """The configuration with its files by their whole paths, so that a run resumes from any folder.

    Without `task_too` those of the task stay, as its name is no file where the task is an object.
    """
    model, rollout = config.sections.model, config.sections.rollout
    if isinstance(rollout.engine, VllmEngineSettings):
        rollout = replace(rollout, engine=replace(rollout.engine, python=_whole_program(rollout.engine.python)))
    model = replace(model, policy=_whole(model.policy), critic=model.critic and _whole(model.critic))
    task = _with_whole_files(config.sections.task) if task_too else config.sections.task
    sections = config.sections.model_copy(update={"task": task, "model": model, "rollout": rollout})
    return replace(config, sections=sections)


def _with_whole_files(task: TaskConfig) -> TaskConfig:
    options = {
        key: _whole(value) if key in TASK_FILES and value and isinstance(value, str) else value
        for key, value in task.options.items()
    }
    name = _whole(task.name) if ":" in task.name else task.name
    return TaskConfig.model_validate({"name": name, **options})


def _whole_program(python: str | None) -> str | None:
    """A program's whole path; its name alone is looked up on PATH. Links stay: that of a virtual environment is it."""
    return str(Path(python).absolute()) if python is not None and "/" in python else python


def _whole(value: Any) -> Any:
    """A path, `path.py:function`, or `module:function` of a module in this folder, made absolute if it is there.

    A hub id or a name stays as it is.
    """
    if not isinstance(value, str):
        return value  # of a wrong type; the task reports it when it reads its options
    name, colon, function = value.rpartition(":")
    if file := file_of_module(name, Path.cwd()):
        return f"{file}:{function}"
    path, rest = (name, colon + function) if name.endswith(".py") else (value, "")
    return str(Path(path).resolve()) + rest if value != "builtin" and Path(path).exists() else value


def close_task(task: Task | FullTask) -> None:
    """End the task's processes. An error there becomes a warning, so that it does not hide an earlier error."""
    try:
        part_of(task, "close", do_nothing)()
    except Exception as error:
        warnings.warn(f"close of the task raised {type(error).__name__}: {error}", stacklevel=2)


def _checked(
    config: Config, task: FullTask, saved: Path | None, to_train: bool, on_progress: Progress | None
) -> Inputs:
    sections = config.sections
    if to_train:
        refuse_bootstrap(task, config.algorithm)
    trust = sections.model.trust_remote_code
    model, first = sections.model, model_source(sections.model.policy, task)
    # adapters go on from the weights they were put on, everything else from the checkpoint
    source = str(saved / "policy") if saved and not model.policy_lora else first
    side = model.critic_kind == "side"
    start = model.critic or ("" if side else first)
    critic_source = str(saved / "critic") if saved and not model.critic_lora else start
    if to_train and saved is None:
        _refuse_stacked("policy", source, model.policy_lora)
        if isinstance(config.algorithm.credit, Gae):
            _refuse_stacked("critic", critic_source, model.critic_lora)
    if on_progress and is_gguf(source) and Path(source).exists() and not cache_folder(Path(source)).exists():
        on_progress(f"converting {Path(source).name}, once", 0, 1)
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    model_config = load_config(source, trust_remote_code=trust)
    notes: list[str] = []
    has_critic = isinstance(config.algorithm.credit, Gae)
    if has_critic and side:
        _check_side(model_config, model.side_layers)
    elif has_critic and to_train and holds_side_critic(critic_source):
        raise ConfigError(f"{critic_source} holds a side critic. {SIDE_ADVICE}")
    elif has_critic and critic_source != source and not holds_side_critic(critic_source):
        notes = check_vocabularies(source, critic_source, tokenizer, trust_remote_code=trust)
    if to_train and critic_source not in ("", source):
        _check_given_critic(config, critic_source, model_config)
    credit = config.algorithm.credit
    privileged = credit.privileged if isinstance(credit, Gae) else None
    rendered: dict[str, RenderedPrompts] = {}
    wanted = {"train": task.train, "heldout": task.heldout} if to_train else {"heldout": task.heldout}
    for name, prompts in wanted.items():
        if len(prompts) == 0:
            raise DataError(
                f"Task {task.name} has no {name} prompts with these options. Loosen the task's options"
                + (", or give it data: --set task.data=FILE." if task.drops is not None else ".")
            )
        rendered[name] = RenderedPrompts(
            prompts, partial(_rendered, tokenizer, form=model.prompt_format, privileged=privileged, tools=task.tools)
        )
        rendered[name][0]  # a template that refuses prompts does so before weights load
    limit = sections.rollout.max_response_tokens or task.max_response_tokens
    if (room := sampling_room(model_config, sections.rollout.engine)) is not None:
        limit, about_limit = _limit_within(room, limit, config, task, rendered, may_lower=not to_train)
        notes += about_limit
        for prompts in rendered.values():
            prompts.limit(
                room.tokens - limit,
                f"{room.name} is {counted(room.tokens, 'token')}, {limit} of them for the response. Shorten the "
                f"prompts, or {room.advice}.",
            )
    stops = stop_token_ids(tokenizer, source, model_config)
    turns = None
    if task.environment is not None:
        dialogue = Dialogue(tokenizer, stops, model.prompt_format, task.tools)
        for prompts in rendered.values():
            dialogue.check(prompts[0])
        if not dialogue.tells_tools(rendered["heldout"][0]):
            notes.append(UNTOLD_TOOLS)
        turns = turn_rules(task, dialogue, room and room.tokens)
    heldout = rendered["heldout"]
    origin = config.origins.get("evaluation.prompts", Origin())
    if sections.evaluation.prompts > len(heldout) and origin.source is Source.OPTION:
        raise ConfigError(
            f"evaluation.prompts={sections.evaluation.prompts} ({origin.place}) exceeds the "
            f"{counted(len(heldout), 'held-out prompt')} of task {task.name}. Lower it, or make the task hold out more."
        )
    return Inputs(
        task=task,
        tokenizer=tokenizer,
        policy_source=source,
        critic_source=critic_source,
        train_prompts=rendered.get("train", heldout),
        heldout_prompts=heldout,
        decoding=Decoding(limit, stops, sections.rollout.temperature),
        turns=turns,
        parameters=count_parameters(model_config),
        notes=(*notes, *(_plainly_rendered(heldout, tokenizer) if model.prompt_format == "auto" else ())),
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    form: Literal["auto", "chat", "plain"],
    privileged: str | None,
    tools: Sequence[Mapping[str, Any]],
) -> Prompt:
    """The prompt as tokens, with what the critic alone may read."""
    prompt = render(tokenizer, prompt, form, tools)
    return prompt if privileged is None else with_privileged(tokenizer, prompt, privileged)


def _check_side(policy: PreTrainedConfig, layers: int | None) -> None:
    """Raise ConfigError or ModelError unless a side critic can read so many layers of the policy."""
    side_config(policy, 0, layers=layers)
    if (model := skeleton(policy)) is not None:
        check_readable(model)


def _refuse_stacked(network: str, source: str, rank: int) -> None:
    """Raise ConfigError for adapters of this rank on a folder of adapters: the model below them would be in no folder,
    and theirs could be loaded by nobody."""
    if rank and adapter_base(source):
        raise ConfigError(
            f"{source} holds adapters, and model.{network}_lora={rank} puts others on the model that they make. Merge "
            f"them first: {command('export', source, '--dtype', 'float32', '--out', 'FOLDER')}, then set "
            f"model.{network}=FOLDER."
        )


def _check_given_critic(config: Config, source: str, policy: PreTrainedConfig) -> None:
    """Raise ModelError for a critic whose configuration cannot be read, has another head, or does not fit."""
    credit, model = config.algorithm.credit, config.sections.model
    if not isinstance(credit, Gae):
        return
    head = with_range(credit.head, *target_range(config.algorithm))
    if model.critic_kind == "side":
        side_critic_config(source, skeleton(policy), head, trust_remote_code=model.trust_remote_code)
    else:
        critic_config(source, head, trust_remote_code=model.trust_remote_code)


def _limit_within(
    room: SamplingRoom,
    limit: int,
    config: Config,
    task: FullTask,
    rendered: Mapping[str, RenderedPrompts],
    *,
    may_lower: bool,
) -> tuple[int, list[str]]:
    """(response limit, notes): the limit for which there is room beside the prompts.

    With `may_lower`, a limit that nobody chose is lowered, with a note. Raises ConfigError for a limit that was chosen,
    and in training, where the limit is part of what is learned. Prompts that alone fill the context keep the limit.
    """
    fitting = [prompts.fitting_limit(limit, room.tokens) for prompts in rendered.values()]
    lower = min((found for found in fitting if found is not None), default=limit)
    if lower == limit or lower < 1:
        return limit, []
    origin = config.origins.get("rollout.max_response_tokens", Origin())
    chosen = config.sections.rollout.max_response_tokens is not None
    if may_lower and not chosen:
        return lower, [
            f"responses are limited to {counted(lower, 'token')}: with the {limit} of the task {task.name} they would "
            f"exceed {room.name} of {room.tokens}"
        ]
    name = (
        f"rollout.max_response_tokens={limit} ({origin.place})"
        if chosen
        else f"the response limit of the task {task.name}, {counted(limit, 'token')}"
    )
    raise ConfigError(
        f"With {name}, prompts of up to {counted(room.tokens - lower, 'token')} and their responses exceed "
        f"{room.name} of {room.tokens}. Set rollout.max_response_tokens to {lower} or less."
    )


def _plainly_rendered(prompts: RenderedPrompts, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """A note where the prompts are messages and the tokenizer cannot render them as a chat."""
    if isinstance(prompts[0].text, str) or tokenizer.chat_template is not None:
        return ()
    return (
        "the tokenizer has no chat template: messages become plain text (Problem: ... Solution:), which suits base "
        "models. model.prompt_format=plain does the same without this note",
    )


def report_notes(inputs: Inputs, observer: Observer) -> None:
    """Report the notes on task, models and prompts, and how many prompts were left out."""
    for note in (*inputs.task.notes, *inputs.notes):
        observer.note(note)
    if inputs.train_prompts is not inputs.heldout_prompts and len(inputs.train_prompts) == 1:
        observer.alarm(
            f"{inputs.task.name} has one problem to train on: the policy will learn its answer and nothing else. "
            "Give it more."
        )
    for name, prompts in (("training", inputs.train_prompts), ("held-out", inputs.heldout_prompts)):
        if prompts.too_long:
            observer.note(f"left out as too long: {counted(prompts.too_long, f'{name} prompt')}")


def model_source(policy: str, task: FullTask) -> str:
    """Where the policy's weights are: the base model shipped for the task, or the source that was named."""
    return str(builtin_model(task.name, task.options)) if policy == "builtin" else policy


TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


def check_vocabularies(
    policy: str, critic: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> list[str]:
    """Notes on how the vocabularies differ; ConfigError if the critic would read other tokens than the policy writes.

    The same id must be the same token. Sizes may differ: vocabularies are padded, and one may have tokens that the
    other lacks. A critic without a tokenizer must have the policy's size.
    """
    own = _tokenizer_of(critic, trust_remote_code)
    if own is None:
        sizes = [
            load_config(m, trust_remote_code=trust_remote_code).get_text_config().vocab_size for m in (policy, critic)
        ]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"The critic {critic} has no tokenizer to compare, and a vocabulary of {sizes[1]} where the policy has "
                f"{sizes[0]}: so the same ids may be other tokens. Put the critic's tokenizer into its folder."
            )
        return [f"the critic {critic} has no tokenizer; the policy's is used, since both have {sizes[0]} ids"]
    ours, its = tokenizer.get_vocab(), own.get_vocab()
    named = {number: token for token, number in its.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if (there := its.get(token, number)) != number or named.get(number, token) != token:
            raise ConfigError(
                f"The critic {critic} has another tokenizer than the policy {policy}: id {number} is {token!r} for the "
                f"policy, and for the critic {named.get(number, 'no token')!r}"
                + (f" ({token!r} is {there} there)" if token in its else "")
                + ". Take a critic with the same tokenizer."
            )
    missing = [token for token in ours if token not in its]
    if not missing:
        return []
    lacking = f"{len(missing)} of the policy's tokens, such as {min(missing)!r}"
    return [f"the vocabulary of the critic {critic} lacks {lacking}"]


def _tokenizer_of(source: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model; None if there is none."""
    folder = Path(adapter_base(source) or source)
    if folder.is_dir() and not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        return None
    return read_tokenizer(source, trust_remote_code=trust_remote_code)
