"""Evaluations on held-out prompts: those in the loop and those of `vapo eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vapo.errors import ConfigError, ModelError, VerifierBrokenError
from vapo.evals.evaluate import EvaluationResult, sample_and_judge, score_episodes
from vapo.evals.ranking import last_values
from vapo.evals.samples import SampleFile
from vapo.evals.statistics import RANKS
from vapo.models.critic_notes import PRIVILEGED
from vapo.models.loading import load_policy
from vapo.models.networks import Critic
from vapo.models.placing import best_device, set_threads, to_device
from vapo.models.tokens import response_text
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.engines import make_engine
from vapo.rollout.vllm_engine import LOG
from vapo.session.config import Config
from vapo.session.inputs import Inputs, close_task, read_inputs, report_notes
from vapo.session.schema import Sections
from vapo.session.trained_critic import trained_critic
from vapo.session.turn_taking import who_judges
from vapo.tasks.full_task import FullTask
from vapo.tasks.problems import Problems
from vapo.trainer.observer import Observer
from vapo.types import Progress, Task, stable_hash

TOKENS_AT_ONCE = 16_384
"""Tokens of one forward pass where a critic reads samples."""


def fingerprint(inputs: Inputs, num_prompts: int, temperature: float, top_p: float) -> str:
    """A short hash of what a score was measured on; scores with different ones cannot be compared."""
    prompts = [inputs.heldout_prompts[i] for i in range(min(num_prompts, len(inputs.heldout_prompts)))]
    how = [inputs.task.name, inputs.decoding.max_tokens, temperature, top_p]
    texts = [part for prompt in prompts for part in (prompt.id, prompt.text)]
    # name and prompts of a built-in task determine its verdicts; a user's verifier and answers are hashed as well
    task = inputs.task.original
    if isinstance(task, Problems):
        how += [*_code(task.options.verifier), task.options.right_at, *(prompt.answer for prompt in prompts)]
        if task.options.environment is not None:
            how += [*_code(task.options.environment), task.options.max_turns]
    return f"{stable_hash(*how, *texts):016x}"


def _code(name: str) -> tuple[bytes | str, str]:
    """The file or module of a user's function, with its content if it is a file, and the function's name."""
    file, _, function = name.rpartition(":")
    return (Path(file).read_bytes() if Path(file).is_file() else file), function


def evaluate_heldout(
    inputs: Inputs,
    engine: RolloutEngine,
    num_prompts: int,
    k: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
    on_progress: Progress,
    kept: SampleFile | None = None,
    critic: Critic | None = None,
    ranks: Sequence[str] = RANKS,
) -> EvaluationResult:
    """avg@k and companions on the first held-out prompts of the task; with a critic, what its ranking adds."""
    chosen = [inputs.heldout_prompts[i] for i in range(min(num_prompts, len(inputs.heldout_prompts)))]
    prompts = list({prompt.id: prompt for prompt in chosen}.values())  # a neighbour of one too long may come twice
    episodes = sample_and_judge(
        engine,
        prompts,
        inputs.task,
        k=k,
        how=replace(inputs.decoding, temperature=temperature, top_p=top_p),
        decode=lambda ids: response_text(inputs.tokenizer, ids, inputs.decoding.stop_token_ids),
        seed=seed,
        rules=inputs.turns,
        kept=kept,
        on_progress=partial(on_progress, "evaluating"),
    )
    values = None if critic is None else last_values(critic, episodes, tokens_at_once=TOKENS_AT_ONCE)
    return score_episodes(episodes, k=k, answer_of=_answer_of(inputs.task), values=values, ranks=ranks)


def _answer_of(task: FullTask) -> Callable[[str], str | None] | None:
    """What a majority votes on, None where there is no such thing; VerifierBrokenError for what a vote cannot count."""
    name, vote = ("final_answer", task.final_answer) if task.vote is None else ("vote", task.vote)
    if vote is None:
        return None

    def answer(response: str) -> str | None:
        try:
            found = vote(response)
        except Exception as error:
            raise VerifierBrokenError(
                f"{name} of the task {task.name} raised {type(error).__name__}: {error}. It must take any text."
            ) from error
        if found is not None and not isinstance(found, str):
            raise VerifierBrokenError(
                f"{name} of the task {task.name} gave a {type(found).__name__}, not a text or None. Mend it."
            )
        return found

    return answer


def evaluate_model(
    config: Config,
    num_prompts: int | None,
    observer: Observer,
    out: Path | None = None,
    ranks: Sequence[str] = (),
    task: Task | None = None,
) -> EvaluationResult:
    """The evaluation that the configuration's model, task (or the object given) and evaluation sections describe.

    Samples are kept in the folder `out`, and taken from there if they are. With `ranks`, model.critic picks among
    the samples.
    """
    sections, evaluation = config.sections, config.sections.evaluation
    k, trust = evaluation.samples_per_prompt, sections.model.trust_remote_code
    inputs = read_inputs(config, task, to_train=False, on_progress=observer.progress)
    engine = None
    try:
        report_notes(inputs, observer)
        kept = SampleFile(out, about_samples(config, inputs)) if out else None
        model = to_device(load_policy(inputs.policy_source, trust_remote_code=trust), best_device())
        set_threads(sections.scale.threads, model)
        critic = _ranking_critic(inputs, sections, model, ranks, observer) if ranks else None
        if sections.model.half:  # as a run's sampler
            model = to_device(model, torch.bfloat16)
        engine = make_engine(
            sections.rollout.engine,
            model.requires_grad_(False),
            log=out and out / LOG,
            trust_remote_code=trust,
            on_alarm=observer.alarm,
        )
        observer.phase("evaluating", 0, 1)
        result = evaluate_heldout(
            inputs,
            engine,
            num_prompts or len(inputs.heldout_prompts),
            k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            seed=sections.seed,
            on_progress=observer.progress,
            kept=kept,
            critic=critic,
            ranks=ranks,
        )
        if result.invalid_ratio > sections.trainer.max_invalid_ratio:
            raise VerifierBrokenError(
                f"{who_judges(inputs.turns)} could not judge {result.invalid_ratio:.0%} of the responses; the limit is "
                f"trainer.max_invalid_ratio={sections.trainer.max_invalid_ratio}. With --out, samples.jsonl has the "
                "reasons."
            )
        if result.in_order is not None and result.in_order[1] <= 0.5 <= result.in_order[2]:
            observer.note(
                "the critic's ranking is chance here: of a right and a wrong sample of one prompt it puts the right "
                "one first in {:.0%} of the cases, with an interval from {:.0%} to {:.0%}".format(*result.in_order)
            )
        return result
    finally:
        if engine:
            engine.close()
        close_task(inputs.task)


def _ranking_critic(
    inputs: Inputs, sections: Sections, policy: PreTrainedModel, ranks: Sequence[str], observer: Observer
) -> Critic:
    """The critic that picks among the samples; raises ModelError or ConfigError for one that cannot."""
    critic = trained_critic(inputs.critic_source, policy, sections)
    where = "after" if critic.value_at == "end" else "before"
    observer.note(f"critic: {critic.origin}, read {where} the last token of a response")
    if (column := getattr(critic.model.config, PRIVILEGED, None)) is not None:
        raise ModelError(
            f"The critic {inputs.critic_source} reads the column {column!r} beside the response, so its choice "
            "would be given away. Rank with a critic that reads what the policy reads."
        )
    if "weighted-vote" in ranks and _answer_of(inputs.task) is None:
        if len(ranks) == 1:
            raise ConfigError(
                f"{inputs.task.name} has no short final answers, so there is no vote to weigh. Take --rank best-of-n."
            )
        observer.note(f"{inputs.task.name} has no short final answers, so there is no vote to weigh")
    return critic


def about_samples(config: Config, inputs: Inputs) -> dict[str, Any]:
    """What samples that are kept depend on; of anything else they are none."""
    evaluation, folder = config.sections.evaluation, Path(inputs.policy_source)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    prompts = [inputs.heldout_prompts[i] for i in range(len(inputs.heldout_prompts))]
    return {
        "model": inputs.policy_source,
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "task": inputs.task.name,
        "task options": {key: str(value) for key, value in config.sections.task.options.items()},
        "prompts and gold answers": f"{stable_hash(*((p.id, p.token_ids, p.answer) for p in prompts)):016x}",
        "samples": evaluation.samples_per_prompt,
        "temperature": evaluation.temperature,
        "top-p": evaluation.top_p,
        "max_response_tokens": inputs.decoding.max_tokens,
        "seed": config.sections.seed,
        **_own_code(config, inputs),
    }


def _own_code(config: Config, inputs: Inputs) -> dict[str, str]:
    """A hash of the user's files whose code judges; empty where there is none, as in what earlier versions kept."""
    task = inputs.task.original
    options = task.options if isinstance(task, Problems) else None
    names = [config.sections.task.name, *([options.verifier, options.environment or ""] if options else [])]
    files = [code for code, _ in map(_code, names) if isinstance(code, bytes)]
    return {"code of task, verifier and environment": f"{stable_hash(*files):016x}"} if files else {}
