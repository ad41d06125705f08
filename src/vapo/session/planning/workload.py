"""What is planned: a configuration's networks, lengths and batches, and how they are dealt out to ranks and engines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PreTrainedConfig

from vapo.algo.head_ranges import width
from vapo.algo.method import Algorithm, Gae
from vapo.errors import ConfigError
from vapo.models.logprobs import CPU_LOGITS, GPU_SHARE
from vapo.models.side import SideConfig, side_config
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.session.config import Config
from vapo.session.foresight import NetworkSize, head_parameters
from vapo.session.planning.hardware import Cluster
from vapo.session.planning.traced import Form, Rows, tracer_of
from vapo.trainer.local_network import CPU_TOKENS


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and responses."""

    prompt: int
    """The longest prompt."""
    limit: int
    """The longest response."""
    mean: float
    """The mean response, for times."""

    @property
    def longest(self) -> int:
        """Prompt and response together, at most."""
        return self.prompt + self.limit


@dataclass(frozen=True)
class Dealt:
    """How a cluster is shared out."""

    ranks: int
    """Training processes that weights, gradients and optimizers are sharded over."""
    engines: int
    """Rollout engines."""
    per_engine: int
    """Devices of one engine."""
    colocated: bool
    """Whether both take turns on the same devices."""


def dealt(config: Config, cluster: Cluster) -> Dealt:
    """Ranks and engines of the configuration, on this cluster. A local run has one of both.

    Settings for another number of GPUs are scaled to this one: all of them train, or as large a share as before.
    Raises ConfigError where an engine needs more GPUs than there are.
    """
    scale, devices = config.sections.scale, cluster.devices
    if cluster.on_cpu:
        ray = scale.backend == "ray"
        return Dealt(scale.training_ranks if ray else 1, scale.rollout_workers if ray else 1, 1, True)
    if devices == 1:
        return Dealt(1, 1, 1, True)
    split = scale.placement == "split"
    wanted = scale.nodes * scale.gpus_per_node
    share = scale.training_ranks / wanted if wanted else 0.5
    ranks = max(1, min(devices - 1, round(devices * share))) if split else devices
    left = devices - ranks if split else devices
    if scale.tensor_parallel > left:
        raise ConfigError(
            f"scale.tensor_parallel={scale.tensor_parallel} exceeds the {left} GPUs that sample on {cluster.name}. "
            "Lower it, or plan a larger cluster."
        )
    return Dealt(ranks, left // scale.tensor_parallel, scale.tensor_parallel, not split)


@dataclass(frozen=True)
class Workload:
    """Everything that sizes follow from."""

    config: Config
    model: PreTrainedConfig
    """Of the policy."""
    critic_model: PreTrainedConfig | None
    """Of a full critic; None without one."""
    cluster: Cluster
    dealt: Dealt
    lengths: Lengths

    @property
    def algorithm(self) -> Algorithm:
        """The method."""
        return self.config.algorithm

    @property
    def half(self) -> bool:
        """Whether passes compute in bfloat16."""
        return self.config.sections.model.dtype != "float32"

    @property
    def half_weights(self) -> bool:
        """Whether weights are kept in bfloat16, with float32 copies of those that are trained."""
        return self.config.sections.model.dtype == "bfloat16-weights"

    @property
    def sharded(self) -> bool:
        """Whether several ranks share the networks."""
        return self.dealt.ranks > 1

    @property
    def policy(self) -> NetworkSize:
        """The policy's parameters."""
        size = tracer_of(self.model).size(self.config.sections.model.policy_lora, critic=False)
        return size.in_half() if self.half_weights else size

    @property
    def critic(self) -> NetworkSize | None:
        """A full critic's parameters."""
        if self.critic_model is None:
            return None
        size = tracer_of(self.critic_model).size(self.config.sections.model.critic_lora, critic=True)
        return size.in_half(head_parameters(self.critic_model)) if self.half_weights else size

    @property
    def side(self) -> SideConfig | None:
        """A side critic's sizes; None without one."""
        model, credit = self.config.sections.model, self.algorithm.credit
        if not (isinstance(credit, Gae) and model.critic_kind == "side"):
            return None
        return side_config(
            self.model,
            self.policy.parameters,
            outputs=width(credit.head),
            layers=model.side_layers,
            share=model.side_share,
            attention=model.side_attention,
        )

    @property
    def has_reference(self) -> bool:
        """Whether the method keeps a reference policy."""
        return self.algorithm.kl.coef > 0

    @property
    def shares_base(self) -> bool:
        """Whether policy and critic, both with adapters, keep one base."""
        model = self.config.sections.model
        same = model.critic in (None, model.policy)
        apart = self.config.sections.scale.offload
        return bool(same and not apart and self.critic_model is not None and model.policy_lora and model.critic_lora)

    @property
    def offloads(self) -> bool:
        """Whether networks take turns on a device; a CPU has no other memory for those that wait."""
        return self.config.sections.scale.offload and not self.cluster.on_cpu

    @property
    def samples(self) -> int:
        """Responses of one step that are learned from."""
        return self.algorithm.sampling.samples

    def form(self, *, critic: bool = False) -> Form:
        """How a network computes."""
        model = self.config.sections.model
        layout = self.config.sections.trainer.layout
        rank = model.critic_lora if critic else model.policy_lora
        packed = layout != "padded" and tracer_of(self.model).packs
        return Form(rank, model.gradient_checkpointing, self.half, packed)

    def micro_batch(self, minibatch: int) -> tuple[Rows, int]:
        """The largest micro-batch of a minibatch's share of one rank, and how many there are."""
        rows = max(1, math.ceil(minibatch / self.dealt.ranks))
        longest = self.lengths.longest
        most = self.config.sections.trainer.micro_batch_tokens
        if self.cluster.on_cpu:
            most = min(most, CPU_TOKENS)
        fitting = max(1, min(rows, most // longest))
        return Rows(fitting, longest, self.lengths.limit), math.ceil(rows / fitting)

    def minibatch(self, *, critic: bool = False) -> int:
        """Responses of one gradient step."""
        credit = self.algorithm.credit
        if critic and isinstance(credit, Gae) and credit.critic_minibatches:
            return math.ceil(self.samples / credit.critic_minibatches)
        return min(self.samples, self.algorithm.optimization.minibatch)

    @property
    def max_logits(self) -> int:
        """Logits in one chunk of the output layer, as `most_logits` has it on the device."""
        return (
            CPU_LOGITS if self.cluster.on_cpu else max(CPU_LOGITS, int(self.cluster.device.memory) // (4 * GPU_SHARE))
        )

    @property
    def slots(self) -> int:
        """Responses that one engine decodes at once."""
        engine = self.config.sections.rollout.engine
        return max(1, min(engine.slots, math.ceil(self.samples / self.dealt.engines)))

    @property
    def sampler_bytes(self) -> int:
        """Bytes of a number in an engine's weights and cache."""
        return 2 if self.half else 4

    @property
    def vllm(self) -> VllmEngineSettings | None:
        """The settings of vLLM, where it samples."""
        engine = self.config.sections.rollout.engine
        return engine if isinstance(engine, VllmEngineSettings) else None


def cache_numbers_of(config: PreTrainedConfig) -> int:
    """Numbers that one token of one sequence has in the cache; layers without attention have none."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    attending = sum("attention" in kind and not kind.startswith("linear") for kind in kinds)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * attending * heads * size
