"""Estimates of what a run needs, reported before it starts: tokens, time, memory, disk.

Arithmetic gives bounds before weights load. The evaluation before training gives a speed, and the first step of each
phase a time.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from vapo.algo.head_ranges import width
from vapo.algo.method import Gae
from vapo.errors import counted
from vapo.metrics import EvaluationLabel, Phase
from vapo.models.backbone import backbone_of
from vapo.models.placing import best_device
from vapo.models.pretrained import load_config, skeleton
from vapo.models.side import config_parameters, side_config
from vapo.reports.formatting import duration, short_count
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.rollout.vllm_engine import check_room
from vapo.session.config import Config
from vapo.session.inputs import Inputs
from vapo.trainer.observer import Observer
from vapo.trainer.record import BYTES_PER_TOKEN
from vapo.trainer.settings import EvaluationSettings

MANY_TOKENS = 10_000_000
"""Tokens of one step above which a run says so at once."""
LONG_S = 24 * 3600
"""Seconds of a whole run at the machine's best speed above which it says so at once: a day."""
OPERATIONS_PER_S = {"cpu": 1e11, "cuda": 1e15}
"""What a core, and a GPU, does at most: a run never takes less time than this allows."""


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network, adapters included, and how many of them are trained.

    `adapters` of them are all that a checkpoint keeps of a network with adapters; None for one without.
    """

    parameters: int
    trained: int
    adapters: int | None = None
    masters: int | None = None
    """How many of the trained ones have a float32 copy beside them in bfloat16; None where all weights are float32."""

    def in_half(self, head: int = 0) -> NetworkSize:
        """The same under model.dtype=bfloat16-weights, with a `head` of so many float32 parameters."""
        return replace(self, masters=max(0, self.trained - head))

    @property
    def weight_bytes(self) -> int:
        """Float32 weights, or those in bfloat16 and the float32 copies of the trained ones."""
        if self.masters is None:
            return 4 * self.parameters
        return 2 * (self.parameters - self.trained + self.masters) + 4 * self.trained

    @property
    def checkpoint_bytes(self) -> int:
        """Float32 weights, or the adapters alone, two moments of what is trained, and the copies that it has."""
        kept = self.parameters if self.adapters is None else self.adapters
        return 4 * (kept + 2 * self.trained + (self.masters or 0))


def memory_bytes(
    networks: Sequence[NetworkSize], *, sampler_parameters: int, cache_numbers: int, sampler_bytes: int
) -> int:
    """What a run keeps in memory: weights, float32 gradients and two moments of its networks; the rollout engine's
    copy of the policy and its cache, `sampler_bytes` a number. Activations come on top.
    """
    learning = sum(network.weight_bytes + 12 * network.trained for network in networks)
    return learning + sampler_bytes * (sampler_parameters + cache_numbers)


def cache_numbers(config: PreTrainedConfig, slots: int, tokens: int) -> int:
    """Numbers in the keys and values of `slots` sequences of so many tokens; 0 where the configuration names no sizes.

    A bound: windows, and layers without attention, take less.
    """
    text = config.get_text_config()
    try:
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return slots * tokens * text.num_hidden_layers * heads * size * 2
    except (AttributeError, TypeError):
        return 0


def network_size(config: PreTrainedConfig, rank: int, *, critic: bool) -> NetworkSize:
    """A policy, or a critic with its backbone, as it is trained: all of it, or adapters of this rank and the head.

    Zeros where the model cannot be built without its weights.
    """
    model = skeleton(config)
    if model is None:
        return NetworkSize(0, 0)
    backbone = backbone_of(model)
    head = head_parameters(config) if critic else 0
    whole = backbone.num_parameters() + head if critic else model.num_parameters()
    if rank == 0:
        return NetworkSize(whole, whole)
    linear = [module for module in backbone.modules() if isinstance(module, torch.nn.Linear)]
    adapters = sum(rank * (layer.in_features + layer.out_features) for layer in linear)
    return NetworkSize(whole + adapters, adapters + head, adapters + head)


def head_parameters(config: PreTrainedConfig) -> int:
    """Of a linear value head."""
    return config.get_text_config().hidden_size + 1


@dataclass(frozen=True)
class Plan:
    """A run's sizes."""

    responses: int
    """Of one step."""
    rounds: int
    """How often a step may sample so many: dynamic sampling does it again."""
    max_tokens: int
    pretraining_steps: int
    steps: int
    evaluation: EvaluationSettings
    operations_per_token: int
    memory: int
    """Bytes, without activations; 0 where the model's size is not known."""
    checkpoints: int
    """Bytes of all checkpoints and finished models on disk."""

    @property
    def step_tokens(self) -> int:
        """The most tokens that one step samples."""
        return self.responses * self.rounds * self.max_tokens

    @property
    def all_steps(self) -> int:
        """Steps of both phases."""
        return self.pretraining_steps + self.steps

    def evaluations_after(self, step: int) -> float:
        """Evaluations that follow joint step `step`, in sizes of the first one."""
        if self.steps == 0:
            return 0.0
        every = self.evaluation.every
        between = (self.steps - 1) // every - step // every if every else 0
        last = self.evaluation.final_samples_per_prompt or self.evaluation.samples_per_prompt
        return max(0, between) + last / self.evaluation.samples_per_prompt

    def least_seconds(self, operations_per_s: float) -> float:
        """What all steps take at this speed if every response reaches the limit; evaluations come on top."""
        return self.all_steps * self.step_tokens * self.operations_per_token / operations_per_s

    def step_words(self) -> str:
        """What a step samples."""
        again = f", {self.rounds:,} times at most," if self.rounds > 1 else ""
        return (
            f"a step samples {counted(self.responses, 'response')}{again} of up to {counted(self.max_tokens, 'token')}"
        )

    def size_words(self) -> str:
        """Memory and disk."""
        memory = f"memory about {_bytes(self.memory)} for networks and cache" if self.memory else "memory not known"
        return f"{memory}; checkpoints and models {_bytes(self.checkpoints)}"


