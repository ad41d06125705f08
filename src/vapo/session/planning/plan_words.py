"""A plan in words and rows, for the terminal and for docs/plan.md."""

from __future__ import annotations

from vapo.errors import counted
from vapo.reports.formatting import duration, figure, short_count
from vapo.session.planning.planned import RunPlan
from vapo.session.planning.rank_memory import DeviceMemory


def head_words(plan: RunPlan) -> list[str]:
    """What is planned, on what."""
    networks = ", ".join(f"{name} {short_count(size)} parameters" for name, size in plan.sizes.items())
    sampling, lengths, shared = plan.config.algorithm.sampling, plan.lengths, plan.dealt
    engines = counted(shared.engines, "engine")
    if shared.per_engine > 1:
        engines += f" of {shared.per_engine} devices"
    if plan.cluster.devices > 1:
        engines += ", taking turns on the same devices" if shared.colocated else ", on devices of their own"
    return [
        f"{plan.config.label} on {plan.cluster.name}: {networks}",
        f"{sampling.prompts:,} prompts x {sampling.per_prompt} responses of up to {lengths.limit:,} tokens "
        f"(prompts {lengths.prompt:,}); minibatches of {plan.config.algorithm.optimization.minibatch:,}",
        f"{counted(shared.ranks, 'training rank')}, {engines}; an engine decodes "
        f"{counted(plan.running, 'response')} at once",
    ]


def gb(size: float) -> str:
    """Bytes in GB, for a table."""
    return figure(size / 1e9) if size >= 5e5 else "0"


def memory_rows(memory: DeviceMemory) -> list[list[str]]:
    """The parts by phase: a header, a row each, the sum, and the limit."""
    phases = memory.phases
    rows = [["part", *(phase.value for phase in phases)]]
    rows += [
        [name, *(gb(by_phase[p]) if p in by_phase else "" for p in phases)] for name, by_phase in memory.parts.items()
    ]
    rows.append(["all", *(gb(memory.total(phase)) for phase in phases)])
    rows.append(["there are", *(gb(memory.limit) for _ in phases)])
    return rows


def time_rows(plan: RunPlan) -> list[list[str]]:
    """Seconds by phase, and what binds them."""
    rows = [["phase", "time", "bound by"]]
    rows += [[name, duration(time.seconds), time.bound] for name, time in plan.times.items()]
    return [*rows, ["step", duration(plan.step_seconds), ""]]


def verdict_words(plan: RunPlan) -> str:
    """Whether it fits; else what does not."""
    worst = max((m for m in (plan.training, plan.sampling) if m is not None), key=lambda m: m.peak / m.limit)
    where = "a training device" if worst is plan.training else "a device that samples"
    size = f"{gb(worst.peak)} of {gb(worst.limit)} GB on {where}, in {worst.worst}"
    if plan.fits:
        return f"It fits: {size}."
    parts = [f"{name} {gb(part)}" for name, part in list(worst.at_peak().items())[:3]]
    return f"It does not fit: {size}; most of it: {', '.join(parts)} GB."


def advice_words(plan: RunPlan) -> list[str]:
    """The cheapest change that makes it fit."""
    lines = []
    if not plan.fits:
        lines.append(
            "Nothing that was tried makes it fit: take larger devices, shorter responses or a smaller model."
            if plan.advice is None
            else f"It fits with: {plan.advice.words}"
        )
    host = plan.training.host
    if any(size > 1e9 for size in host.values()):
        lines.append("Host memory besides: " + ", ".join(f"{name} {gb(size)} GB" for name, size in host.items()))
    return lines
