"""`vapo critic`: a critic against Monte-Carlo values of the policy it was trained beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vapo.algo.method import Algorithm, Gae, TurnStarts
from vapo.errors import ConfigError, ModelError, VerifierBrokenError, counted
from vapo.evals.continuations import Sampler, continue_prompts
from vapo.evals.judgement import CriticJudgement, judge, read_answers
from vapo.evals.kept_lines import KeptLines
from vapo.models.critic_notes import PRIVILEGED, RESIDUAL
from vapo.models.loading import load_policy
from vapo.models.networks import Critic
from vapo.models.placing import best_device, set_threads, to_device
from vapo.models.side import holds_side_critic
from vapo.models.tokens import response_text
from vapo.reports.critic_files import write_judgement
from vapo.reports.runfiles import Record
from vapo.rollout.engines import make_engine
from vapo.rollout.vllm_engine import LOG
from vapo.session.config import Config
from vapo.session.evaluated_run import EvaluatedModel, evaluation_config, find_model, run_of
from vapo.session.evaluation import TOKENS_AT_ONCE, about_samples
from vapo.session.inputs import Inputs, check_vocabularies, close_task, read_inputs, report_notes
from vapo.session.judge_options import FOLDER, PROMPTS, RESPONSES, JudgeOptions
from vapo.session.layers import Layer
from vapo.session.run_dirs import load_run_config
from vapo.session.sampling_room import sampling_room
from vapo.session.trained_critic import trained_critic
from vapo.session.turn_taking import who_judges
from vapo.trainer.observer import Observer
from vapo.types import Prompt

FORMAT = 1


@dataclass(frozen=True)
class JudgedModels:
    """A policy, the critic to judge beside it (None: there is none), and where the results go."""

    policy: EvaluatedModel
    critic: str | None
    config: Config
    algorithm: Algorithm
    """The method that the critic was trained under: it defines what a value means."""
    out: Path


def judged_models(
    model: str | None,
    policy: str | None,
    critic: str | None,
    task: str | None,
    settings: Mapping[str, Any],
    changes: Sequence[Layer] = (),
    out: Path | None = None,
) -> JudgedModels:
    """What is to be judged: a run's own policy and critic, or those named. Raises ConfigError if neither is."""
    if (model is None) == (policy is None):
        raise ConfigError("vapo critic takes a run directory, or --policy FOLDER in its place: give one of both.")
    found = find_model(str(model or policy))
    if model is not None and found.run is None:
        raise ConfigError(
            f"{model} is no run directory and no checkpoint of one. For a model's folder, give --policy and --critic."
        )
    beside = Path(found.folder).parent / "critic"
    if critic is None and found.run is not None and beside.is_dir():
        critic = str(beside)
    own = {**settings, "model": {"policy": found.folder, "critic": critic}}
    config = evaluation_config(found, task, own, changes, uses=("algorithm",))
    origin = None if critic is None else run_of(critic)
    same = origin is None or (found.run is not None and origin.resolve() == found.run.resolve())
    algorithm = config.algorithm if same or origin is None else load_run_config(origin).algorithm
    return JudgedModels(found, critic, config, algorithm, out or _default_out(found))


def _default_out(policy: EvaluatedModel) -> Path:
    """`critic_judgement/` in the run, for a checkpoint a folder of its name in there; in the current folder without a
    run."""
    if policy.run is None:
        return Path(FOLDER)
    at = Path(policy.folder).parent
    return policy.run / FOLDER / (at.name if at.parent.name == "checkpoints" else "")


def num_responses(options: JudgeOptions, algorithm: Algorithm) -> int:
    """Responses to each prompt: the number given, else RESPONSES, or the group that a residual critic's values need."""
    if options.responses is not None:
        return options.responses
    credit = algorithm.credit
    residual = isinstance(credit, Gae) and credit.baseline == "group"
    return max(RESPONSES, algorithm.sampling.per_prompt) if residual else RESPONSES


