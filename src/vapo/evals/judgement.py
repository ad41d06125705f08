"""Is a critic worth training on this task? What Monte-Carlo values say of a critic, and of any critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from vapo.algo import between_share, leave_one_out
from vapo.errors import ModelError
from vapo.evals import critic_statistics as statistics
from vapo.evals.continuations import ContinuedPrompt
from vapo.evals.critic_statistics import Array, Bin
from vapo.evals.ranking import ordered_pairs
from vapo.evals.token_blocks import token_blocks
from vapo.models.networks import Critic, Sequences

RESAMPLES = 1000
"""Bootstrap resamples of prompts."""
LOW_CEILING = 0.1
"""A critic that cannot explain more of the outcomes' variance than this cannot help much."""
SMALL_GAIN = 0.05
"""The ceiling beyond a prompt's difficulty, below which a group's mean explains as much as a critic could."""
NEAR, FAR = 0.8, 0.5
"""Shares of the ceiling: at or above NEAR a critic is close to it, below FAR it is far from it."""
WIDE = 0.4
"""An interval of the ceiling that is wider than this decides nothing."""


class Finding(StrEnum):
    """What the numbers say, in one of a few kinds."""

    ALL_EQUAL = "all-equal"
    UNSURE = "unsure"
    LOW = "low-ceiling"
    DIFFICULTY = "difficulty-only"
    WORTH_IT = "worth-it"
    NOTHING = "explains-nothing"
    BELOW = "below-ceiling"
    PART = "part-of-ceiling"
    NEAR = "near-ceiling"


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % bootstrap interval over prompts; all nan where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class States:
    """M prompts with G responses, read at F positions. nan is not known; `states` numbers the distinct prefixes."""

    fractions: tuple[float, ...]
    outcomes: Array
    """(M, G), in units of reward; nan for an invalid verdict."""
    right: Array
    """(M, G): 1, 0 or nan."""
    others: Array
    """(M, G): the mean outcome of the other valid responses to the prompt."""
    monte_carlo: Array
    """(M, G, F), in units of reward."""
    noise: Array
    """(M, G, F): variance of `monte_carlo` around the true value."""
    states: np.ndarray
    """(M, G, F), integers."""
    values: Array | None = None
    """(M, G, F): V as advantages use it; None without a critic."""
    answers: Array | None = None
    """(M, G, F): the critic's own output; a residual critic's lacks the mean of the group."""
    group_size: int = 0
    """Responses to a prompt in training: the mean of few others is noisy. 0 takes G."""


@dataclass(frozen=True)
class CriticJudgement:
    """What `vapo critic` prints and `results.json` holds.

    `figures` maps a name to the number over all positions, `by_position` to one number for each of `fractions`. All are
    explained in docs/critics.md. `bins` is the critic's calibration. `finding` and `conclusion` say what follows.
    """

    prompts: int
    responses: int
    continuations: int
    group_size: int
    fractions: tuple[float, ...]
    accuracy: float
    invalid_ratio: float
    mean_length: float
    clipped_ratio: float
    residual: bool
    figures: dict[str, Figure]
    by_position: dict[str, list[Figure]]
    bins: list[Bin] = field(default_factory=list)
    finding: Finding = Finding.UNSURE
    conclusion: str = ""

    @property
    def has_critic(self) -> bool:
        """Whether there was a critic to judge."""
        return "explained_variance" in self.figures

    def summary(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**asdict(self), "bins": [b._asdict() for b in self.bins]}


