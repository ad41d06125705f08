"""How the responses to prompts get their verdicts from a task, whichever way the task judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

from vapo.errors import VapoError, VerifierBrokenError, counted
from vapo.tasks.full_task import FullTask
from vapo.types import Episode, Prompt, Verdict

OnProgress = Callable[[int, int], None]


def judge(task: FullTask, groups: Sequence[Sequence[Episode]], report: OnProgress) -> list[Verdict]:
    """Verdicts on the responses of all groups, in order; the episodes of a group belong to one prompt.

    Where the verifier raises, the verdict is invalid, with the reason. Raises VerifierBrokenError if the task gives
    another number of verdicts.
    """
    items = [(episode.prompt, episode.response) for group in groups for episode in group]
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
    return _checked(verdicts, len(items), task, method)


def _checked(verdicts: Any, count: int, task: FullTask, method: str) -> list[Verdict]:
    """The verdicts that a method of the task, perhaps the user's, returned: one `Verdict` for each response."""
    gave = counted(len(verdicts), "verdict") if isinstance(verdicts, list | tuple) else f"a {type(verdicts).__name__}"
    if not isinstance(verdicts, list | tuple) or len(verdicts) != count:
        raise VerifierBrokenError(
            f"{method} of the task {task.name} gave {gave} for {counted(count, 'response')}. It must give a list with "
            "one vapo.types.Verdict for each, in their order."
        )
    return [_usable(verdict, method) for verdict in verdicts]


def _usable(verdict: Any, method: str) -> Verdict:
    if not isinstance(verdict, Verdict):
        return Verdict("invalid", f"{method} gave a {type(verdict).__name__}, not a vapo.types.Verdict")
    if verdict.score is None:
        return verdict
    score = _number(verdict.score)
    if not math.isfinite(score):
        return Verdict("invalid", f"{method} gave the score {verdict.score!r:.80}, which is no finite number")
    return replace(verdict, score=score)


def _number(score: Any) -> float:
    """The score as a number, of a tensor, too; nan if it is none or too large for one."""
    try:
        return float(score) if isinstance(score, SupportsFloat) else math.nan
    except (OverflowError, TypeError, ValueError, RuntimeError):  # a tensor of several numbers, ...
        return math.nan


def _one_by_one(task: FullTask, items: Sequence[tuple[Prompt, str]], on_progress: OnProgress) -> list[Verdict]:
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
