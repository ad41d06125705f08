"""The table of a profile: the parts of the measured steps, which add up to their time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vapo.errors import counted
from vapo.trainer.spans import Part

WORDS = {
    "rollout": "sampling",
    "verify": "judging",
    "score/policy": "scoring: policy",
    "score/critic": "scoring: critic",
    "score/reference": "scoring: reference",
    "score": "scoring: credit, the rest",
    "update/policy": "update: policy",
    "update/critic": "update: critic",
    "update": "update: minibatches, the rest",
    "rollout_wait": "waiting for the next rollout",
    "hand_over": "hand-over of weights",
    "save": "saving",
    "evaluate": "evaluation",
    "log": "logging",
    "other": "other",
}
"""The parts in the order of a step, for people."""
OTHER = "other"


@dataclass(frozen=True)
class StepProfile:
    """What was measured."""

    first: int
    """The first measured step."""
    last: int
    seconds: float
    """Of all measured steps."""
    sampled_tokens: int
    """Response tokens sampled in them."""
    parts: Mapping[str, Part]
    matrix_rate: float
    """Floating-point operations per second of this machine's matrix products."""
    device: str
    threads: int

    @property
    def steps(self) -> int:
        """How many steps were measured."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Row:
    """One part, over all measured steps."""

    name: str
    seconds: float
    tokens: int
    tokens_per_s: float | None
    mfu: float | None
    """Its share of the machine's matrix rate; None where operations are not counted."""


def profile_rows(profile: StepProfile) -> list[Row]:
    """Every part, and what is in none of them; the seconds add up to the profile's."""
    inside = sum(part.seconds for part in profile.parts.values())
    parts = {**profile.parts, OTHER: Part(profile.seconds - inside)}
    if "rollout" in parts:
        parts["rollout"] = Part(parts["rollout"].seconds, profile.sampled_tokens)
    names = [*(name for name in WORDS if name in parts), *(name for name in parts if name not in WORDS)]
    return [_row(name, parts[name], profile.matrix_rate) for name in names]


def profile_table(profile: StepProfile) -> str:
    """The rows as text, seconds per step."""
    rows = profile_rows(profile)
    cells = [("part", "s/step", "share", "tokens/s", "MFU")]
    cells += [
        (
            WORDS.get(row.name, row.name),
            f"{row.seconds / profile.steps:.3f}",
            f"{row.seconds / profile.seconds:.1%}",
            "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            "" if row.mfu is None else f"{row.mfu:.1%}",
        )
        for row in rows
    ]
    absent = [WORDS[name] for name in ("save", "evaluate") if name not in profile.parts]
    flops = sum(part.flops for part in profile.parts.values())
    whole = flops / profile.seconds / profile.matrix_rate
    cells.append(("the whole step", f"{profile.seconds / profile.steps:.3f}", "100.0%", "", f"{whole:.1%}"))
    threads = f", {counted(profile.threads, 'thread')}" if profile.device == "CPU" else ""
    steps = f"step {profile.first}" if profile.steps == 1 else f"steps {profile.first} to {profile.last}"
    return "\n".join(
        [
            f"Where the time of {steps} went",
            "",
            *_aligned(cells),
            "",
            f"MFU is the share of the {profile.matrix_rate / 1e9:,.0f} GFLOP/s that a matrix product reaches here "
            f"({profile.device}{threads}).",
            "tokens/s of sampling are response tokens, of networks those of prompts and responses.",
            *([f"Not due here: {' and '.join(absent)}."] if absent else []),
        ]
    )


def _row(name: str, part: Part, matrix_rate: float) -> Row:
    timed = part.seconds > 0
    return Row(
        name,
        part.seconds,
        part.tokens,
        part.tokens / part.seconds if part.tokens and timed else None,
        part.flops / part.seconds / matrix_rate if part.flops and timed else None,
    )


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
