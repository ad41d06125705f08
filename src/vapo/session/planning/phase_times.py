"""Seconds of each phase of a step: floating-point operations over the device's rate, or bytes over its bandwidth.

Shares of the data sheet's rates are assumptions, one for computing (MFU) and one for reading memory while sampling;
both can be set. Fetching layers (FSDP2) runs beside computing, so the slower of both counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vapo.models.model_flops import ModelFlops
from vapo.session.planning.rank_memory import Phase
from vapo.session.planning.traced import tracer_of
from vapo.session.planning.workload import Workload, cache_numbers_of
from vapo.trainer.updates import LEAST_PROBED, PROBED, targets_need_no_values


@dataclass(frozen=True)
class Shares:
    """What is reached of the data sheet."""

    mfu: float = 0.35
    """Of the rate, in scoring and updates."""
    bandwidth: float = 0.6
    """Of the memory's bandwidth, while sampling."""


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase, and what they are bound by."""

    seconds: float
    bound: str


def phase_times(work: Workload, shares: Shares) -> dict[str, PhaseTime]:
    """Seconds of every phase of a joint step, in order; sampling at the mean length."""
    flops = tracer_of(work.model).flops
    times = {Phase.ROLLOUT.value: _rollout(work, flops, shares)}
    length, responses = work.lengths.prompt + work.lengths.mean, work.lengths.mean
    times[Phase.SCORE.value] = _scoring(work, shares, length, responses)
    passes = work.algorithm.optimization.epochs
    again = 2 * flops.body * length * work.samples if work.config.sections.model.gradient_checkpointing else 0.0
    if work.critic_model is not None:
        critic = tracer_of(work.critic_model).critic_flops
        updates = passes * _updates(work)
        amount = updates * (_update(critic, length, responses, work.samples) + again)
        times[Phase.CRITIC.value] = _pass(work, shares, amount, 3 * updates, critic=True)
    elif work.side is not None:  # it costs what the policy's states cost, where they are not kept
        times[Phase.CRITIC.value] = _pass(work, shares, _score(flops, length, responses, work.samples), 1)
    amount = passes * (_update(flops, length, responses, work.samples) + again)
    times[Phase.POLICY.value] = _pass(work, shares, amount, 3 * passes)
    times["hand-over"] = PhaseTime(work.sampler_bytes * work.policy.parameters / work.cluster.link, "link")
    return times


def _scoring(work: Workload, shares: Shares, length: float, responses: float) -> PhaseTime:
    """Seconds until policy, reference and critic have scored what the updates read."""
    flops = tracer_of(work.model).flops
    rows = policy_rows(work) + (work.samples if work.has_reference else 0)
    found = _pass(work, shares, _score(flops, length, responses, rows), rows / work.samples)
    if work.critic_model is None:
        return found
    critic, rows = tracer_of(work.critic_model).critic_flops, critic_rows(work)
    more = _pass(work, shares, _score(critic, length, responses, rows), rows / work.samples, critic=True)
    return PhaseTime(found.seconds + more.seconds, max(found, more, key=lambda part: part.seconds).bound)


def policy_rows(work: Workload) -> int:
    """Responses that the policy scores: some to see that an exact engine's numbers are its own, else all."""
    sections = work.config.sections
    exact = sections.rollout.engine.exact and not work.half and not sections.trainer.max_staleness
    if sections.trainer.scoring == "needed" and exact and work.side is None:
        return min(work.samples, max(LEAST_PROBED, work.samples // PROBED))
    return work.samples


def critic_rows(work: Workload) -> int:
    """Responses that the critic scores: all, but for a first minibatch whose values its update tells."""
    if work.config.sections.trainer.scoring == "needed" and targets_need_no_values(work.algorithm):
        return work.samples - work.minibatch(critic=True)
    return work.samples


def _updates(work: Workload) -> int:
    credit = work.algorithm.credit
    return getattr(credit, "critic_updates", 1)


def _score(flops: ModelFlops, length: float, responses: float, samples: int) -> float:
    return samples * flops.score([round(length)], round(responses))


def _update(flops: ModelFlops, length: float, responses: float, samples: int) -> float:
    return samples * flops.update([round(length)], round(responses))


def _pass(work: Workload, shares: Shares, flops: float, fetches: float, *, critic: bool = False) -> PhaseTime:
    """Seconds of a pass over the step's responses, dealt out to the ranks; `fetches` gathers of all weights for each
    micro-batch."""
    device, ranks = work.cluster.device, work.dealt.ranks
    rate = device.rate * (1.0 if work.cluster.on_cpu else shares.mfu)
    computing = flops / ranks / rate
    if ranks == 1:
        return PhaseTime(computing, "rate")
    minibatch = work.minibatch(critic=critic)
    batches = work.micro_batch(minibatch)[1] * math.ceil(work.samples / minibatch)
    size = work.critic.parameters if critic and work.critic else work.policy.parameters
    fetching = batches * fetches * 4 * size / work.cluster.link
    return PhaseTime(max(computing, fetching), "rate" if computing >= fetching else "link")


def _rollout(work: Workload, flops: ModelFlops, shares: Shares) -> PhaseTime:
    """Seconds until all responses are sampled. Engines refill their slots, so a step of one engine decodes `running`
    responses; it reads all weights, and the cache of each at half of its length."""
    each = math.ceil(work.samples / work.dealt.engines)
    running = min(each, concurrent(work))
    devices, sheet = work.dealt.per_engine, work.cluster.device
    weights = work.sampler_bytes * (flops.body + flops.head)
    cache = work.sampler_bytes * cache_numbers_of(work.model) * (work.lengths.prompt + work.lengths.mean / 2)
    share = 1.0 if work.cluster.on_cpu else shares.bandwidth
    reading = (weights + running * cache) / (devices * sheet.bandwidth * share)
    rate = sheet.rate * (1.0 if work.cluster.on_cpu else shares.mfu)
    computing = running * 2 * (flops.body + flops.head) / (devices * rate)
    steps = work.lengths.mean * each / running
    prompts = work.samples / work.algorithm.sampling.per_prompt / work.dealt.engines
    prefill = prompts * flops.score([work.lengths.prompt], 0) / (devices * rate)
    bound = "bandwidth" if reading >= computing else "rate"
    return PhaseTime(prefill + steps * max(reading, computing), bound)


def concurrent(work: Workload) -> int:
    """Responses that an engine has room for at the mean length: its slots, or what vLLM's share of memory holds."""
    vllm = work.vllm
    if vllm is None or work.cluster.on_cpu:
        return work.slots
    room = vllm.memory_share * work.cluster.device.memory * work.dealt.per_engine
    room -= work.sampler_bytes * work.policy.parameters
    each = work.sampler_bytes * cache_numbers_of(work.model) * (work.lengths.prompt + work.lengths.mean)
    return max(1, min(work.slots, int(room / max(1.0, each))))
