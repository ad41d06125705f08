"""How many runs of a study share a machine by default."""

from __future__ import annotations

import os

from vapo.models.placing import best_device, num_threads


def default_jobs(threads: int | None, parameters: int) -> int:
    """The number of runs at the same time on this machine; `threads` and `parameters` are those of a run's model."""
    cores = len(os.sched_getaffinity(0))
    return jobs_that_fit(num_threads(threads, parameters), cores=cores, gpu=best_device().type == "cuda")


def jobs_that_fit(threads: int, *, cores: int, gpu: bool) -> int:
    """One on a GPU, which a run fills; else as many as have their threads' cores to themselves, at least one."""
    return 1 if gpu else max(1, cores // threads)
