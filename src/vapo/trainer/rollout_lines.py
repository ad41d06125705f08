"""The lines of rollout files: which responses are written in full, and what a line has of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vapo.json_text import json_text, null_for_nan
from vapo.trainer.batch import Batch
from vapo.types import Episode

TOKEN_FIELDS = ("token_ids", "prompt_token_ids", "turns")
"""What of an episode goes with its tokens."""
_ANSWER_CHARACTERS = 2_000


def whole_groups(episodes: Sequence[Episode], limit: int) -> int:
    """The number of responses in the first groups that together have at most `limit`; groups are neighbours.

    Of a first group that is larger, `limit` responses.
    """
    if len(episodes) <= limit:
        return len(episodes)
    end = limit
    while end > 0 and episodes[end - 1].prompt.id == episodes[end].prompt.id:
        end -= 1
    return end or limit


def rollout_line(
    line: dict[str, Any],
    row: int,
    episode: Episode,
    batch: Batch,
    decode: Callable[[Sequence[int]], list[str]] | None,
    final_answer: Callable[[str], str | None] | None,
) -> dict[str, Any]:
    """A line of a rollout file: `line`, what the record says of the episode, with the numbers of the batch's row.

    Without `decode` it has the text and no tokens.
    """
    length = int(batch.response_lengths[row])
    written = episode.written

    def numbers(tensor: Any) -> list[float | None] | None:
        """One for each token that the policy wrote, None for the environment's."""
        if tensor is None:
            return None
        found = zip(tensor[row, :length].tolist(), written, strict=True)
        return [null_for_nan(round(x, 4)) if own else None for x, own in found]

    line = line | {
        "answer": plain_answer(episode.prompt.answer),
        "final_answer": None if final_answer is None else _found(final_answer, episode.response),
        "reward": float(batch.outcomes[row]) if episode.verdict.valid else None,
        "score": episode.verdict.score,
        "parts": dict(episode.verdict.parts),
        "lambda": None if batch.lam is None else float(batch.lam[row]),
        "num_tokens": length,
    }
    if decode is None:
        return {name: value for name, value in line.items() if name not in TOKEN_FIELDS}
    log_ratio = None if batch.old_logp is None else batch.old_logp - batch.sampled_logp
    return {
        **line,
        "tokens": decode(episode.token_ids),
        "logp": numbers(batch.sampled_logp),
        "log_ratio": numbers(log_ratio),
        "entropy": numbers(batch.entropy),
        "value": numbers(batch.old_values),
        "advantage": numbers(batch.advantages),
        "return": numbers(batch.returns),
    }


def plain_answer(answer: Any) -> Any:
    """The gold answer for the record: as it is if it is JSON of moderate size, else the start of its text."""
    try:
        text = json_text(answer)
    except (TypeError, ValueError):
        text = str(answer)
    else:
        if len(text) <= _ANSWER_CHARACTERS:
            return answer
    return text[: _ANSWER_CHARACTERS - 1] + "…" if len(text) > _ANSWER_CHARACTERS else text


def _found(final_answer: Callable[[str], str | None], response: str) -> str | None:
    """What the task takes for the response's answer. A record is no reason to stop, whatever a task's function does."""
    try:
        found = final_answer(response)
    except Exception:
        return None
    return None if found is None else str(found)[:_ANSWER_CHARACTERS]
