"""Which GPUs training ranks and rollout engines get: a pure function of the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError, counted

TRAINING_SHARE, ROLLOUT_SHARE = 0.5, 0.4
"""What Ray is told that each takes of a GPU that both use in turns; less than all together, so that both find room."""


@dataclass(frozen=True)
class Placement:
    """Places of GPUs in the run's order: by machine, then by the GPU's number there. Empty on CPUs."""

    ranks: tuple[int, ...]
    """The GPU of each training rank."""
    engines: tuple[tuple[int, ...], ...]
    """The GPUs of each rollout engine."""
    shared: bool
    """Whether ranks and engines have GPUs in common."""


def place(
    *,
    gpus: int,
    training_ranks: int,
    rollout_workers: int,
    tensor_parallel: int = 1,
    placement: Literal["colocated", "split"] = "colocated",
    per_node: int = 0,
) -> Placement:
    """Where everything runs on `gpus` GPUs, `per_node` on each machine (0: all on one); nowhere in particular without
    GPUs.

    Raises ConfigError if there are more ranks or engines than GPUs, if an engine is split over machines, or if GPUs are
    split with none.
    """
    if not gpus:
        if tensor_parallel > 1:
            raise ConfigError(
                f"scale.tensor_parallel={tensor_parallel} splits an engine over GPUs, and scale.gpus_per_node is 0. "
                "Set scale.gpus_per_node, or leave scale.tensor_parallel out."
            )
        return Placement((), ((),) * rollout_workers, False)
    sampling = rollout_workers * tensor_parallel
    split = placement == "split"
    needed = training_ranks + sampling if split else max(training_ranks, sampling)
    if needed > gpus:
        raise ConfigError(
            f"The run asks for {counted(needed, 'GPU')} and has {gpus} (scale.nodes x scale.gpus_per_node): "
            f"scale.training_ranks={training_ranks}, scale.rollout_workers={rollout_workers} of "
            f"scale.tensor_parallel={tensor_parallel}, scale.placement={placement}. Lower one of them."
        )
    first = training_ranks if split else 0
    engines = tuple(
        tuple(range(first + at * tensor_parallel, first + (at + 1) * tensor_parallel)) for at in range(rollout_workers)
    )
    if per_node and any(engine[0] // per_node != engine[-1] // per_node for engine in engines):
        raise ConfigError(
            f"scale.tensor_parallel={tensor_parallel} would split an engine over machines of "
            f"{counted(per_node, 'GPU')}, and vLLM splits it over one machine's. Take a divisor of "
            "scale.gpus_per_node, and with scale.placement=split a multiple of it as scale.training_ranks."
        )
    return Placement(tuple(range(training_ranks)), engines, not split)