def plan_of(config: Config, inputs: Inputs) -> Plan:
    """The sizes of the run that these settings and inputs make; no weights are read."""
    sections, algorithm = config.sections, config.algorithm
    model, credit = sections.model, algorithm.credit
    policy_config = load_config(inputs.policy_source, trust_remote_code=model.trust_remote_code)
    half = model.dtype == "bfloat16-weights"
    policy = network_size(policy_config, model.policy_lora, critic=False)
    learners = [policy.in_half() if half else policy]
    if isinstance(credit, Gae) and model.critic_kind == "side":
        side = side_config(
            policy_config,
            inputs.parameters,
            layers=model.side_layers,
            outputs=width(credit.head),
            share=model.side_share,
            attention=model.side_attention,
        )
        parameters = config_parameters(side)
        learners.append(NetworkSize(parameters, parameters))
    elif isinstance(credit, Gae):
        critic_config = load_config(inputs.critic_source, trust_remote_code=model.trust_remote_code)
        critic = network_size(critic_config, model.critic_lora, critic=True)
        learners.append(critic.in_half(head_parameters(critic_config)) if half else critic)
    shared = _shared_parameters(config, inputs, learners)
    fixed = NetworkSize(inputs.parameters, 0, learners[0].adapters, masters=0 if half else None)
    reference = [fixed] if algorithm.kl.coef > 0 else []
    engine = sections.rollout.engine
    apart = isinstance(engine, VllmEngineSettings)  # its weights and cache are in another process
    limit = inputs.decoding.max_tokens
    longest = inputs.train_prompts.longest() + limit
    networks = [*learners, *reference]
    waiting = BYTES_PER_TOKEN * sections.trainer.max_staleness * algorithm.sampling.samples * limit
    saved = (sections.checkpoint.keep + 1) * (waiting + sum(network.checkpoint_bytes for network in networks))
    return Plan(
        responses=algorithm.sampling.samples,
        rounds=1 + algorithm.sampling.refill_rounds,
        max_tokens=limit,
        pretraining_steps=credit.pretraining_steps if isinstance(credit, Gae) else 0,
        steps=sections.trainer.steps,
        evaluation=sections.evaluation,
        # a forward pass takes 2 operations a parameter, a backward pass 4: sampling, then scoring and learning
        operations_per_token=2 * inputs.parameters + sum(8 * network.parameters for network in learners),
        memory=memory_bytes(
            networks,
            sampler_parameters=0 if apart else inputs.parameters,
            cache_numbers=0 if apart else cache_numbers(policy_config, engine.slots, longest),
            sampler_bytes=2 if model.half else 4,
        )
        - 4 * shared
        if inputs.parameters
        else 0,
        checkpoints=saved + sum(4 * network.parameters for network in learners),
    )


def _shared_parameters(config: Config, inputs: Inputs, learners: Sequence[NetworkSize]) -> int:
    """Fixed weights that policy and critic keep once: both have adapters, on one base."""
    model = config.sections.model
    one_base = inputs.critic_source == inputs.policy_source and model.policy_lora > 0 and model.critic_lora > 0
    if not (one_base and config.algorithm.has_critic):
        return 0
    return min(learner.parameters - learner.trained for learner in learners)


