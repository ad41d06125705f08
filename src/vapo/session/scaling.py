"""From the settings of `scale` to processes on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from vapo.errors import ConfigError, counted
from vapo.models.placing import num_threads
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.engine_pool import EnginePool
from vapo.scale.placement import TRAINING_SHARE, Placement, place
from vapo.scale.rank import MakeNetworks, Rank
from vapo.scale.ray_network import Ranks
from vapo.scale.verifier_pool import JudgeSpec, VerifierCrew, judged_by
from vapo.session.config import Config
from vapo.session.inputs import Inputs
from vapo.session.schema import ScaleConfig
from vapo.tasks.full_task import FullTask
from vapo.tasks.problems import Problems
from vapo.trainer.network import Network
from vapo.trainer.observer import Observer
from vapo.trainer.spans import Spans

MANY_PER_CORE = 4
"""Processes of a run on a core beyond which a note says that fewer are faster."""


def placement_of(config: Config) -> Placement:
    """Which GPUs ranks and engines get. Raises ConfigError if they are too few, or for what cannot be split."""
    scale, engine = config.sections.scale, config.sections.rollout.engine
    if config.sections.model.dtype == "bfloat16-weights":
        raise ConfigError(
            "model.dtype=bfloat16-weights is for a run in one process, and scale.backend=ray shards the weights. Set "
            "model.dtype=bfloat16."
        )
    if scale.tensor_parallel > 1 and not isinstance(engine, VllmEngineSettings):
        raise ConfigError(
            f"scale.tensor_parallel={scale.tensor_parallel} splits an engine over GPUs, which vLLM can, and "
            f"rollout.engine={engine.kind} cannot. Set rollout.engine=vllm, or leave scale.tensor_parallel out."
        )
    return place(
        gpus=scale.nodes * scale.gpus_per_node,
        training_ranks=scale.training_ranks,
        rollout_workers=scale.rollout_workers,
        tensor_parallel=scale.tensor_parallel,
        placement=scale.placement,
        per_node=scale.gpus_per_node,
    )


def shares_device(config: Config) -> bool:
    """Whether networks leave the device to the rollout engine while it samples (scale.offload).

    Raises ConfigError where both work at the same time.
    """
    scale = config.sections.scale
    shared = scale.offload and (scale.backend == "local" or scale.placement == "colocated")
    if shared and config.sections.trainer.max_staleness:
        raise ConfigError(
            "scale.offload=true lets networks and engines take turns on a device, and with trainer.max_staleness=1 "
            "both work at the same time. Leave one of them out, or set scale.placement=split with Ray."
        )
    return shared


def threads_of_each(scale: ScaleConfig, parameters: int, processes: int) -> int:
    """CPU threads of each of so many processes with a model of this size: scale.threads, or else a share of the
    machines' cores. For the driver: Ray sets OMP_NUM_THREADS in the processes."""
    threads = num_threads(scale.threads, parameters)
    return threads if scale.threads else max(1, threads * scale.nodes // processes)


def start_cluster(config: Config, observer: Observer) -> Cluster:
    """The cluster that the run uses; close it in the end. Raises ConfigError if it cannot be had."""
    placement_of(config)
    scale = config.sections.scale
    wanted = Wanted(
        processes=scale.training_ranks + scale.rollout_workers + scale.verifier_workers,
        nodes=scale.nodes,
        gpus_per_node=scale.gpus_per_node,
        address=scale.address,
        restarts=scale.restarts,
    )
    cores = os.cpu_count() or 1
    if scale.address is None and not scale.gpus_per_node and wanted.processes > MANY_PER_CORE * cores:
        observer.note(
            f"{wanted.processes} processes share {counted(cores, 'core')} and this machine's memory: a lower "
            "scale.rollout_workers, training_ranks or verifier_workers is faster"
        )
    where = f"joining Ray at {scale.address}" if scale.address else "starting Ray on this machine"
    observer.note(f"{where}, for {wanted.processes} processes; this takes several seconds")
    return Cluster(wanted, observer.alarm)


def start_engines(
    config: Config,
    cluster: Cluster,
    sampler: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    log: Path,
) -> EnginePool:
    """The rollout workers, ready with the weights. On a machine of their own choice of threads they share its cores."""
    scale = config.sections.scale
    return EnginePool(
        cluster,
        config.sections.rollout.engine,
        sampler,
        weights,
        workers=scale.rollout_workers,
        placement=placement_of(config),
        threads=threads_of_each(scale, sampler.num_parameters(), scale.rollout_workers),
        answer_limit_s=scale.answer_limit_s,
        log=log,
        trust_remote_code=config.sections.model.trust_remote_code,
    )


def start_verifiers(config: Config, cluster: Cluster, inputs: Inputs, observer: Observer) -> Inputs:
    """The inputs with a task that verifier workers judge for; as they are where the trainer's process has to judge."""
    scale = config.sections.scale
    if not scale.verifier_workers:
        return inputs
    if not inputs.task_by_name:
        observer.note(
            "the task is an object of this process, so this process judges; scale.verifier_workers is not used"
        )
        return inputs
    spec = judge_spec(config, inputs.task)
    crew = VerifierCrew(cluster, inputs.task, spec, workers=scale.verifier_workers, answer_limit_s=scale.answer_limit_s)
    return replace(inputs, task=judged_by(crew, inputs.task))


def judge_spec(config: Config, task: FullTask) -> JudgeSpec:
    """How the verifier workers judge. They see no gold answers, so they do not check scores that passed on these."""
    made = task.original
    checked = isinstance(made, Problems) and made.scores_are_checked
    named = config.sections.task
    return JudgeSpec(named.name, named.options, graded=checked or config.algorithm.reward.by == "score")


def start_ranks(config: Config, cluster: Cluster, make: MakeNetworks, spans: Spans) -> Mapping[str, Network]:
    """The networks of the run, held by training ranks, which end with the cluster."""
    scale, placement = config.sections.scale, placement_of(config)
    processes = [
        cluster.spawn(
            Rank,
            name=f"training rank {rank}",
            gpu=placement.ranks[rank] if placement.ranks else None,
            share=TRAINING_SHARE if placement.shared else 1.0,
        )
        for rank in range(scale.training_ranks)
    ]
    ranks = Ranks(processes, limit_s=scale.answer_limit_s)
    ranks.meet()
    return ranks.build(make, spans)
