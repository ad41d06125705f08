"""From settings and inputs to a run's objects: networks, learners, engine."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vapo.algo.head_ranges import target_range, width, with_range
from vapo.algo.method import Gae, Head, LengthAdaptive
from vapo.errors import ConfigError
from vapo.models.backbone import checkpoint_gradients
from vapo.models.critic import freeze, known_ids
from vapo.models.loading import (
    load_critic,
    load_policy,
    load_side_critic,
    set_head,
    set_privileged,
    set_residual,
    set_value_at,
    value_head,
)
from vapo.models.lora import add_lora, share_frozen
from vapo.models.matrix_rate import matrix_rate
from vapo.models.networks import Critic, Policy, Sequences, choose_layout
from vapo.models.placing import best_device, set_threads, split_threads, to_device, total_memory
from vapo.models.side import EMBEDDINGS, SideModel, describe, side_config
from vapo.rollout.engines import make_engine, sampler_of
from vapo.rollout.vllm_engine import LOG, agreed_gap
from vapo.session.config import Config
from vapo.session.evaluation import evaluate_heldout, fingerprint
from vapo.session.inputs import Inputs
from vapo.trainer.ahead import AheadSource, FixedPolicyAheadSource
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, Objective, PolicyObjective, RewardModelObjective
from vapo.trainer.observer import Observer
from vapo.trainer.run import Run
from vapo.trainer.sources import FixedPolicySource, SynchronousSource
from vapo.trainer.spans import Spans
from vapo.types import Progress

KEPT_SHARE = 0.25
"""The policy's hidden states may take this share of the machine's memory."""


def assemble(config: Config, inputs: Inputs, observer: Observer, run_dir: Path) -> Run:
    """The run's objects, without a folder; `run_dir` is where it will be."""
    sections, algorithm = config.sections, config.algorithm
    settings = sections.trainer
    torch.manual_seed(sections.seed)
    trust, autocast = sections.model.trust_remote_code, sections.model.dtype == "bfloat16"
    device = best_device()
    model = to_device(load_policy(inputs.policy_source, trust_remote_code=trust), device)
    set_threads(sections.scale.threads, model)
    guards, engine_settings = sections.guards, sections.rollout.engine
    dtype = torch.bfloat16 if autocast else model.dtype
    if guards.logp_gap_above is None and not settings.max_staleness:  # older weights differ by more than rounding
        guards = replace(guards, logp_gap_above=agreed_gap(engine_settings, dtype))
    sampler = sampler_of(engine_settings, model, dtype)
    policy = Policy(model, choose_layout(model, settings.layout), inputs.decoding.temperature, autocast)
    if sections.model.policy_lora:
        add_lora(model, sections.model.policy_lora, sections.model.lora_alpha)
    # with separate adapters, so that a refreshed reference is saved as the adapters it copied
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False)) if algorithm.kl.coef > 0 else None
    if sections.model.gradient_checkpointing:
        checkpoint_gradients(model)

    spans = Spans(memory=True)

    def local(name: str, network: Policy | Critic, objective: Objective | None = None) -> LocalNetwork:
        side = isinstance(network.model, SideModel)  # it reads no tokens, so its folder has no tokenizer
        return LocalNetwork(
            name,
            network,
            None if side else inputs.tokenizer,
            reads=("features",) if side and features_fit(config, inputs, policy) else (),
            objective=objective,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            spans=spans,
        )

    critic = None
    if isinstance(algorithm.credit, Gae):
        head = with_range(algorithm.credit.head, *target_range(algorithm))
        if sections.model.critic_kind == "side":
            policy, value = _side_critic(config, inputs, policy, head)
        else:
            value = _full_critic(config, inputs, model, head)
        set_value_at(value.model, settings.pretraining_at)  # what it learns here, whatever it started from
        freeze(value.model, algorithm.credit.frozen)
        set_privileged(value.model, algorithm.credit.privileged, inputs.critic_source)
        set_residual(value.model, algorithm.credit.baseline == "group", inputs.critic_source)
        at_end = settings.pretraining_at == "end"
        critic = local(
            "critic", value, RewardModelObjective(value) if at_end else CriticObjective(value, algorithm.credit)
        )

    learner = local("policy", policy, PolicyObjective(policy, algorithm))
    engine = make_engine(
        engine_settings,
        sampler,
        learner.weights(),
        log=run_dir / LOG,
        trust_remote_code=trust,
        on_alarm=lambda message: run.alarm(message) if hasattr(run, "folder") else observer.alarm(message),
    )
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
        guards=guards,
        saving=sections.checkpoint,
        evaluation=evaluation,
        decoding=inputs.decoding,
        task=inputs.task,
        train_prompts=inputs.train_prompts,
        heldout_prompts=inputs.heldout_prompts,
        tokenizer=inputs.tokenizer,
        policy=learner,
        critic=critic,
        reference=reference and local("reference", reference),
        engine=engine,
        evaluate=evaluate_now,
        observer=observer,
        spans=spans,
        matrix_rate=matrix_rate(device, torch.bfloat16 if autocast else torch.float32, torch.get_num_threads()),
    )
    run.feature_bytes = int(KEPT_SHARE * total_memory())
    if settings.max_staleness:
        threads = split_threads()
        run.source = AheadSource(run, threads=threads)
        run.pretraining_source = FixedPolicyAheadSource(run, threads=threads)
    else:
        run.source, run.pretraining_source = SynchronousSource(run), FixedPolicySource(run)
    return run


