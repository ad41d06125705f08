"""Groups of responses from an engine, decoded and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vapo.errors import VapoError, VerifierBrokenError, counted
from vapo.rollout.engine import RolloutEngine
from vapo.tasks.full_task import FullTask
from vapo.types import KINDS, Decoding, Episode, Prompt, Verdict, sample_seed


def sample_episodes(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    step: int | str,
    drawn: Counter[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """`per_prompt` responses to each rendered prompt, those of one prompt together, not judged yet.

    The seed of sample j of prompt p is a hash of (run seed, step, p's id, j). `drawn` counts the samples that each
    prompt id has in this step. A prompt that comes twice in a step (at the end of one epoch and the start of the
    next) continues the count, so that it draws new responses.
    """
    drawn = Counter() if drawn is None else drawn
    samples: list[tuple[Prompt, int]] = []
    for prompt in prompts:
        samples += [(prompt, drawn[prompt.id] + j) for j in range(per_prompt)]
        drawn[prompt.id] += per_prompt
    seeds = [sample_seed(seed, step, prompt.id, j) for prompt, j in samples]
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

    Where the verifier raises, the verdict is invalid, with the reason. Raises VerifierBrokenError if the task gives
    another number of verdicts.
    """
    items = [(e.prompt, e.response) for e in episodes]
    groups = [episodes[at : at + per_prompt] for at in range(0, len(episodes), per_prompt)]
    report = on_progress or _silent
    try:
        if task.verify_groups:
            method, verdicts = "verify_groups", task.verify_groups(groups, report)
        elif task.verify_all:  # its verifier may use many processes
            method, verdicts = "verify_all", task.verify_all(items, report)
        else:
            method, verdicts = "verify", _one_by_one(task, items, report)
    except VapoError:  # a stop, or a verifier that cannot work at all
        raise
    except Exception as error:
        method, verdicts = "", [_raised(error)] * len(items)
    checked = _checked(verdicts, len(items), task, method)
    return [replace(e, verdict=verdict) for e, verdict in zip(episodes, checked, strict=True)]


def _checked(verdicts: Any, count: int, task: FullTask, method: str) -> list[Verdict]:
    """The verdicts that a method of the task, perhaps the user's, returned: one `Verdict` for each response."""
    gave = counted(len(verdicts), "verdict") if isinstance(verdicts, list | tuple) else f"a {type(verdicts).__name__}"
    if not isinstance(verdicts, list | tuple) or len(verdicts) != count:
        raise VerifierBrokenError(
            f"{method} of the task {task.name} gave {gave} for {counted(count, 'response')}. It must give a list with "
            "one vapo.types.Verdict for each, in their order."
        )
    return [
        verdict
        if isinstance(verdict, Verdict)
        else Verdict("invalid", f"{method} gave a {type(verdict).__name__}, not a vapo.types.Verdict")
        for verdict in verdicts
    ]


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


def _one_by_one(
    task: FullTask, items: Sequence[tuple[Prompt, str]], on_progress: Callable[[int, int], None]
) -> list[Verdict]:
    verdicts = []
    for item in items:
        verdicts.append(_verdict(task, *item))
        on_progress(len(verdicts), len(items))
    return verdicts


def _verdict(task: FullTask, prompt: Prompt, response: str) -> Verdict:
    try:
        return task.verify(prompt, response)
    except VapoError:  # such as a stop
        raise
    except Exception as error:  # the verifier may be the user's code; an error is an invalid verdict
        return _raised(error)


def _raised(error: Exception) -> Verdict:
    return Verdict("invalid", f"the verifier raised {type(error).__name__}: {error}")
