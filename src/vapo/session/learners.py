"""A run's networks, each with its loss and optimizer. One function makes them in every process that trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.algo.head_ranges import target_range, width, with_range
from vapo.algo.method import Gae, Head
from vapo.errors import ConfigError
from vapo.models.backbone import checkpoint_gradients
from vapo.models.critic import freeze, known_ids
from vapo.models.critic_notes import set_head, set_privileged, set_residual, set_value_at, value_head
from vapo.models.loading import load_critic, load_policy, load_side_critic
from vapo.models.lora import add_lora, share_frozen
from vapo.models.networks import Critic, Policy, Sequences, choose_layout
from vapo.models.placing import best_device, set_threads, to_device, total_memory
from vapo.models.side import EMBEDDINGS, SideModel, describe, side_config
from vapo.session.config import Config
from vapo.session.inputs import Inputs
from vapo.trainer.device_turns import DeviceTurns
from vapo.trainer.group import ALONE, Group
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, Objective, PolicyObjective, RewardModelObjective
from vapo.trainer.spans import Spans

KEPT_SHARE = 0.25
"""The policy's hidden states may take this share of the machine's memory."""


@dataclass(frozen=True)
class LearnerPlan:
    """What the networks are made from; another process can be given it."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    policy_source: str
    critic_source: str
    """Empty for a side critic with new weights."""
    temperature: float
    parameters: int
    """Of the policy."""
    longest: int
    """Tokens of the longest prompt with the longest response."""


@dataclass(frozen=True)
class Learners:
    """The networks of a run."""

    policy: LocalNetwork
    critic: LocalNetwork | None
    reference: LocalNetwork | None

    @property
    def by_name(self) -> dict[str, LocalNetwork]:
        """Those that there are."""
        return {n.name: n for n in (self.policy, self.critic, self.reference) if n is not None}


def learner_plan(config: Config, inputs: Inputs) -> LearnerPlan:
    """What the networks of a run are made from."""
    return LearnerPlan(
        config=config,
        tokenizer=inputs.tokenizer,
        policy_source=inputs.policy_source,
        critic_source=inputs.critic_source,
        temperature=inputs.decoding.temperature,
        parameters=inputs.parameters,
        longest=inputs.train_prompts.longest() + inputs.decoding.max_tokens,
    )


def load_base(plan: LearnerPlan, device: torch.device) -> PreTrainedModel:
    """The model that the policy starts from."""
    torch.manual_seed(plan.config.sections.seed)
    trust = plan.config.sections.model.trust_remote_code
    return to_device(load_policy(plan.policy_source, trust_remote_code=trust), device)


def device_to_load(group: Group) -> torch.device:
    """Where whole networks are loaded: the CPU if a group shards them, which takes layer by layer to its devices."""
    return best_device() if group is ALONE else torch.device("cpu")


def load_learners(plan: LearnerPlan, group: Group, *, threads: int | None = None) -> dict[str, LocalNetwork]:
    """The networks of a process that trains and does nothing else, by name; sets its threads, to `threads` if given."""
    model = load_base(plan, device_to_load(group))
    set_threads(threads or plan.config.sections.scale.threads, model)
    return make_learners(plan, model, Spans(), group).by_name