def judge_models(models: JudgedModels, options: JudgeOptions, observer: Observer) -> tuple[CriticJudgement, Record]:
    """The judgement, and the content of the `results.json` that is written into `models.out` beside picture and page.

    Continuations are kept in `judged.jsonl` there and taken from it: they belong to the policy, so another critic is
    judged with the same ones.
    """
    config, algorithm = models.config, models.algorithm
    sections = config.sections
    trust = sections.model.trust_remote_code
    inputs = read_inputs(config, to_train=False, on_progress=observer.progress)
    engine = None
    try:
        report_notes(inputs, observer)
        prompts = _prompts(inputs, options)
        _check(inputs, models, trust)
        responses = num_responses(options, algorithm)
        for note in _notes(models, responses):
            observer.note(note)
        model = to_device(load_policy(inputs.policy_source, trust_remote_code=trust), best_device())
        set_threads(sections.scale.threads, model)
        critic = None if models.critic is None else _critic(models.critic, config, model, observer)
        if sections.model.half:  # as a run's sampler
            model = to_device(model, torch.bfloat16)
        kept = KeptLines(
            models.out / "judged.jsonl", _about(config, inputs, options, responses), entry="continued", what="judgement"
        )
        if there := sum(kept.get(prompt.id) is not None for prompt in prompts):
            observer.note(f"taken from {kept.path}: {there} of {counted(len(prompts), 'prompt')}")
        engine = make_engine(
            sections.rollout.engine,
            model.requires_grad_(False),
            log=models.out / LOG,
            trust_remote_code=trust,
            on_alarm=observer.alarm,
        )
        room = sampling_room(model.config, sections.rollout.engine)
        sampler = Sampler(
            engine,
            inputs.task,
            inputs.decoding,
            lambda ids: response_text(inputs.tokenizer, ids, inputs.decoding.stop_token_ids),
            sections.seed,
            room and room.tokens,
            inputs.turns,
        )
        continued = continue_prompts(
            sampler,
            prompts,
            responses=responses,
            fractions=options.fractions,
            continuations=options.continuations,
            kept=kept,
            on_progress=partial(observer.progress, "responses and continuations"),
            on_block=partial(_count_block, observer),
        )
        residual = critic is not None and bool(getattr(critic.model.config, RESIDUAL, False))
        answers = None
        if critic is not None:
            answers = read_answers(
                critic, continued, tokens_at_once=TOKENS_AT_ONCE, on_progress=partial(observer.progress, "critic")
            )
        observer.progress("bootstrap intervals", 0, 1)
        result = judge(
            continued,
            answers,
            fractions=options.fractions,
            continuations=options.continuations,
            reward_right=algorithm.reward.right,
            reward_wrong=algorithm.reward.wrong,
            residual=residual,
            group_size=_group_size(models),
        )
        if result.invalid_ratio > sections.trainer.max_invalid_ratio:
            raise VerifierBrokenError(
                f"{who_judges(inputs.turns)} could not judge {result.invalid_ratio:.0%} of the responses; the limit is "
                f"trainer.max_invalid_ratio={sections.trainer.max_invalid_ratio}. Mend it and give the same command "
                "again: what it could not judge is drawn again."
            )
        results = {**_heading(models, inputs, critic), **result.summary()}
        write_judgement(results, models.out)
        return result, results
    finally:
        if engine:
            engine.close()
        close_task(inputs.task)


def _prompts(inputs: Inputs, options: JudgeOptions) -> list[Prompt]:
    """The first held-out prompts, each once."""
    there = len(inputs.heldout_prompts)
    if options.prompts is not None and options.prompts > there:
        raise ConfigError(
            f"--prompts {options.prompts} exceeds the {there} held-out prompts of task {inputs.task.name}. Lower it."
        )
    chosen = [inputs.heldout_prompts[i] for i in range(min(options.prompts or PROMPTS, there))]
    prompts = list({prompt.id: prompt for prompt in chosen}.values())  # a neighbour of one too long may come twice
    if len(prompts) < 2:
        raise ConfigError(f"Task {inputs.task.name} has one held-out prompt; a judgement needs 2 or more.")
    return prompts


def _check(inputs: Inputs, models: JudgedModels, trust: bool) -> None:
    """Raise ConfigError for a task or a critic that cannot be judged."""
    if models.algorithm.reward.by == "score":
        raise ConfigError(
            "vapo critic measures values of right against wrong, and this critic foresees scores "
            "(algorithm.reward.by=score). For the ceiling alone give its policy: --policy RUN/policy --task NAME."
        )
    if inputs.task.verify_groups:
        raise ConfigError(
            f"Task {inputs.task.name} compares the responses to a prompt with each other, so a continuation alone has "
            "no verdict, and no Monte-Carlo value."
        )
    if models.critic is None or holds_side_critic(models.critic):
        return
    if not isinstance(models.config.algorithm.credit, Gae):
        check_vocabularies(inputs.policy_source, models.critic, inputs.tokenizer, trust_remote_code=trust)