def free_memory(device: torch.device) -> int | None:
    """Bytes of free memory on the device; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def report_size(plan: Plan, observer: Observer, *, free_disk: int, free: int | None, operations_per_s: float) -> None:
    """Report, before weights load, sizes beyond those of usual runs or beyond the machine's."""
    least = plan.least_seconds(operations_per_s)
    if plan.step_tokens > MANY_TOKENS or least > LONG_S:
        observer.note(
            f"{plan.step_words()}, {short_count(plan.step_tokens)} in all; {counted(plan.all_steps, 'such step')} take "
            f"{_long(least)} or more on this machine where responses reach the limit. Fewer: "
            "trainer.samples_per_step, rollout.max_response_tokens, trainer.steps"
        )
    if plan.checkpoints > free_disk / 2:
        observer.note(
            f"checkpoints and models take about {_bytes(plan.checkpoints)}, and {_bytes(free_disk)} are free on the "
            "disk. Less: checkpoint.keep, model.policy_lora"
        )
    if free is not None and plan.memory > free:
        observer.alarm(
            f"Networks and cache need about {_bytes(plan.memory)}, activations come on top, and {_bytes(free)} of "
            "memory are free: the run may be killed. Adapters (model.policy_lora, model.critic_lora), a side critic "
            "(model.critic_kind=side), smaller pieces (rollout.engine.slots, trainer.micro_batch_tokens) and "
            "model.dtype=bfloat16 take less."
        )


def foresee(config: Config, inputs: Inputs, run_dir: Path, observer: Observer) -> Observer:
    """Report the sizes that are known before the run; the returned observer adds times once measured."""
    plan = plan_of(config, inputs)
    device = best_device()
    engine = config.sections.rollout.engine
    if isinstance(engine, VllmEngineSettings) and device.type == "cuda":
        check_room(engine.memory_share, taken=plan.memory, total=torch.cuda.mem_get_info(device)[1])
    parent = next(path for path in [run_dir, *run_dir.absolute().parents] if path.exists())
    units = (os.cpu_count() or 1) if device.type == "cpu" else 1
    report_size(
        plan,
        observer,
        free_disk=shutil.disk_usage(parent).free,
        free=free_memory(device),
        operations_per_s=units * OPERATIONS_PER_S[device.type],
    )
    return Forecaster(plan, observer)


class Forecaster:
    """Passes everything to another observer, and adds estimates of the time left once a speed has been measured."""

    def __init__(self, plan: Plan, observer: Observer) -> None:
        self._plan, self._observer = plan, observer
        self._evaluation_s = math.nan
        """Seconds of the first evaluation, which the others resemble; nan before it."""
        self._sizes_reported = False
        self._measured: set[str] = set()

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`."""
        self._observer.phase(name, done, total)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self._observer.progress(what, done, total)

    def note(self, message: str) -> None:
        """See `Observer`."""
        self._observer.note(message)

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self._observer.alarm(message)

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`; after the evaluation before training, the time of all steps at its speed."""
        self._observer.evaluation(result)
        if result["label"] != EvaluationLabel.BEFORE:
            return
        self._evaluation_s = result["time/evaluate"]
        sampled = result["prompts"] * result["k"]
        speed = sampled * result["mean_length"] / max(self._evaluation_s, 1e-9)
        each = self._evaluation_s * self._plan.responses / sampled
        whole = self._plan.all_steps * each + self._plan.evaluations_after(0) * self._evaluation_s
        self._sizes_reported = True
        self._observer.note(
            f"{self._plan.step_words()}, about {duration(each)} at the measured {short_count(speed)} tokens/s; "
            f"{counted(self._plan.all_steps, 'step')} and the evaluations: about {duration(whole)}, and learning comes "
            f"on top; {self._plan.size_words()}"
        )

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`; after a phase's first step, the time of the steps left at its speed."""
        self._observer.step(metrics)
        phase, plan = str(metrics["phase"]), self._plan
        if phase in self._measured:
            return
        self._measured.add(phase)
        pretraining = phase == Phase.PRETRAIN
        joint = 0 if pretraining else metrics["step"]
        left = plan.steps - joint + (plan.pretraining_steps - metrics["step"] if pretraining else 0)
        if left <= 0:
            return
        evaluations = 0.0 if math.isnan(self._evaluation_s) else plan.evaluations_after(joint) * self._evaluation_s
        sizes = "" if self._sizes_reported else f"; {plan.step_words()}; {plan.size_words()}"
        self._sizes_reported = True
        self._observer.note(
            f"the first step of {Phase(phase).words} took {duration(metrics['step_time'])}: about "
            f"{duration(left * metrics['step_time'] + evaluations)} for the {counted(left, 'step')} left"
            + (" and the evaluations" if evaluations else "")
            + sizes
        )


def _long(seconds: float) -> str:
    """A duration, in days where it has several."""
    return duration(seconds) if seconds < 3 * LONG_S else f"{seconds / LONG_S:.0f} days"


def _bytes(count: float) -> str:
    """1.2 GB, 35 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