def judge(
    continued: Sequence[ContinuedPrompt],
    answers: Array | None,
    *,
    fractions: Sequence[float],
    continuations: int,
    reward_right: float = 1.0,
    reward_wrong: float = 0.0,
    residual: bool = False,
    group_size: int | None = None,
) -> CriticJudgement:
    """The judgement of a critic's `answers` (M, G, F) to the prefixes of `continued`; None judges the task alone.

    A `residual` critic's V is its answer plus the mean outcome of the prompt's other responses. Variances with a
    group's mean are those of `group_size` responses to a prompt, as in training; None takes the G there are here.
    """
    states = gather(continued, answers, fractions, reward_right, reward_wrong, residual=residual)
    states = replace(states, group_size=group_size or states.outcomes.shape[1])
    figures, by_position = figures_with_intervals(states)
    bins: list[Bin] = []
    if states.values is not None:
        bins = statistics.reliability(states.values, states.monte_carlo, states.noise, states.states)
        figures["calibration_error"] = Figure(statistics.calibration_error(bins), math.nan, math.nan)
    responses = [r for c in continued for r in c.responses]
    counts = [(p.valid, continuations) for c in continued for p in c.prefixes]
    counts += [(int(r.right is not None), 1) for r in responses]
    at_prompt = by_position["ceiling"][0].value if fractions[0] == 0 else math.nan
    finding, conclusion = conclude(figures, at_prompt, residual=residual)
    return CriticJudgement(
        prompts=len(continued),
        responses=states.outcomes.shape[1],
        continuations=continuations,
        group_size=states.group_size,
        fractions=tuple(fractions),
        accuracy=float(np.nanmean(states.right)) if not np.isnan(states.right).all() else math.nan,
        invalid_ratio=1 - sum(valid for valid, _ in counts) / max(1, sum(drawn for _, drawn in counts)),
        mean_length=float(np.mean([len(r.token_ids) for r in responses])),
        clipped_ratio=float(np.mean([r.truncated for r in responses])),
        residual=residual,
        figures=figures,
        by_position=by_position,
        bins=bins,
        finding=finding,
        conclusion=conclusion,
    )


def gather(
    continued: Sequence[ContinuedPrompt],
    answers: Array | None,
    fractions: Sequence[float],
    reward_right: float,
    reward_wrong: float,
    *,
    residual: bool,
) -> States:
    """The tables of all numbers that the figures are made of."""
    shape = (len(continued), len(continued[0].responses), len(fractions))
    right = np.full(shape[:2], np.nan)
    counted = np.zeros((2, *shape))
    places = np.zeros(shape, dtype=np.int64)
    before = 0
    for p, prompt in enumerate(continued):
        for g, response in enumerate(prompt.responses):
            right[p, g] = math.nan if response.right is None else response.right
            places[p, g] = before + np.array(response.prefixes)
            counted[:, p, g] = np.array([(prompt.prefixes[i].right, prompt.prefixes[i].valid)
                                         for i in response.prefixes]).T  # fmt: skip
        before += len(prompt.prefixes)
    outcomes = reward_wrong + (reward_right - reward_wrong) * right
    monte_carlo, noise = statistics.monte_carlo_values(
        counted[0], counted[1], reward_right=reward_right, reward_wrong=reward_wrong
    )
    groups = torch.arange(shape[0]).repeat_interleave(shape[1])
    flat = torch.from_numpy(outcomes.reshape(-1))
    others = leave_one_out(flat.nan_to_num(), groups, valid=~flat.isnan()).numpy().reshape(shape[:2])
    # a prompt's only valid response has no others: no statement about it compares with them
    others[(~np.isnan(right)).sum(axis=1) < 2] = np.nan
    values = answers
    if answers is not None and residual:
        values = answers + others[:, :, None]
    return States(tuple(fractions), outcomes, right, others, monte_carlo, noise, places, values, answers)


def figures_with_intervals(states: States) -> tuple[dict[str, Figure], dict[str, list[Figure]]]:
    """Every figure over all positions and at each, with its bootstrap interval over prompts."""
    won = _auc_counts(states)
    num_prompts = len(states.outcomes)
    point = _figures(states, won, np.arange(num_prompts))
    draws: dict[str, list[Array]] = {name: [] for name in point}
    if num_prompts > 1:
        rng = np.random.default_rng(0)
        for _ in range(RESAMPLES):
            for name, row in _figures(states, won, rng.integers(num_prompts, size=num_prompts)).items():
                draws[name].append(row)
    figures, by_position = {}, {}
    for name, row in point.items():
        ends = [_ends(np.array([draw[at] for draw in draws[name]])) for at in range(len(row))]
        row_figures = [Figure(float(value), *end) for value, end in zip(row, ends, strict=True)]
        figures[name] = row_figures[0]
        if len(row_figures) > 1:
            by_position[name] = row_figures[1:]
    return figures, by_position


