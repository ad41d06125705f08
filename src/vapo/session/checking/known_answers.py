"""The verifier on answers that are known: gold ones must be right, garbage must be wrong."""

from __future__ import annotations

from collections.abc import Sequence

from vapo.errors import counted
from vapo.session.checking.finding import Finding, error, ok, skipped, warning
from vapo.session.rendered_prompts import RenderedPrompts
from vapo.tasks.full_task import FullTask, part_of
from vapo.tasks.problem_options import CHECKABLE
from vapo.types import Prompt, Verdict

JUDGED = 32
"""So many prompts' answers are judged."""
GARBAGE = ("", "I do not know.", "the the the the the the the the")
"""Responses that answer nothing."""
MOST_INVALID = 0.1
"""A larger share of verdicts that are neither right nor wrong is warned about."""


def check_answers(task: FullTask, prompts: RenderedPrompts) -> list[Finding]:
    """What the verifier says of gold answers and of garbage."""
    if task.environment is not None:
        return [skipped("verifier", "the task's environment judges its own episodes, which need a policy")]
    if "verify_groups" in task.given and _verifier(task) not in CHECKABLE:  # those judge each response by itself
        return [skipped("verifier", "it may compare the responses to one prompt, so no answer is right by itself")]
    chosen = [prompts[i] for i in range(min(JUDGED, len(prompts)))]
    gold = gold_answers(task, chosen)
    findings: list[Finding] = []
    if gold:
        findings.append(_on_gold(_judged(task, gold), gold, certain=known_form(task)))
    else:
        findings.append(skipped("verifier on gold", "the form of a right response is not known for this task"))
    garbage = [(prompt, text) for prompt in chosen for text in GARBAGE]
    findings.append(_on_garbage(_judged(task, garbage), garbage))
    return findings


def gold_answers(task: FullTask, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
    """Prompts with right responses: the task's own example, else the answers in a box."""
    example = part_of(task.original, "example", None)
    if callable(example):
        prompt, response = example()  # type: ignore[misc]
        return [(prompt, response)]
    return [(p, f"\\boxed{{{p.answer}}}") for p in prompts if isinstance(p.answer, str | int | float)]


def known_form(task: FullTask) -> bool:
    """Whether the gold responses are certainly right ones."""
    return callable(part_of(task.original, "example", None)) or _verifier(task) in CHECKABLE


def _verifier(task: FullTask) -> str | None:
    """The name of a data task's verifier; None for other tasks."""
    return getattr(task.options, "verifier", None)


def _judged(task: FullTask, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
    """A verdict for each; one that raises is invalid."""
    try:
        if task.verify_all is not None:
            return task.verify_all(items, lambda _done, _of: None)
        return [task.verify(prompt, response) for prompt, response in items]
    except Exception as problem:
        return [Verdict("invalid", f"the verifier raised {type(problem).__name__}: {problem}")] * len(items)


def _on_gold(verdicts: Sequence[Verdict], items: Sequence[tuple[Prompt, str]], *, certain: bool) -> Finding:
    name, right = "verifier on gold", sum(verdict.right for verdict in verdicts)
    words = f"{right} of {counted(len(verdicts), 'gold answer')} right"
    if right == len(verdicts):
        return ok(name, words)
    at = next(i for i, verdict in enumerate(verdicts) if not verdict.right)
    words += (
        f"; the first that is {verdicts[at].status}: prompt {items[at][0].id}, {verdicts[at].reason or 'no reason'}"
    )
    if certain or any(not verdict.valid for verdict in verdicts):
        return error(name, words, "Mend the verifier or the answers of the data.")
    return warning(name, words, "Answers were given in \\boxed{}: look whether that is a right response here.")


def _on_garbage(verdicts: Sequence[Verdict], items: Sequence[tuple[Prompt, str]]) -> Finding:
    name = "verifier on garbage"
    right = [item for item, verdict in zip(items, verdicts, strict=True) if verdict.right]
    wrong = sum(verdict.status == "wrong" for verdict in verdicts)
    words = f"{wrong} of {counted(len(verdicts), 'garbage response')} wrong"
    if right:
        prompt, text = right[0]
        return error(
            name,
            f"{words}, {len(right)} right; the first: {text!r} for prompt {prompt.id}",
            "A verifier that accepts anything teaches anything: mend it.",
        )
    invalid = len(verdicts) - wrong
    if invalid > MOST_INVALID * len(verdicts):
        reason = next(verdict.reason for verdict in verdicts if not verdict.valid)
        return warning(name, f"{words}, {invalid} invalid: {reason}", "Let the verifier answer wrong to nonsense.")
    return ok(name, words)