def _full_critic(config: Config, inputs: Inputs, policy: PreTrainedModel, head: Head) -> Critic:
    """A network of its own, from a base model or a saved critic. Where both networks have adapters, they share the
    weights of the base that both started from."""
    model, settings = config.sections.model, config.sections.trainer
    network, origin = load_critic(
        inputs.critic_source, num_ids=known_ids(policy), trust_remote_code=model.trust_remote_code, head=head
    )
    network = to_device(network, best_device())
    if model.critic_lora:
        add_lora(network, model.critic_lora, model.lora_alpha, keep=value_head(network))
    if shared := share_frozen(network, policy):
        origin += f"; its base is the policy's, {shared / 1e6:.1f} MB kept once"
    if model.gradient_checkpointing:
        checkpoint_gradients(network)
    layout, autocast = choose_layout(network, settings.layout), model.dtype == "bfloat16"
    return Critic(network, layout, autocast, origin, settings.pretraining_at, head)


def _side_critic(config: Config, inputs: Inputs, policy: Policy, head: Head) -> tuple[Policy, Critic]:
    """The policy, which from now on can give its hidden states, and a side critic that reads them: new or saved.

    Raises ModelError if the hidden states cannot be read.
    """
    model = config.sections.model
    if inputs.critic_source:
        resumed = inputs.critic_source != model.critic
        network, origin = load_side_critic(inputs.critic_source, policy.model, head=head, any_weights=resumed)
    else:
        parameters = inputs.parameters or policy.model.num_parameters()
        sizes = side_config(
            policy.model.config,
            parameters,
            outputs=width(head),
            layers=model.side_layers,
            share=model.side_share,
            attention=model.side_attention,
        )
        network = SideModel(sizes).eval()
        set_head(network, head)
        origin = f"new {describe(network, policy.model)}"
    layers = tuple(network.config.policy_layers or ())
    read = len([layer for layer in layers if layer != EMBEDDINGS])
    if model.side_layers not in (None, read):
        raise ConfigError(
            f"model.side_layers={model.side_layers}, and the side critic in {inputs.critic_source} reads "
            f"{read}. Leave model.side_layers out."
        )
    policy = replace(policy, side_layers=layers)
    probe = torch.zeros(2, dtype=torch.long, device=policy.model.device)
    policy.features(Sequences((probe,), (1,)))  # fails here rather than in the first step
    network = to_device(network, policy.model.device)
    at = config.sections.trainer.pretraining_at
    return policy, Critic(network, policy.layout, False, origin, at, head, policy.features, beside=policy.model)


def features_fit(config: Config, inputs: Inputs, policy: Policy) -> bool:
    """Whether the hidden states of a whole step, at full length, take less than a quarter of this machine's memory.

    Then they are kept from scoring to the critic's update. Else the policy computes them again for each piece. The rule
    must not look at free memory: a resumed run has to round as the first one.
    """
    tokens = inputs.train_prompts.longest() + inputs.decoding.max_tokens
    states = len(policy.side_layers) * policy.model.config.get_text_config().hidden_size
    return 4 * config.algorithm.sampling.samples * tokens * states < KEPT_SHARE * total_memory()


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
        f"alpha={rule.alpha} gives lambda={lam:.2f} even at the length limit of {longest} tokens: the share "
        f"k={lam**longest:.0e} of the outcome reaches the first token. Raise algorithm.alpha (0.5 is k=0.14, 1.5 is "
        "k=0.51 at every length), or set algorithm.k=0.5 in its place."
    )
