"""From settings and inputs to a run's objects: networks, learners, engine."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from vapo.algo.method import Gae, LengthAdaptive
from vapo.errors import counted
from vapo.models.backbone import checkpoint_gradients
from vapo.models.critic import known_ids
from vapo.models.loading import load_critic, load_policy, set_value_at, value_head
from vapo.models.lora import add_lora
from vapo.models.networks import Critic, Policy, choose_layout
from vapo.models.placing import best_device, set_threads, to_device
from vapo.rollout.engines import make_engine
from vapo.session.config import Config
from vapo.session.evaluation import evaluate_heldout, fingerprint
from vapo.session.inputs import Inputs
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, Objective, PolicyObjective, RewardModelObjective
from vapo.trainer.observer import Observer
from vapo.trainer.run import Run
from vapo.trainer.sources import FixedPolicySource, SynchronousSource
from vapo.types import Progress


def assemble(config: Config, inputs: Inputs, observer: Observer) -> Run:
    """The run's objects, without a folder."""
    sections, algorithm = config.sections, config.algorithm
    settings = sections.trainer
    torch.manual_seed(sections.seed)
    trust, autocast = sections.model.trust_remote_code, sections.model.dtype == "bfloat16"
    device = best_device()
    model = to_device(load_policy(inputs.policy_source, trust_remote_code=trust), device)
    set_threads(sections.scale.threads, model)
    # a separate copy, so that samples come from weights that were handed over, never from half-updated ones
    sampler = copy.deepcopy(model).requires_grad_(False)
    sampler = to_device(sampler, torch.bfloat16) if autocast else sampler
    policy = Policy(model, choose_layout(model, settings.layout), inputs.decoding.temperature, autocast)
    if sections.model.policy_lora:
        add_lora(model, sections.model.policy_lora, sections.model.lora_alpha)
    # with separate adapters, so that a refreshed reference is saved as the adapters it copied
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False)) if algorithm.kl.coef > 0 else None
    if sections.model.gradient_checkpointing:
        checkpoint_gradients(model)

    def local(name: str, network: Policy | Critic, objective: Objective | None = None) -> LocalNetwork:
        return LocalNetwork(
            name,
            network,
            inputs.tokenizer,
            objective=objective,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )

    critic = None
    if isinstance(algorithm.credit, Gae):
        network, origin = load_critic(inputs.critic_source, num_ids=known_ids(model), trust_remote_code=trust)
        network = to_device(network, device)
        if sections.model.critic_lora:
            add_lora(network, sections.model.critic_lora, sections.model.lora_alpha, keep=value_head(network))
        if sections.model.gradient_checkpointing:
            checkpoint_gradients(network)
        set_value_at(network, settings.pretraining_at)  # what it learns here, whatever it started from
        value = Critic(network, choose_layout(network, settings.layout), autocast, origin, settings.pretraining_at)
        at_end = settings.pretraining_at == "end"
        critic = local(
            "critic", value, RewardModelObjective(value) if at_end else CriticObjective(value, algorithm.credit)
        )

    engine = make_engine(sections.rollout.engine, sampler)
    evaluation = sections.evaluation
    evaluation_set = fingerprint(inputs, evaluation.prompts, evaluation.temperature, evaluation.top_p)

    def evaluate_now(k: int, on_progress: Progress) -> dict[str, Any]:
        result = evaluate_heldout(
            inputs,
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
        config=config.effective(),
        seed=sections.seed,
        algorithm=algorithm,
        settings=settings,
        guards=sections.guards,
        saving=sections.checkpoint,
        evaluation=evaluation,
        decoding=inputs.decoding,
        task=inputs.task,
        train_prompts=inputs.train_prompts,
        heldout_prompts=inputs.heldout_prompts,
        tokenizer=inputs.tokenizer,
        policy=local("policy", policy, PolicyObjective(policy, algorithm)),
        critic=critic,
        reference=reference and local("reference", reference),
        engine=engine,
        evaluate=evaluate_now,
        observer=observer,
    )
    run.source = SynchronousSource(run)
    run.pretraining_source = FixedPolicySource(run)
    return run


def lambda_warning(config: Config, longest: int) -> str | None:
    """The warning where responses of `longest` tokens get a small λ: the paper's α is meant for thousands of tokens."""
    credit = config.algorithm.credit
    rule = credit.policy_lambda if isinstance(credit, Gae) else None
    if not isinstance(rule, LengthAdaptive):
        return None
    lam = max(0.0, 1 - 1 / (rule.alpha * longest))
    if lam >= 0.95:
        return None
    return (
        f"alpha={rule.alpha} gives lambda={lam:.2f} even at the length limit of {counted(longest, 'token')}: credit "
        "will hardly reach past the last few. Raise algorithm.alpha until it is 0.98 or more."
    )
