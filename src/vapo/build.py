"""From a configuration to running objects. The only module that knows all rooms."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vapo.algo.presets import Gae, LengthAdaptive
from vapo.config import Config
from vapo.ground import Ground, close, ground, tell
from vapo.models.backbone import checkpoint_gradients
from vapo.models.critic import known_ids
from vapo.models.loading import load_critic, load_policy, value_head
from vapo.models.lora import add_lora
from vapo.models.networks import Critic, Policy, choose_layout
from vapo.models.placing import best_device, moved, set_threads
from vapo.rollout.engines import make_engine
from vapo.scoring import evaluate_prompts, fingerprint
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, Objective, PolicyObjective, RewardModelObjective
from vapo.trainer.observer import Observer
from vapo.trainer.run import Run
from vapo.trainer.sampling import SynchronousSource
from vapo.types import Progress, Task


def assemble(config: Config, saved: Path | None, observer: Observer, task: Task | None) -> Run:
    """The run's objects without a folder; networks come from `saved` if there is a checkpoint."""
    base = ground(config, task, saved, on_progress=observer.progress)
    try:
        tell(base, observer)
        run = _on_ground(config, base, observer)
    except BaseException:
        close(base.task)
        raise
    _warn_about_lambda(run)
    return run


def _on_ground(config: Config, base: Ground, observer: Observer) -> Run:
    """The run's objects on checked ground: networks and engine."""
    sections, algorithm = config.sections, config.algorithm
    settings = sections.trainer
    torch.manual_seed(sections.seed)
    trust, autocast = sections.model.trust_remote_code, sections.model.dtype == "bfloat16"
    device = best_device()
    model = moved(load_policy(base.policy_source, trust_remote_code=trust), device)
    set_threads(sections.scale.threads, model)
    # a copy of its own, so that what is sampled from is a version that was handed over, never one half-updated
    sampler = copy.deepcopy(model).requires_grad_(False)
    sampler = moved(sampler, torch.bfloat16) if autocast else sampler
    policy = Policy(model, choose_layout(model, settings.layout), base.decoding.temperature, autocast)
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False)) if algorithm.kl.coef > 0 else None
    if sections.model.policy_lora:
        add_lora(model, sections.model.policy_lora, sections.model.lora_alpha)
    if sections.model.gradient_checkpointing:
        checkpoint_gradients(model)

    def local(name: str, network: Policy | Critic, objective: Objective | None = None) -> LocalNetwork:
        return LocalNetwork(
            name,
            network,
            base.tokenizer,
            objective=objective,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )

    critic = None
    if isinstance(algorithm.credit, Gae):
        network, origin = load_critic(base.critic_source, num_ids=known_ids(model), trust_remote_code=trust)
        network = moved(network, device)
        if sections.model.critic_lora:
            add_lora(network, sections.model.critic_lora, sections.model.lora_alpha, keep=value_head(network))
        if sections.model.gradient_checkpointing:
            checkpoint_gradients(network)
        value = Critic(network, choose_layout(network, settings.layout), autocast, origin)
        at_end = settings.pretraining_at == "end"
        critic = local(
            "critic", value, RewardModelObjective(value) if at_end else CriticObjective(value, algorithm.credit)
        )

    engine = make_engine(sections.rollout.engine, sampler, slots=sections.rollout.slots)
    evaluation = sections.evaluation
    evaluation_set = fingerprint(base, evaluation.prompts, evaluation.temperature, evaluation.top_p)

    def evaluate_now(k: int, on_progress: Progress) -> dict[str, Any]:
        result = evaluate_prompts(
            base,
            engine,
            evaluation.prompts,
            k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            seed=sections.seed,
            on_progress=on_progress,
        )
        return {**result.summary(), "set": evaluation_set, **result.tallies()}

    run = Run(
        config=config.as_dict(),
        seed=sections.seed,
        algorithm=algorithm,
        settings=settings,
        guards=sections.guards,
        saving=sections.checkpoint,
        evaluation=evaluation,
        decoding=base.decoding,
        task=base.task,
        train_prompts=base.train_prompts,
        heldout_prompts=base.heldout_prompts,
        tokenizer=base.tokenizer,
        policy=local("policy", policy, PolicyObjective(policy, algorithm)),
        critic=critic,
        reference=reference and local("reference", reference),
        engine=engine,
        evaluate=evaluate_now,
        observer=observer,
    )
    run.source = SynchronousSource(run)
    return run


def _warn_about_lambda(run: Run) -> None:
    """The paper's α belongs to thousands of tokens; on short responses it silently becomes one-step TD."""
    credit = run.algorithm.credit
    if isinstance(credit, Gae) and isinstance(credit.policy_lambda, LengthAdaptive):
        longest = run.decoding.max_tokens
        lam = max(0.0, 1 - 1 / (credit.policy_lambda.alpha * longest))
        if lam < 0.95:
            run.observer.alarm(
                f"alpha={credit.policy_lambda.alpha} gives lambda={lam:.2f} even at the length limit of {longest} "
                "tokens: credit will hardly reach past the last few. Raise algorithm.alpha until it is 0.98 or more."
            )