def _figures(states: States, won: Array | None, prompts: np.ndarray) -> dict[str, Array]:
    """Each figure over all positions, and behind it at each position, from these prompts."""
    outcomes, others = states.outcomes[prompts], states.others[prompts]
    monte_carlo, noise = states.monte_carlo[prompts], states.noise[prompts]
    positions = range(len(states.fractions))
    variance = statistics.clustered_variance(outcomes)
    by_group = statistics.group_advantage_variance(outcomes, others, states.group_size)

    def at_each(number: Callable[[int], float]) -> Array:
        row = np.array([number(f) for f in positions])
        return np.array([row.mean(), *row])

    ceilings = at_each(lambda f: statistics.ceiling(monte_carlo[..., f], noise[..., f], outcomes))
    groups = torch.arange(len(prompts)).repeat_interleave(outcomes.shape[1])
    flat = torch.from_numpy(outcomes.reshape(-1))
    found = {
        "ceiling": ceilings,
        "between_share": np.array([float(between_share(flat[~flat.isnan()], groups[~flat.isnan()]))]),
        "group_explained_variance": np.array([1 - statistics.ratio(by_group, variance)]),
        "best_variance_ratio": at_each(
            lambda f: statistics.ratio(
                statistics.unexplained_variance(monte_carlo[..., f], noise[..., f], outcomes), by_group
            )
        ),
    }
    if states.values is None or won is None:
        return found
    values = states.values[prompts]
    squared = at_each(lambda f: statistics.corrected_mse(values[..., f], monte_carlo[..., f], noise[..., f]))
    ranked = at_each(lambda f: statistics.spearman(values[..., f], monte_carlo[..., f]))
    ranked[0] = statistics.spearman(values, monte_carlo)
    wins, pairs = won[:, prompts].sum(axis=1)
    # a critic of the prompt alone gives all its responses one value: that position cannot rank them
    inside = np.array([f > 0 for f in states.fractions])
    inside = inside if inside.any() else ~inside
    counted = np.array([[wins[inside].sum(), *wins], [pairs[inside].sum(), *pairs]])
    explained = at_each(lambda f: statistics.critic_explained_variance(values[..., f], monte_carlo[..., f], outcomes))
    return {
        **found,
        "explained_variance": explained,
        # noise can put the estimate of a low ceiling at 0 or below
        "explained_share": np.where(ceilings > 0, explained / np.where(ceilings > 0, ceilings, 1.0), np.nan),
        "bias": at_each(lambda f: statistics.bias(values[..., f], monte_carlo[..., f])),
        "rmse": np.sqrt(np.maximum(squared, 0.0)),
        "spearman": ranked,
        "within_group_auc": np.where(counted[1] > 0, counted[0] / np.maximum(counted[1], 1), np.nan),
        "variance_ratio": at_each(
            lambda f: statistics.ratio(statistics.clustered_variance(outcomes - values[..., f]), by_group)
        ),
    }


def _auc_counts(states: States) -> Array | None:
    """(2, M, F): of each prompt's pairs of a right and a wrong response, how many the critic orders, and how many there
    are. The critic's own answers are compared: a residual critic's group mean would give the outcome away."""
    if states.answers is None:
        return None
    num_prompts, _, positions = states.answers.shape
    counts = np.zeros((2, num_prompts, positions))
    for p in range(num_prompts):
        for f in range(positions):
            counts[:, p, f] = ordered_pairs(states.right[p], states.answers[p, :, f])
    return counts


