"""Which prompts come next, and the judged responses to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial

import torch

from vapo.algo import informative_groups
from vapo.algo.presets import Algorithm
from vapo.errors import VerifierBrokenError
from vapo.rollout.collect import judge, sample
from vapo.trainer.batch import learned_from
from vapo.trainer.run import Clock, Run
from vapo.types import Episode, Prompt, PromptSet, stable_hash


def stream(prompts: PromptSet, *, seed: int, name: str, position: int, count: int) -> list[Prompt]:
    """`count` prompts from `position` of an endless stream: a new permutation of all prompts every epoch."""
    size = len(prompts)
    chosen = []
    for at in range(position, position + count):
        epoch, index = divmod(at, size)
        chosen.append(prompts[_permutation(size, stable_hash(seed, name, epoch))[index]])
    return chosen


def sample_step(run: Run, clock: Clock) -> tuple[list[Episode], list[Episode]]:
    """(episodes to learn from, all that were drawn); the state's stream position moves past their prompts.

    With dynamic sampling (DAPO §3.2), prompts whose valid responses are all right or all wrong are dropped
    and new prompts sampled, `refill_rounds` times at most; the last round's shortfall is accepted.
    """
    sampling, state = run.algorithm.sampling, run.state
    kept: list[Episode] = []
    everything: list[Episode] = []
    drawn: Counter[str] = Counter()
    for _ in range(1 + sampling.refill_rounds):
        wanted = sampling.prompts - len(kept) // sampling.per_prompt
        if wanted == 0:
            break
        prompts = stream(run.train_prompts, seed=run.seed, name="train", position=state.prompts_seen, count=wanted)
        state.prompts_seen += wanted
        episodes = rollout(run, prompts, per_prompt=sampling.per_prompt, step=state.step, clock=clock, drawn=drawn)
        everything += episodes
        kept += _informative(episodes, run.algorithm) if sampling.refill_rounds else episodes
    check_verdicts(everything, run.settings.max_invalid_ratio)
    return kept, everything


def rollout(
    run: Run,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    step: int | str,
    clock: Clock,
    drawn: Counter[str] | None = None,
) -> list[Episode]:
    """Sampled and judged responses of the engine's policy, counted in the run's state."""
    total = len(prompts) * per_prompt
    with clock.time("rollout"):
        episodes = sample(
            run.engine,
            prompts,
            per_prompt=per_prompt,
            how=run.decoding,
            decode=run.decode,
            seed=run.seed,
            # after a rollback other responses are drawn: the same ones would lead to the same place
            step=f"{step} after rollback {run.state.rollbacks}" if run.state.rollbacks else step,
            drawn=drawn,
            on_progress=lambda done, _: run.progress("sampling", done, total),
        )
    with clock.time("verify"):
        episodes = judge(episodes, run.task, partial(run.progress, "verifying"), per_prompt=per_prompt)
    run.state.num_samples += len(episodes)
    run.state.num_tokens += sum(len(e.completion.token_ids) for e in episodes)
    return episodes


def check_verdicts(episodes: Sequence[Episode], limit: float) -> None:
    """Raise VerifierBrokenError when more than `limit` of a step's verdicts are invalid."""
    invalid = [e for e in episodes if not e.verdict.valid]
    if len(invalid) > limit * len(episodes):
        raise VerifierBrokenError(
            f"The verifier could not judge {len(invalid)} of {len(episodes)} responses "
            f"(first: prompt {invalid[0].prompt.id}: {invalid[0].verdict.reason}); the limit is "
            f"trainer.max_invalid_ratio={limit}. Mend the verifier or the gold answers."
        )


def _informative(episodes: list[Episode], algorithm: Algorithm) -> list[Episode]:
    """The groups with both right and wrong responses among those that are learned from. Groups are blocks of
    neighbours: a prompt that came twice is two groups here."""
    groups = torch.arange(len(episodes)) // algorithm.sampling.per_prompt
    right = torch.tensor([e.verdict.right for e in episodes])
    keep = informative_groups(right, groups, torch.tensor([learned_from(e, algorithm) for e in episodes]))
    return [episode for episode, good in zip(episodes, keep.tolist(), strict=True) if good]


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
