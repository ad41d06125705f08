"""The plan of one configuration on one cluster: sizes, memory by part and phase, times, and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedConfig

from vapo.algo.method import Gae
from vapo.bases.shipped import builtin_model
from vapo.errors import ConfigError
from vapo.models.side import config_parameters
from vapo.models.tokens import load_tokenizer
from vapo.rollout.engine_settings import TorchEngineSettings
from vapo.session.config import Config
from vapo.session.foresight import NetworkSize
from vapo.session.planning.advice import Change, changed, changes, cheapest
from vapo.session.planning.hardware import Cluster
from vapo.session.planning.phase_times import PhaseTime, Shares, concurrent, phase_times
from vapo.session.planning.published import model_config, recipe_parameters
from vapo.session.planning.rank_memory import DeviceMemory, sampling_memory, training_memory
from vapo.session.planning.traced import tracer_of
from vapo.session.planning.workload import Dealt, Lengths, Workload, dealt
from vapo.session.rendered_prompts import MEASURED
from vapo.session.sampling_room import sampling_room
from vapo.session.sizing import Fit, fitted
from vapo.tasks.catalog import DATA_TASKS
from vapo.tasks.problem_options import ProblemOptions
from vapo.tasks.registry import BUILTIN, make_task

PROMPT = 1024
"""Tokens of the longest prompt, where the data are not read."""
MEAN_SHARE = 0.5
"""The mean response, as a share of the limit, where nobody says."""


@dataclass(frozen=True)
class RunPlan:
    """What a run needs."""

    config: Config
    cluster: Cluster
    dealt: Dealt
    lengths: Lengths
    shares: Shares
    sizes: Mapping[str, int]
    """Parameters of each network."""
    training: DeviceMemory
    sampling: DeviceMemory | None
    """Of a device that only samples."""
    times: Mapping[str, PhaseTime]
    running: int
    """Responses that one engine decodes at once."""
    disk: int
    """Bytes of all checkpoints and finished models."""
    advice: Change | None
    """What makes it fit, where it does not; None too where nothing that is tried does."""
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every device has room."""
        return all(memory.fits for memory in (self.training, self.sampling) if memory is not None)

    @property
    def step_seconds(self) -> float:
        """A whole step; where engines have devices of their own and steps overlap, the longer of both."""
        times = {name: time.seconds for name, time in self.times.items()}
        if self.config.sections.trainer.max_staleness:
            rollout = times.pop("rollout")
            return max(rollout, sum(times.values()))
        return sum(times.values())

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data: bytes and seconds."""

        def device(memory: DeviceMemory) -> dict[str, Any]:
            return {
                "limit": memory.limit,
                "peak": memory.peak,
                "phase": memory.worst.value,
                "fits": memory.fits,
                "parts": {name: {p.value: size for p, size in by.items()} for name, by in memory.parts.items()},
                "host": dict(memory.host),
            }

        return {
            "cluster": self.cluster.name,
            "method": self.config.label,
            "parameters": dict(self.sizes),
            "tokens": {"prompt": self.lengths.prompt, "limit": self.lengths.limit, "mean": self.lengths.mean},
            "ranks": self.dealt.ranks,
            "engines": self.dealt.engines,
            "devices_per_engine": self.dealt.per_engine,
            "decoded_at_once": self.running,
            "disk": self.disk,
            "training_device": device(self.training),
            "sampling_device": None if self.sampling is None else device(self.sampling),
            "seconds": {name: time.seconds for name, time in self.times.items()} | {"step": self.step_seconds},
            "mfu": self.shares.mfu,
            "bandwidth_share": self.shares.bandwidth,
            "fits": self.fits,
            "change": None if self.advice is None else {**self.advice.settings, "devices": self.advice.devices},
            "notes": list(self.notes),
        }


def plan_run(
    config: Config,
    cluster: Cluster,
    *,
    offline: bool = False,
    shares: Shares | None = None,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    mean_tokens: float | None = None,
    advise: bool = True,
) -> RunPlan:
    """The plan of these settings on this cluster. Reads the models' configurations and no weights; `offline` asks no
    hub. Raises ConfigError and ModelError for what cannot be planned."""
    shares = shares or Shares()
    model, critic, notes = _models(config, offline)
    lengths, more = _lengths(config, model, prompt_tokens, response_tokens, mean_tokens)
    notes += more
    limit = lengths.limit
    config, more = fitted(
        config,
        Fit(
            config.sections.task.name,
            tracer_of(model).size(0, critic=False).parameters,
            limit,
            recipe_parameters(config, offline=offline),
        ),
    )
    work = Workload(config, model, critic, cluster, dealt(config, cluster), lengths)
    notes += [*more, *_device_notes(cluster), *_engine_notes(work)]
    training, sampling = training_memory(work), sampling_memory(work)
    sizes = {"policy": work.policy.parameters}
    if work.critic is not None:
        sizes["critic"] = work.critic.parameters
    plan = RunPlan(
        config, cluster, work.dealt, lengths, shares, sizes, training, sampling, phase_times(work, shares),
        concurrent(work), disk_bytes(work), None, tuple(notes),
    )  # fmt: skip
    if plan.fits or not advise:
        return plan

    def fits(change: Change) -> bool:
        larger = replace(cluster, nodes=cluster.nodes * change.devices)
        other = changed(config, change.settings)
        critic_model = None if other.sections.model.critic_kind == "side" else critic
        if other.sections.scale.tensor_parallel > larger.devices:
            return False
        then = Workload(other, model, critic_model, larger, dealt(other, larger), lengths)
        devices = (training_memory(then), sampling_memory(then))
        return all(memory.fits for memory in devices if memory is not None)

    several = not cluster.on_cpu
    largest = work.micro_batch(max(work.minibatch(), work.minibatch(critic=True)))[0].tokens
    possible = changes(config, lengths.longest, largest, ray=several)
    if find_spec("peft") is None:  # which puts adapters on the traced model, too
        possible = [change for change in possible if "model.policy_lora" not in change.settings]
        notes.append("adapters (model.policy_lora) are not tried, because they need peft: pip install 'vapo[lora]'")
    return replace(plan, advice=cheapest(possible, fits), notes=tuple(notes))


def disk_bytes(work: Workload) -> int:
    """Bytes of all checkpoints that are kept, one that is being written, and the finished models."""
    networks = [work.policy, *([] if work.critic is None else [work.critic])]
    if (side := work.side) is not None:
        size = config_parameters(side)
        networks.append(NetworkSize(size, size))
    reference = 4 * (work.policy.adapters or work.policy.parameters) if work.has_reference else 0
    state = sum(network.checkpoint_bytes for network in networks) + reference
    return (work.config.sections.checkpoint.keep + 1) * state + sum(4 * network.parameters for network in networks)


def _lengths(
    config: Config, model: PreTrainedConfig, prompt: int | None, limit: int | None, mean: float | None
) -> tuple[Lengths, list[str]]:
    """Lengths of prompts and responses: those given, chosen or known, else assumed ones that fit the model's context,
    with a note on each assumption. ConfigError where the known ones exceed it."""
    room, notes = sampling_room(model, config.sections.rollout.engine), []
    context = None if room is None else room.tokens
    limit = limit or _known_limit(config)
    prompt = prompt or _known_prompt(config)
    if limit is None:
        limit = ProblemOptions.max_response_tokens
        if context is not None:
            limit = min(limit, context // 2)
        notes.append(
            f"responses are taken to have up to {limit:,} tokens, since the task is not made: set "
            "rollout.max_response_tokens"
        )
    if prompt is None:
        prompt = PROMPT if context is None else max(1, min(PROMPT, context - limit))
        notes.append(f"prompts are taken to have up to {prompt:,} tokens: say --prompt-tokens for others")
    if room is not None and prompt + limit > room.tokens:
        raise ConfigError(
            f"Prompts of {prompt:,} and responses of {limit:,} tokens exceed {room.name} of {room.tokens:,}. "
            f"Set rollout.max_response_tokens to {max(1, room.tokens - prompt):,} or less."
        )
    if mean is None:
        mean = MEAN_SHARE * limit
        notes.append(f"responses are taken to have {mean:,.0f} tokens on average, half of the limit")
    return Lengths(prompt, limit, min(float(limit), mean)), notes


def _known_limit(config: Config) -> int | None:
    """The most tokens of a response, where settings or the task's options say it."""
    chosen, task = config.sections.rollout.max_response_tokens, config.sections.task
    if chosen is not None:
        return chosen
    if task.name in BUILTIN:
        return make_task(task.name, **task.options).max_response_tokens
    if task.name in DATA_TASKS:
        options = {**DATA_TASKS[task.name][1], **task.options}
        return int(options.get("max_response_tokens", ProblemOptions.max_response_tokens))
    return None


