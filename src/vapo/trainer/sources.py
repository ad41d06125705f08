"""Which prompts come next, and the judged responses to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

from vapo.algo import informative_groups
from vapo.algo.method import Algorithm, Gae
from vapo.errors import VerifierBrokenError, counted
from vapo.rollout.collect import judge_episodes, sample_episodes
from vapo.trainer.clock import Clock
from vapo.trainer.pricing import policy_learns_from
from vapo.trainer.rollouts import Rollout
from vapo.trainer.run import Run
from vapo.trainer.state import State
from vapo.types import Episode, Prompt, PromptSet, stable_hash

Report = Callable[[str, int, int | None], None]
"""`Run.progress`."""


def stream(prompts: PromptSet, *, seed: int, name: str, position: int, count: int) -> list[Prompt]:
    """`count` prompts from `position` of an endless stream: a new permutation of all prompts every epoch."""
    size = len(prompts)
    chosen = []
    for at in range(position, position + count):
        epoch, index = divmod(at, size)
        chosen.append(prompts[_permutation(size, stable_hash(seed, name, epoch))[index]])
    return chosen


class SynchronousSource:
    """Samples each step's responses when they are asked for, from the weights the engine has."""

    max_age = 0

    def __init__(self, run: Run, *, progress: Report | None = None) -> None:
        """`progress` takes the place of the run's."""
        self._run, self._progress = run, progress or run.progress

    def next(self, state: State) -> Rollout:
        """The responses of joint step `state.step + 1`.

        With dynamic sampling (DAPO §3.2), groups whose valid responses are all right or all wrong are dropped and new
        prompts sampled, `refill_rounds` times at most; the last round's shortfall is accepted.
        """
        run, sampling, clock = self._run, self._run.algorithm.sampling, self._run.clock()
        everything: list[Episode] = []
        kept: list[int] = []
        drawn: Counter[str] = Counter()
        position = state.prompts_seen
        for _ in range(1 + sampling.refill_rounds):
            wanted = sampling.prompts - len(kept) // sampling.per_prompt
            if wanted == 0:
                break
            prompts = stream(run.train_prompts, seed=run.seed, name="train", position=position, count=wanted)
            position += wanted
            episodes = _judged_samples(
                run, state, prompts, sampling.per_prompt, state.step, clock, self._progress, drawn=drawn
            )
            rows = _informative(episodes, run.algorithm) if sampling.refill_rounds else range(len(episodes))
            kept += [len(everything) + row for row in rows]
            everything += episodes
        check_verdicts(everything, run.settings.max_invalid_ratio)
        return Rollout(tuple(everything), tuple(kept), position, clock.seconds)

    def settle(self) -> None:
        """Nothing is sampled between two calls of `next`."""

    def waiting(self) -> None:
        """Nothing is made ahead."""

    def restart(self, waiting: Rollout | None) -> None:
        """Nothing is made ahead; what a checkpoint of another source kept is dropped."""

    def close(self) -> None:
        """There are no threads."""


class FixedPolicySource:
    """Samples the responses of value pretraining when they are asked for, from the fixed initial policy."""

    max_age = 0

    def __init__(self, run: Run, *, progress: Report | None = None) -> None:
        """`progress` takes the place of the run's."""
        self._run, self._progress = run, progress or run.progress

    def next(self, state: State) -> Rollout:
        """The responses of pretraining step `state.pretrain_step + 1`."""
        return self.at(state.pretrain_step, state)

    def at(self, step: int, state: State) -> Rollout:
        """The responses of the pretraining step that follows `step` finished ones."""
        run, sampling = self._run, self._run.algorithm.sampling
        position, count = step * sampling.prompts, sampling.prompts
        prompts = stream(run.train_prompts, seed=run.seed, name="pretrain", position=position, count=count)
        return self._rollout(state, prompts, sampling.per_prompt, f"pretrain {step}")

    def heldout(self, state: State) -> Rollout:
        """Responses to held-out prompts, the same each time; they are never learned from."""
        run, wanted = self._run, self._run.settings.pretraining_heldout
        credit = run.algorithm.credit
        # a critic beside the group's mean is judged on groups
        per_prompt = run.algorithm.sampling.per_prompt if isinstance(credit, Gae) and credit.baseline == "group" else 1
        count = min(max(1, wanted // per_prompt), len(run.heldout_prompts))
        prompts = [run.heldout_prompts[i] for i in range(count)]
        return self._rollout(state, prompts, max(1, wanted // count), "pretrain held-out")

    def _rollout(self, state: State, prompts: Sequence[Prompt], per_prompt: int, label: str) -> Rollout:
        clock = self._run.clock()
        episodes = _judged_samples(self._run, state, prompts, per_prompt, label, clock, self._progress)
        check_verdicts(episodes, self._run.settings.max_invalid_ratio)
        return Rollout(tuple(episodes), tuple(range(len(episodes))), state.prompts_seen, clock.seconds)

    def close(self) -> None:
        """There are no threads."""


def _judged_samples(
    run: Run,
    state: State,
    prompts: Sequence[Prompt],
    per_prompt: int,
    label: int | str,
    clock: Clock,
    progress: Report,
    *,
    drawn: Counter[str] | None = None,
) -> list[Episode]:
    """Sampled and judged responses of the engine's policy; `label` names the step in their seeds."""
    total = len(prompts) * per_prompt
    with clock.time("rollout"):
        episodes = sample_episodes(
            run.engine,
            prompts,
            per_prompt=per_prompt,
            how=run.decoding,
            decode=run.decode,
            rules=run.turns,
            seed=run.seed,
            # After a rollback other responses are drawn: the same ones would repeat the same updates.
            step=f"{label} after rollback {state.rollbacks}" if state.rollbacks else label,
            drawn=drawn,
            on_progress=lambda done, _: progress("sampling", done, total),
        )
    with clock.time("verify"):
        return judge_episodes(episodes, run.task, partial(progress, "verifying"), per_prompt=per_prompt)


def check_verdicts(episodes: Sequence[Episode], limit: float) -> None:
    """Raise VerifierBrokenError when more than `limit` of a step's verdicts are invalid; it names who gave them."""
    invalid = [e for e in episodes if not e.verdict.valid]
    if len(invalid) <= limit * len(episodes):
        return
    causes, fixes = [], []
    for judged, cause, fix in (
        (True, "the environment failed in", "the environment"),
        (False, "the verifier could not judge", "the verifier or the gold answers"),
    ):
        if of_it := [e for e in invalid if e.judged is judged]:
            first = f"(first: prompt {of_it[0].prompt.id}: {of_it[0].verdict.reason})"
            causes.append(f"{cause} {len(of_it)} of {counted(len(episodes), 'response')} {first}")
            fixes.append(fix)
    said = ", and ".join(causes)
    raise VerifierBrokenError(
        f"{said[0].upper()}{said[1:]}; the limit is trainer.max_invalid_ratio={limit}. Fix {', and '.join(fixes)}."
    )


def _informative(episodes: list[Episode], algorithm: Algorithm) -> list[int]:
    """The rows of groups with both right and wrong responses among those that are learned from. Groups are blocks of
    neighbours: a prompt that came twice is two groups here."""
    groups = torch.arange(len(episodes)) // algorithm.sampling.per_prompt
    right = torch.tensor([e.verdict.right for e in episodes])
    keep = informative_groups(right, groups, torch.tensor([policy_learns_from(e, algorithm) for e in episodes]))
    return keep.nonzero()[:, 0].tolist()


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
