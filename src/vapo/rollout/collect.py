"""Groups of responses from an engine, decoded and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from vapo.rollout.engine import RolloutEngine
from vapo.rollout.turns import TurnRules, play
from vapo.tasks.full_task import FullTask
from vapo.tasks.verdicts import judge
from vapo.types import KINDS, Decoding, Episode, Prompt, sample_seed


def sample_episodes(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    step: int | str,
    rules: TurnRules | None = None,
    drawn: Counter[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """`per_prompt` responses to each rendered prompt, those of one prompt together, not judged yet.

    The seed of sample j of prompt p is a hash of (run seed, step, p's id, j). `drawn` counts the samples that each
    prompt id has in this step. A prompt that comes twice in a step (at the end of one epoch and the start of the
    next) continues the count, so that it draws new responses. With `rules` an episode has several turns (`play`), and
    its environment may have judged it.
    """
    drawn = Counter() if drawn is None else drawn
    samples: list[tuple[Prompt, int]] = []
    for prompt in prompts:
        samples += [(prompt, drawn[prompt.id] + j) for j in range(per_prompt)]
        drawn[prompt.id] += per_prompt
    seeds = [sample_seed(seed, step, prompt.id, j) for prompt, j in samples]
    if rules is not None:
        return play(engine, samples, seeds, how, decode, rules, on_progress or _silent)
    completions = engine.generate([prompt for prompt, _ in samples], how, seeds, on_progress)
    stops = set(how.stop_token_ids)
    return [
        Episode.of_completion(prompt, j, completion, decode([t for t in completion.token_ids if t not in stops]))
        for (prompt, j), completion in zip(samples, completions, strict=True)
    ]


def judge_episodes(
    episodes: Sequence[Episode],
    task: FullTask,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    per_prompt: int = 1,
) -> list[Episode]:
    """The episodes with the task's verdicts; `per_prompt` neighbours are the responses to one prompt.

    An episode that its environment has judged keeps that verdict, and the task does not see it.
    Where the verifier raises, the verdict is invalid, with the reason. Raises VerifierBrokenError if the task gives
    another number of verdicts.
    """
    blocks = (episodes[at : at + per_prompt] for at in range(0, len(episodes), per_prompt))
    groups = [group for block in blocks if (group := [episode for episode in block if not episode.judged])]
    verdicts = iter(judge(task, groups, on_progress or _silent) if groups else ())
    return [e if e.judged else replace(e, verdict=next(verdicts)) for e in episodes]


def tally(episodes: Sequence[Episode]) -> dict[str, int]:
    """Counts of judged responses: `responses` with a valid verdict, `right` ones, and wrong ones by kind.

    `cut_off` counts the wrong ones of any kind that reached the length limit.
    """
    valid = [e for e in episodes if e.verdict.valid]
    wrong = [e for e in valid if not e.verdict.right]
    kinds = Counter(e.verdict.kind if e.verdict.kind in KINDS else "unspecified" for e in wrong)
    return {
        "responses": len(valid),
        "right": len(valid) - len(wrong),
        **{kind: kinds[kind] for kind in KINDS},
        "cut_off": sum(e.truncated for e in wrong),
    }


def _silent(done: int, total: int) -> None:
    return None
