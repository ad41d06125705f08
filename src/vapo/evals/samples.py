"""Store judged samples on disk, so that a stopped evaluation can resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vapo.evals.kept_lines import KeptLines
from vapo.types import Episode, Prompt, Turn, Verdict


class SampleFile:
    """`DIR/samples.jsonl`: one line that describes the evaluation, then one line for each problem with its samples.

    Raises ConfigError if the file holds samples of another evaluation or cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._kept = KeptLines(folder / "samples.jsonl", about, entry="samples", what="evaluation")
        self.path = self._kept.path

    def get(self, prompt: Prompt) -> list[Episode] | None:
        """The stored samples of a problem; None if there are none or if one has an invalid verdict."""
        lines = self._kept.get(prompt.id)
        if lines is None or any(line["verdict"] == "invalid" for line in lines):
            return None  # the verifier may succeed this time
        return [_episode(prompt, number, line) for number, line in enumerate(lines)]

    def put(self, prompt: Prompt, episodes: Sequence[Episode]) -> None:
        """Append the samples of one problem to the file."""
        self._kept.put(prompt.id, [_record(prompt, e) for e in episodes])


def _record(prompt: Prompt, episode: Episode) -> dict[str, Any]:
    opened = episode.prompt.token_ids
    return {
        **({} if opened == prompt.token_ids else {"prompt_tokens": list(opened)}),  # its environment added to it
        "response": episode.response,
        "verdict": episode.verdict.status,
        "reason": episode.verdict.reason,
        "kind": episode.verdict.kind,
        "finish": episode.finish_reason,
        "tokens": list(episode.token_ids),
        "turns": [[turn.author, len(turn.token_ids)] for turn in episode.turns],
    }


def _episode(prompt: Prompt, number: int, line: Mapping[str, Any]) -> Episode:
    turns, start = [], 0
    for author, length in line.get("turns", [["policy", len(line["tokens"])]]):
        # the file has no log-probabilities, because no score needs them
        unknown = (float("nan"),) * (length if author == "policy" else 0)
        turns.append(Turn(author, tuple(line["tokens"][start : start + length]), unknown))
        start += length
    verdict = Verdict(line["verdict"], line["reason"], line.get("kind", "unspecified"))
    prompt = replace(prompt, token_ids=tuple(line.get("prompt_tokens", prompt.token_ids)))
    return Episode(prompt, number, tuple(turns), line["response"], line["finish"], 0, verdict)