def make_learners(plan: LearnerPlan, model: PreTrainedModel, spans: Spans, group: Group = ALONE) -> Learners:
    """The networks: the policy is the `model`, just loaded by `load_base`. The group shards each before its optimizer
    is made."""
    sections, algorithm, settings = plan.config.sections, plan.config.algorithm, plan.config.sections.trainer
    autocast = sections.model.half
    policy = Policy(model, choose_layout(model, settings.layout), plan.temperature, autocast)
    if sections.model.policy_lora:
        add_lora(model, sections.model.policy_lora, sections.model.lora_alpha)
    # with separate adapters, so that a refreshed reference is saved as the adapters it copied
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False)) if algorithm.kl.coef > 0 else None
    if sections.model.gradient_checkpointing:
        checkpoint_gradients(model)
    device_turns = DeviceTurns(best_device()) if sections.scale.offload else None

    def local(
        name: str, network: Policy | Critic, objective: Objective | None = None, beside: LocalNetwork | None = None
    ) -> LocalNetwork:
        side = isinstance(network.model, SideModel)  # it reads no tokens, so its folder has no tokenizer
        return LocalNetwork(
            name,
            network,
            None if side else plan.tokenizer,
            reads=("features",) if side and group is ALONE and features_fit(plan, policy) else (),
            objective=objective,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            spans=spans,
            group=group,
            device_turns=device_turns,
            beside=beside if side else None,
            half_weights=sections.model.dtype == "bfloat16-weights" and not side,
        )

    value = None
    policy = group.shard(policy)
    if isinstance(algorithm.credit, Gae):
        head = with_range(algorithm.credit.head, *target_range(algorithm))
        if sections.model.critic_kind == "side":
            policy, value = _side_critic(plan, policy, head)
        else:
            value = _full_critic(plan, model, head, group)
        set_value_at(value.model, settings.pretraining_at)  # what it learns here, whatever it started from
        freeze(value.model, algorithm.credit.frozen)
        set_privileged(value.model, algorithm.credit.privileged, plan.critic_source)
        set_residual(value.model, algorithm.credit.baseline == "group", plan.critic_source)
        value = group.shard(value)
    learner, critic = local("policy", policy, PolicyObjective(policy, algorithm)), None
    if value is not None and isinstance(algorithm.credit, Gae):
        at_end = settings.pretraining_at == "end"
        objective = RewardModelObjective(value) if at_end else CriticObjective(value, algorithm.credit)
        critic = local("critic", value, objective, beside=learner)
    return Learners(learner, critic, reference and local("reference", group.shard(reference)))


def _full_critic(plan: LearnerPlan, policy: PreTrainedModel, head: Head, group: Group) -> Critic:
    """A network of its own, from a base model or a saved critic. Where both networks have adapters, they share the
    weights of the base that both started from, unless each is sharded or they take turns on the device."""
    model, settings = plan.config.sections.model, plan.config.sections.trainer
    network, origin = load_critic(
        plan.critic_source, num_ids=known_ids(policy), trust_remote_code=model.trust_remote_code, head=head
    )
    network = to_device(network, device_to_load(group))
    if model.critic_lora:
        add_lora(network, model.critic_lora, model.lora_alpha, keep=value_head(network))
    if group is ALONE and not plan.config.sections.scale.offload and (shared := share_frozen(network, policy)):
        origin += f"; its base is the policy's, {shared / 1e6:.1f} MB kept once"
    if model.gradient_checkpointing:
        checkpoint_gradients(network)
    layout, autocast = choose_layout(network, settings.layout), model.half
    return Critic(network, layout, autocast, origin, settings.pretraining_at, head)


def _side_critic(plan: LearnerPlan, policy: Policy, head: Head) -> tuple[Policy, Critic]:
    """The policy, which from now on can give its hidden states, and a side critic that reads them: new or saved.

    Raises ModelError if the hidden states cannot be read.
    """
    model = plan.config.sections.model
    if plan.critic_source:
        resumed = plan.critic_source != model.critic
        network, origin = load_side_critic(plan.critic_source, policy.model, head=head, any_weights=resumed)
    else:
        parameters = plan.parameters or policy.model.num_parameters()
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
            f"model.side_layers={model.side_layers}, and the side critic in {plan.critic_source} reads "
            f"{read}. Leave model.side_layers out."
        )
    policy = replace(policy, side_layers=layers)
    probe = torch.zeros(2, dtype=torch.long, device=policy.model.device)
    policy.features(Sequences((probe,), (1,)))  # fails here rather than in the first step
    network = to_device(network, policy.model.device)
    at = plan.config.sections.trainer.pretraining_at
    return policy, Critic(network, policy.layout, False, origin, at, head, policy.features, beside=policy.model)


def features_fit(plan: LearnerPlan, policy: Policy) -> bool:
    """Whether the hidden states of a whole step, at full length, take less than a quarter of this machine's memory.

    Then they are kept from scoring to the critic's update. Else the policy computes them again for each piece. The rule
    must not look at free memory: a resumed run has to round as the first one.
    """
    states = len(policy.side_layers) * policy.model.config.get_text_config().hidden_size
    return 4 * plan.config.algorithm.sampling.samples * plan.longest * states < KEPT_SHARE * total_memory()