@torch.no_grad()
def read_answers(
    critic: Critic,
    continued: Sequence[ContinuedPrompt],
    *,
    tokens_at_once: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """The critic's answer at every prefix, (M, G, F): its value of the state before the next token, which it reads at
    the prefix's last token. Raises ModelError for answers that are not numbers.

    A critic is causal, so one pass over the response gives the answers to all of its prefixes.
    """
    first = continued[0].responses
    answers = np.zeros((len(continued), len(first), len(first[0].prefixes)))
    device = next(critic.model.parameters()).device
    wanted = [(p, g) for p in range(len(continued)) for g in range(len(first))]

    def size(at: tuple[int, int]) -> int:
        prompt, response = continued[at[0]].prompt, continued[at[0]].responses[at[1]]
        return len(prompt.token_ids) + len(prompt.privileged_ids) + len(response.token_ids)

    done = 0
    for block in token_blocks([size(at) for at in wanted], tokens_at_once):
        chosen = [wanted[row] for row in block]
        responses = [continued[p].responses[g] for p, g in chosen]
        sequences = Sequences(
            tuple(
                torch.tensor(
                    [*continued[p].prompt.token_ids, *continued[p].prompt.privileged_ids, *r.token_ids], device=device
                )
                for (p, _), r in zip(chosen, responses, strict=True)
            ),
            tuple(len(r.token_ids) for r in responses),
        )
        values = critic.values(sequences, max(1, *sequences.response_lengths)).cpu().double().numpy()
        for row, (p, g) in enumerate(chosen):
            lengths = [continued[p].prefixes[i].length for i in continued[p].responses[g].prefixes]
            answers[p, g] = values[row, lengths]
        done += len(block)
        on_progress(done, len(wanted))
    if not np.isfinite(answers).all():
        raise ModelError("The critic gives values that are not numbers; there is nothing to judge.")
    return answers


def conclude(figures: Mapping[str, Figure], prompt_ceiling: float, *, residual: bool = False) -> tuple[Finding, str]:
    """The finding that the numbers lead to, as a kind and as one line in plain words.

    `prompt_ceiling` is the ceiling at the prompt; nan if responses were not cut there. A `residual` critic contains
    the group's mean already.
    """
    top = figures["ceiling"]
    if math.isnan(top.value):
        return Finding.ALL_EQUAL, (
            "All outcomes are equal, so there is nothing to predict: no critic can help. Take prompts of another "
            "difficulty, or a task that the policy sometimes solves."
        )
    reach = f"{_percent(top.value)} of the outcomes' variance"
    if not top.high - top.low <= WIDE:
        ends = f"a 95 % interval from {_percent(top.low)} to {_percent(top.high)}"
        ends = "no 95 % interval" if math.isnan(top.low) else ends
        return Finding.UNSURE, (
            f"Too few prompts to tell: any critic could explain {reach}, with {ends}. Raise --prompts."
        )
    if top.value < LOW_CEILING:
        return Finding.LOW, (
            f"The ceiling is low: no critic could explain more than {reach}, so a critic cannot help much here."
        )
    explained = figures.get("explained_variance")
    if top.value - prompt_ceiling < SMALL_GAIN and explained is None:
        return Finding.DIFFICULTY, (
            f"A critic could explain {reach}, nearly all of it the difficulty of the prompt, which the mean of a group "
            "of responses captures as well: a critic adds little here."
        )
    if explained is None:
        alone = "" if math.isnan(prompt_ceiling) else f"; the prompt alone explains {_percent(prompt_ceiling)}"
        return Finding.WORTH_IT, f"A critic is worth a try: it could explain {reach}{alone}."
    share = explained.value / top.value
    harm = figures["variance_ratio"].value
    more = f" Its advantages vary {harm:.2f} times as much as with the group's mean" if harm > 1 else ""
    if more:
        more += "." if residual else "; algorithm.credit.baseline=group keeps that mean."
    summary = (
        f"The critic explains {_percent(explained.value)} of the outcomes' variance, where {_percent(top.value)} can "
        "be explained"
    )
    if explained.value <= 0:
        return Finding.NOTHING, (
            f"{summary}: it is no better than a constant. Pretrain it longer, or raise its learning rate.{more}"
        )
    if share < FAR:
        return Finding.BELOW, f"{summary}: far below the ceiling. Pretrain it longer, or raise its learning rate.{more}"
    if share < NEAR:
        return Finding.PART, f"{summary}: a part of the ceiling. More value pretraining may bring the rest.{more}"
    return Finding.NEAR, f"{summary}: near the ceiling, a longer pretraining cannot add much.{more}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < abs(share) < 0.0995 else f"{100 * share:.0f} %"


def _ends(draws: Array) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    # where most resamples have no such number, the interval would be one of the others only
    if len(known) < 0.9 * RESAMPLES:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
