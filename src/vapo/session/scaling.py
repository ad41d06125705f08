"""From the settings of `scale` to processes on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.placement import TRAINING_SHARE, Placement, place
from vapo.scale.rank import MakeNetworks, Rank
from vapo.scale.ray_network import Ranks
from vapo.session.schema import ScaleConfig
from vapo.trainer.network import Network
from vapo.trainer.spans import Spans


def placement_of(scale: ScaleConfig) -> Placement:
    """Which GPUs ranks and engines get. Raises ConfigError if there are too few."""
    return place(
        gpus=scale.nodes * scale.gpus_per_node,
        training_ranks=scale.training_ranks,
        rollout_workers=scale.rollout_workers,
        tensor_parallel=scale.tensor_parallel,
        placement=scale.placement,
    )


def start_cluster(scale: ScaleConfig, on_alarm: Callable[[str], None]) -> Cluster:
    """The cluster that the run uses; close it in the end. Raises ConfigError if it cannot be had."""
    placement_of(scale)
    wanted = Wanted(
        processes=scale.training_ranks,
        nodes=scale.nodes,
        gpus_per_node=scale.gpus_per_node,
        address=scale.address,
        restarts=scale.restarts,
    )
    return Cluster(wanted, on_alarm)


def start_ranks(scale: ScaleConfig, cluster: Cluster, make: MakeNetworks, spans: Spans) -> Mapping[str, Network]:
    """The networks of the run, held by training ranks, which end with the cluster."""
    placement = placement_of(scale)
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
