"""Bytes of each part of one device, and which parts are there at the same time.

Weights are float32 masters with float32 gradients and two float32 moments of AdamW: 16 bytes for each trained
parameter, 18 where passes read a bfloat16 copy (model.dtype=bfloat16-weights). With several ranks each has its share of
these (FSDP2), and gathers the layers that it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from vapo.algo.method import Gae
from vapo.models.side import config_parameters
from vapo.rollout.kv_cache import attention_width, round_up
from vapo.rollout.row_counts import ROW_BUCKET
from vapo.session.build import KEPT_SHARE
from vapo.session.foresight import NetworkSize
from vapo.session.planning.traced import Pass, Rows, tracer_of
from vapo.session.planning.workload import Workload, cache_numbers_of

CONTEXT = 1.5e9
"""Bytes of a GPU that no tensor has: the CUDA context and the buffers of NCCL. An assumption."""
FRAGMENTS = 0.05
"""Share of a GPU's memory that the allocator cannot use. An assumption."""
FRAGMENTS_CPU = 0.33
"""Share of a CPU's memory that glibc may hold in freed blocks: half as much as tensors take was measured
(benchmarks/plan_memory.md)."""
GATHERED = 2
"""Layers that are gathered at once: FSDP2 fetches the next one while it computes one."""
PREFILL = 8192
"""Prompt tokens that an engine reads at once."""
BATCH_BYTES = 12 * 4 + 70
"""What a step keeps for each token of its responses, on the host: a dozen columns of the batch, and the sampler's
tokens and log-probabilities as Python objects."""


Add = Callable[[str, float, "list[Phase]"], None]
"""Adds a part, its bytes, and the phases in which it is there."""


class Phase(StrEnum):
    """What a step does, one after the other."""

    PRETRAIN = "value pretraining"
    ROLLOUT = "rollout"
    SCORE = "score"
    CRITIC = "update critic"
    POLICY = "update policy"


