"""Measure how often the ceiling's intervals hold the truth in simulated judgements. Writes ceiling_intervals.md.

    python benchmarks/ceiling_intervals.py

A response is right where a walk of normal steps ends above 0, so the true value of each state is known. A judgement
draws prompts, responses and continuations from that process; its interval should hold the true ceiling in 95 % of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vapo.algo.baselines import leave_one_out
from vapo.evals import critic_statistics as statistics
from vapo.evals.judgement import States, figures_with_intervals

JUDGEMENTS, PROMPTS, RESPONSES, CONTINUATIONS = 100, 64, 4, 8
FRACTIONS = (0.0, 0.25, 0.5, 0.75)
DIFFICULTY = 0.7
"""Standard deviation of a prompt's start; each of the four steps of a response has .5."""
STEP = 0.5


def walk(luck: np.random.Generator, prompts: int, responses: int) -> tuple[np.ndarray, np.ndarray]:
    """The true values (M, G, F) of states and the outcomes (M, G) of responses."""
    starts = luck.normal(0, DIFFICULTY, (prompts, 1, 1))
    steps = luck.normal(0, STEP, (prompts, responses, len(FRACTIONS)))
    places = starts + np.concatenate([np.zeros_like(steps[..., :1]), steps.cumsum(axis=2)], axis=2)
    left = STEP * np.sqrt(len(FRACTIONS) - np.arange(len(FRACTIONS)))
    values = torch.special.ndtr(torch.from_numpy(places[..., :-1] / left)).numpy()
    return values, (places[..., -1] > 0).astype(float)


def states_of(luck: np.random.Generator) -> States:
    """What a judgement sees of the process."""
    values, outcomes = walk(luck, PROMPTS, RESPONSES)
    numbers = np.arange(values.size).reshape(values.shape)
    numbers[..., 0] = numbers[:, :1, 0]  # all responses to a prompt share the state before the first token
    right = luck.binomial(CONTINUATIONS, values).astype(float)
    right[..., 0] = right[:, :1, 0]
    found, noise = statistics.monte_carlo_values(right, np.full(right.shape, CONTINUATIONS))
    groups = torch.arange(PROMPTS).repeat_interleave(RESPONSES)
    others = leave_one_out(torch.from_numpy(outcomes.reshape(-1)), groups).numpy().reshape(outcomes.shape)
    return States(FRACTIONS, outcomes, outcomes, others, found, noise, numbers, group_size=RESPONSES)


def main() -> None:
    values, outcomes = walk(np.random.default_rng(1), 400_000, 1)
    truth = values.reshape(-1, len(FRACTIONS)).var(axis=0) / outcomes.var()
    luck, held, estimates = np.random.default_rng(0), np.zeros(len(FRACTIONS) + 1), []
    for _ in range(JUDGEMENTS):
        figures, by_position = figures_with_intervals(states_of(luck))
        found = [figures["ceiling"], *by_position["ceiling"]]
        held += [f.low <= true <= f.high for f, true in zip(found, [truth.mean(), *truth], strict=True)]
        estimates.append([f.value for f in found])
    lines = [
        f"{JUDGEMENTS} simulated judgements of {PROMPTS} prompts, {RESPONSES} responses and {CONTINUATIONS}",
        "continuations; share of 95 % intervals of the ceiling that hold the truth.",
        "",
        "| cut at | true ceiling | mean estimate | hold the truth |",
        "|--:|--:|--:|--:|",
    ]
    rows = zip(("all", *FRACTIONS), [truth.mean(), *truth], np.mean(estimates, axis=0), held / JUDGEMENTS, strict=True)
    lines += [f"| {cut} | {true:.3f} | {estimate:.3f} | {share:.1%} |" for cut, true, estimate, share in rows]
    print("\n".join(lines))
    (Path(__file__).parent / "ceiling_intervals.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
