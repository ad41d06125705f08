"""The trained critic of an evaluation or a judgement, beside the policy that is evaluated."""

from __future__ import annotations

from transformers import PreTrainedModel

from vapo.errors import ModelError
from vapo.models.critic import known_ids
from vapo.models.critic_notes import saved_head, value_at, value_head
from vapo.models.loading import load_critic, load_side_critic
from vapo.models.networks import Critic, Policy, choose_layout
from vapo.models.placing import best_device, to_device
from vapo.models.side import holds_side_critic
from vapo.session.schema import Sections


def trained_critic(source: str, policy: PreTrainedModel, sections: Sections) -> Critic:
    """The critic in a folder, fixed; a side critic reads the policy's states.

    The policy has its weights in float32 still: a side critic knows it by them. Raises ModelError for a critic that
    does not fit the policy or has learned nothing.
    """
    trust, wanted = sections.model.trust_remote_code, sections.trainer.layout
    features_of = None
    if holds_side_critic(source):
        network, origin = load_side_critic(source, policy, trust_remote_code=trust)
        layout = choose_layout(policy, wanted)
        features_of = Policy(policy, layout, side_layers=tuple(network.config.policy_layers or ())).features
    else:
        network, origin = load_critic(source, num_ids=known_ids(policy), trust_remote_code=trust)
        layout = choose_layout(network, wanted)
    if not bool(value_head(network).weight.any()):  # a head that has learned nothing is exactly 0
        raise ModelError(
            f"The critic in {source} has learned nothing: its head is 0. Give the critic/ folder of a trained run."
        )
    return Critic(
        to_device(network, best_device()).requires_grad_(False),
        layout,
        origin=origin,
        value_at=value_at(network),
        head=saved_head(network.config),
        features_of=features_of,
    )