def _models(config: Config, offline: bool) -> tuple[PreTrainedConfig, PreTrainedConfig | None, list[str]]:
    """Configurations of policy and full critic, and where they are from."""
    model, task = config.sections.model, config.sections.task
    if model.policy == "builtin":
        options = make_task(task.name, **task.options).options if task.name in BUILTIN else None
        source = str(builtin_model(task.name, options))
    else:
        source = model.policy
    policy, origin = model_config(source, offline=offline, trust_remote_code=model.trust_remote_code)
    notes = [f"policy: {origin}"] if origin != source else []
    if not isinstance(config.algorithm.credit, Gae) or model.critic_kind == "side":
        return policy, None, notes
    critic = policy
    if model.critic is not None:
        critic, _ = model_config(model.critic, offline=offline, trust_remote_code=model.trust_remote_code)
    return policy, critic, notes


def _known_prompt(config: Config) -> int | None:
    """Tokens of the longest prompt of a built-in task and its model; None for others, whose data are not read."""
    task = config.sections.task
    if task.name not in BUILTIN or config.sections.model.policy != "builtin":
        return None
    made = make_task(task.name, **task.options)
    tokenizer = load_tokenizer(builtin_model(task.name, made.options))
    texts = [made.train[i].text for i in range(min(MEASURED, len(made.train)))]
    return max(len(tokenizer(text)["input_ids"]) for text in texts if isinstance(text, str))


def _device_notes(cluster: Cluster) -> list[str]:
    """Notes on how far the times of this device can be trusted."""
    if cluster.on_cpu:
        return ["times count arithmetic and bytes alone; a small model on a CPU takes several times as long"]
    if (known := cluster.device.rates_of) is None:
        return []
    return [f"rates of {known} are assumed for {cluster.device.name}: give --cluster for those of another device"]


def _engine_notes(work: Workload) -> list[str]:
    """What about the rollout engine does not fit the model or the cluster."""
    engine = work.config.sections.rollout.engine
    notes = []
    if isinstance(engine, TorchEngineSettings) and not tracer_of(work.model).packs:
        notes.append("rollout.engine=torch refuses models with layers that do not attend: take generate or vllm")
    if work.vllm is not None and not work.cluster.on_cpu:
        room = work.vllm.memory_share * work.cluster.device.memory * work.dealt.per_engine
        weights = work.sampler_bytes * work.policy.parameters
        if weights > room:
            notes.append(
                f"vLLM's share of the GPUs ({room / 1e9:.0f} GB for an engine) does not hold the policy's "
                f"{weights / 1e9:.0f} GB: raise rollout.engine.memory_share or scale.tensor_parallel"
            )
    return notes