def _group_size(models: JudgedModels) -> int | None:
    """Responses to a prompt in training, or in the default method where there is no run; None for one response."""
    size = models.algorithm.sampling.per_prompt
    return size if size > 1 else None


def _notes(models: JudgedModels, responses: int) -> list[str]:
    """Where the critic learned something else than the verdict of the whole response."""
    algorithm, credit = models.algorithm, models.algorithm.credit
    if models.critic is None:
        return ["there is no critic: this is what any critic could explain"]
    if not isinstance(credit, Gae):
        return []
    notes = []
    if isinstance(credit.value_tokens, TurnStarts):
        notes.append("the critic learned the values of turns' first tokens only; at other cuts it was never trained")
    if credit.gamma != 1:
        notes.append(f"the critic learned outcomes discounted by gamma={credit.gamma}; Monte-Carlo values are not")
    if algorithm.reward.overlong_cache > 0 and credit.overlong_in_target:
        notes.append("the critic learned the overlong punishment, too; Monte-Carlo values are without it")
    if algorithm.truncated in ("drop", "bootstrap"):
        notes.append(
            f"the critic did not learn the verdicts of cut-off responses (algorithm.truncated={algorithm.truncated}); "
            "here they count"
        )
    size = _group_size(models) or responses
    if credit.baseline == "group" and responses < size:
        raise ConfigError(
            f"--responses {responses}: the critic's value holds the mean of the group's other responses, of "
            f"{size - 1} in training. With fewer it would look worse than it is: give --responses {size}."
        )
    if credit.baseline in ("fitted", "gated"):
        notes.append(f"the critic is judged alone, without algorithm.credit.baseline={credit.baseline}")
    return notes


def _critic(source: str, config: Config, policy: PreTrainedModel, observer: Observer) -> Critic:
    """The trained critic in a folder; raises ModelError for one that cannot be judged beside the policy."""
    credit = config.algorithm.credit
    critic = trained_critic(source, policy, config.sections)
    saved = critic.model.config
    column, given = getattr(saved, PRIVILEGED, None), credit.privileged if isinstance(credit, Gae) else None
    if column != given:
        raise ModelError(
            f"The critic in {source} was trained with the privileged column {column!r}, and the settings give "
            f"{given!r}. Judge it with its own run: vapo critic RUN."
        )
    observer.note(f"critic: {critic.origin}")
    if critic.value_at == "end":
        observer.note("the critic was trained on whole responses only; its values of prefixes were never learned")
    return critic


def _count_block(observer: Observer, done: int, total: int) -> None:
    """Each block of prompts is a step, so that the view can estimate the time left."""
    if not total:
        return
    if done == 0:
        observer.phase("drawing continuations", 0, total)
    else:
        observer.step({"step": done})


def _about(config: Config, inputs: Inputs, options: JudgeOptions, responses: int) -> dict[str, Any]:
    """What kept continuations depend on. The number of prompts is not part of it: a larger one uses what is there."""
    about = {k: v for k, v in about_samples(config, inputs).items() if k not in ("samples", "temperature", "top-p")}
    folder = Path(inputs.policy_source)
    return {
        **about,
        "model": str(folder.resolve()) if folder.exists() else inputs.policy_source,
        "temperature": inputs.decoding.temperature,
        "responses": responses,
        "continuations": options.continuations,
        "fractions": list(options.fractions),
    }


def _heading(models: JudgedModels, inputs: Inputs, critic: Critic | None) -> Record:
    """What was judged, for the head of table and page."""
    reward = models.algorithm.reward
    return {
        "format": FORMAT,
        "name": (models.policy.run or Path(models.policy.folder)).resolve().name,
        "policy": models.policy.folder,
        "critic": models.critic,
        "critic_origin": critic.origin if critic else None,
        "method": models.config.label if models.policy.run else None,
        "task": inputs.task.name,
        "seed": models.config.sections.seed,
        "temperature": inputs.decoding.temperature,
        "max_response_tokens": inputs.decoding.max_tokens,
        "reward": [reward.wrong, reward.right],
    }