@dataclass(frozen=True)
class DeviceMemory:
    """The parts of one device, in bytes, by the phases in which they are there."""

    parts: Mapping[str, Mapping[Phase, float]]
    limit: float
    """What the device has for them."""
    host: Mapping[str, float] = field(default_factory=dict)
    """What hidden states take of the host's memory, where they do not lie on the device."""

    def total(self, phase: Phase) -> float:
        """All parts of a phase."""
        return sum(by_phase.get(phase, 0.0) for by_phase in self.parts.values())

    @property
    def phases(self) -> list[Phase]:
        """Those in which anything is there, in order."""
        return [phase for phase in Phase if any(phase in by_phase for by_phase in self.parts.values())]

    @property
    def worst(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        """The most at once."""
        return self.total(self.worst)

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return self.peak <= self.limit

    def at_peak(self) -> dict[str, float]:
        """The parts of the worst phase, largest first."""
        parts = {name: by_phase[self.worst] for name, by_phase in self.parts.items() if self.worst in by_phase}
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


def training_memory(work: Workload) -> DeviceMemory:
    """One training rank, with its rollout engine where both take turns on a device."""
    phases = _phases(work)
    learning = [phase for phase in phases if phase is not Phase.ROLLOUT]
    parts: dict[str, dict[Phase, float]] = {}

    def add(name: str, size: float, during: list[Phase]) -> None:
        if size:
            parts.setdefault(name, {}).update(dict.fromkeys(during, size))

    shared = _shared(work)
    critic_phases = [phase for phase in phases if phase in (Phase.PRETRAIN, Phase.CRITIC)]
    scores = [Phase.SCORE, Phase.POLICY]
    # where they take turns, the policy is what scoring needs most for; a side critic reads it while it learns
    there = phases if not work.offloads else [*critic_phases, *scores] if work.side else scores
    _add_network(work, add, "policy", work.policy, there, [Phase.POLICY], _policy_pass(work))
    if work.critic is not None:
        own = replace(work.critic, parameters=work.critic.parameters - shared)
        there = critic_phases if work.offloads else phases
        _add_network(work, add, "critic", own, there, critic_phases, _critic_pass(work))
    if (side := work.side) is not None:
        size = config_parameters(side)
        there = critic_phases if work.offloads else phases
        _add_network(work, add, "side critic", NetworkSize(size, size), there, critic_phases, _side_pass(work))
    if work.has_reference and not work.offloads:
        add("reference weights", _reference_bytes(work) / work.dealt.ranks, phases)
    tracer, rows = tracer_of(work.model), work.micro_batch(work.samples)[0]
    scored = tracer.score(rows, work.form(), max_logits=work.max_logits)
    add("policy activations", max(scored.body, scored.kept), [Phase.SCORE])
    add("logits", max(0.0, scored.peak - max(scored.body, scored.kept)), [Phase.SCORE])
    if work.sharded:
        add("gathered layers", _gathered(work, with_gradient=False), [Phase.SCORE])
        updates = [phase for phase in learning if phase is not Phase.SCORE]
        add("gathered layers", _gathered(work, with_gradient=True), updates)
    if work.dealt.colocated:
        overlap = phases if work.config.sections.trainer.max_staleness else [Phase.ROLLOUT]
        for name, size, stays in _engine(work):
            add(name, size, phases if stays else overlap)
    host = _host(work)
    if work.cluster.on_cpu:
        for name, (size, during) in host.items():
            add(name, size, [phase for phase in during if phase in phases])
        host = {}
    return DeviceMemory(parts, usable(work), {name: size for name, (size, _) in host.items()})


def _phases(work: Workload) -> list[Phase]:
    """The phases that the method has. Value pretraining counts where it keeps hidden states; else it takes less than
    the critic's update does later."""
    left_out = set() if work.critic or work.side else {Phase.CRITIC}
    if not _pretraining_states(work):
        left_out.add(Phase.PRETRAIN)
    return [phase for phase in Phase if phase not in left_out]


def sampling_memory(work: Workload) -> DeviceMemory | None:
    """One device that only samples; None where engines take turns with training ranks."""
    if work.dealt.colocated:
        return None
    parts = {name: {Phase.ROLLOUT: size} for name, size, _ in _engine(work) if size}
    return DeviceMemory(parts, usable(work))


def usable(work: Workload) -> float:
    """Bytes that tensors may take of a device; ranks on CPUs share the machine's memory."""
    memory = work.cluster.device.memory
    if work.cluster.on_cpu:
        return memory * (1 - FRAGMENTS_CPU) / work.dealt.ranks
    return memory * (1 - FRAGMENTS) - CONTEXT


def _add_network(
    work: Workload, add: Add, name: str, size: NetworkSize, phases: list[Phase], own: list[Phase], working: Pass
) -> None:
    """Add a network that learns in its `own` phases."""
    ranks = work.dealt.ranks
    add(f"{name} weights", size.weight_bytes / ranks, phases)
    # the policy's moments are made in its first update, after value pretraining
    begun = [phase for phase in phases if phase is not Phase.PRETRAIN or Phase.CRITIC in own]
    add(f"{name} optimizer", 8 * size.trained / ranks, begun)
    add(f"{name} gradients", 4 * size.trained / ranks, own)
    body = max(working.body, working.kept)
    add(f"{name} activations", body, own)
    add("logits", max(0.0, working.peak - body), own)


def _reference_bytes(work: Workload) -> int:
    """Of the weights of a reference, which is not trained."""
    return (2 if work.half_weights else 4) * work.policy.parameters


def _policy_pass(work: Workload) -> Pass:
    rows, count = work.micro_batch(work.minibatch())
    traced = tracer_of(work.model).update(rows, work.form(), max_logits=work.max_logits)
    if count > 1 or work.sharded:
        return traced
    text = work.model.get_text_config()
    head = 0 if work.config.sections.model.policy_lora else 4 * text.vocab_size * text.hidden_size
    return _single(traced, 4.0 * work.policy.trained, head)


def _critic_pass(work: Workload) -> Pass:
    assert work.critic_model is not None
    assert work.critic is not None
    rows, count = work.micro_batch(work.minibatch(critic=True))
    traced = tracer_of(work.critic_model).update(rows, work.form(critic=True), max_logits=None)
    return traced if count > 1 or work.sharded else _single(traced, 4.0 * work.critic.trained, 0)


def _side_pass(work: Workload) -> Pass:
    side = work.side
    assert side is not None
    rows, _ = work.micro_batch(work.minibatch(critic=True))
    return tracer_of(work.model).side(side, rows, work.form(), kept=bool(_kept_states(work)))


def _single(traced: Pass, gradients: float, head: float) -> Pass:
    """A minibatch of one micro-batch: its gradients grow while what the forward pass kept is freed, so the most is at
    the beginning of the backward pass, with the output layer's gradient alone (`head` bytes), or at its end. Whole
    gradients are counted elsewhere, so that much less is left for activations."""
    begin = max(traced.kept + traced.output, traced.body + head) - gradients
    most = max(begin, traced.body - traced.kept, 0.0)
    return Pass(most, most, 0.0)


def _shared(work: Workload) -> int:
    """Fixed weights that policy and critic keep once."""
    if not work.shares_base or work.critic is None:
        return 0
    return min(size.parameters - size.trained for size in (work.policy, work.critic))


def _gathered(work: Workload, *, with_gradient: bool) -> float:
    """The float32 layers that a rank holds whole: those that it computes, and embeddings and output layer. Their
    gradient is whole, too, until it is dealt out."""
    layer, rest = tracer_of(work.model).layer_parameters
    return 4 * (GATHERED * layer + rest) + (4 * (layer + rest) if with_gradient else 0)


def _engine(work: Workload) -> list[tuple[str, float, bool]]:
    """(part, bytes of one device, whether it stays while the trainer learns) of a rollout engine."""
    numbers, weights = cache_numbers_of(work.model), work.policy.parameters
    if (vllm := work.vllm) is not None:
        if work.cluster.on_cpu:
            return [
                ("sampler weights", work.sampler_bytes * weights, True),
                ("KV cache", vllm.cache_gb * 2**30, True),
            ]
        # its share, or what it needs at least: its weights, and one response of full length
        response = work.sampler_bytes * numbers * work.lengths.longest
        least = (work.sampler_bytes * weights + response) / work.dealt.per_engine
        size = max(least, vllm.memory_share * work.cluster.device.memory)
        return [("vLLM (weights, KV cache)", size, not vllm.sleep)]
    rows = round_up(work.config.sections.rollout.engine.slots, ROW_BUCKET)
    columns = attention_width(work.lengths.longest)
    cache = (rows + 1) * columns * numbers * work.sampler_bytes
    # tokens, log-probabilities and uniforms of every row, and an attention mask
    buffers = rows * (20 * work.lengths.limit + work.sampler_bytes * columns)
    vocabulary = work.model.get_text_config().vocab_size
    # logits, log-probabilities, weights and their padded copy in float32, beside the model's own logits in bfloat16
    logits = work.slots * vocabulary * (16 + (2 if work.half else 0))
    prompt = max(1, work.lengths.prompt)
    together = Rows(max(1, min(work.slots, PREFILL // prompt)), prompt, 0)
    read = tracer_of(work.model).score(together, replace(work.form(), rank=0), max_logits=None).body
    shared = work.dealt.per_engine
    return [
        ("sampler weights", work.sampler_bytes * weights / shared, True),
        ("KV cache", cache / shared, True),
        ("sampler buffers", buffers, False),
        ("sampling", max(logits, read), False),
    ]


def kept_states_bytes(work: Workload) -> float:
    """Bytes of the hidden states that a side critic reads, of a whole step at full length."""
    side = work.side
    if side is None:
        return 0.0
    return 4.0 * work.samples * work.lengths.longest * len(side.policy_layers or ()) * side.policy_width


def _kept_states(work: Workload) -> float:
    """The same where they are kept from scoring to the critic's update; 0 where they are computed again."""
    size = kept_states_bytes(work)
    return size if size < KEPT_SHARE * host_memory(work) else 0.0


def _pretraining_states(work: Workload) -> float:
    """Bytes of the hidden states that value pretraining keeps for its replays."""
    credit, again = work.algorithm.credit, work.config.sections.trainer.pretraining_passes > 1
    if not isinstance(credit, Gae) or not _kept_states(work) or not (again or credit.critic_updates > 1):
        return 0.0
    return min(KEPT_SHARE * host_memory(work), credit.pretraining_steps * kept_states_bytes(work))


def host_memory(work: Workload) -> float:
    """Bytes of a machine's own memory: on GPU machines taken as that of all its GPUs together."""
    cluster = work.cluster
    return cluster.device.memory * (1 if cluster.on_cpu else cluster.per_node)


def _host(work: Workload) -> dict[str, tuple[float, list[Phase]]]:
    """What lies in the host's memory, and when."""
    learning = [Phase.SCORE, Phase.CRITIC, Phase.POLICY]
    found = {"batch": (float(BATCH_BYTES * work.samples * work.lengths.longest), learning)}
    if work.offloads:
        sizes = [size for size in (work.policy, work.critic) if size is not None]
        waiting = sum(size.weight_bytes + 8 * size.trained for size in sizes)
        waiting += _reference_bytes(work) if work.has_reference else 0
        # all of them, of all devices of a machine, while its engines sample
        found["networks that wait"] = (waiting * work.cluster.per_node / work.dealt.ranks, learning)
    if states := _kept_states(work):
        found["kept hidden states"] = (states, [Phase.SCORE, Phase.CRITIC])
    if states := _pretraining_states(work):
        found["hidden states of value pretraining"] = (states, [Phase.PRETRAIN])
    return found
