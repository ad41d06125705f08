"""Store judged samples on disk, so that a stopped evaluation can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError
from vapo.json_text import json_text
from vapo.types import Completion, Episode, Prompt, Verdict


class SampleFile:
    """`DIR/samples.jsonl`: one line that describes the evaluation, then one line for each problem with its samples.

    Raises ConfigError if the file holds samples of another evaluation or cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.path = folder / "samples.jsonl"
        about = json.loads(json_text(about))
        self._lines: dict[str, list[dict[str, Any]]] = {}
        if self.path.exists():
            self._read(about)
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._append({"about": about})
            except OSError as error:
                raise ConfigError(
                    f"Cannot write samples into {folder}: {error.strerror}. Choose another --out."
                ) from error

    def get(self, prompt: Prompt) -> list[Episode] | None:
        """The stored samples of a problem; None if there are none or if one has an invalid verdict."""
        lines = self._lines.get(prompt.id)
        if lines is None or any(line["verdict"] == "invalid" for line in lines):
            return None  # the verifier may succeed this time
        return [_episode(prompt, number, line) for number, line in enumerate(lines)]

    def put(self, episodes: Sequence[Episode]) -> None:
        """Append the samples of one problem to the file."""
        self._append({"prompt": episodes[0].prompt.id, "samples": [_record(e) for e in episodes]})

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")

    def _read(self, about: Mapping[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:  # a half-written line
            self.path.write_bytes(b"\n".join(lines[:-1]) + b"\n" if len(lines) > 1 else b"")
        try:
            records = [json.loads(line) for line in lines[:-1] if line]
            self._lines = {record["prompt"]: record["samples"] for record in records[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path} is damaged or not a file of vapo: {error}. Choose another --out."
            ) from error
        before = records[0].get("about", {}) if records else about
        if not records:
            self._append({"about": about})
        for key in sorted({*before, *about}):
            if before.get(key) != about.get(key):
                raise ConfigError(
                    f"{self.path} holds samples of another evaluation: {key} was {before.get(key)!r}, is "
                    f"{about.get(key)!r}. Choose another --out."
                )


def _record(episode: Episode) -> dict[str, Any]:
    return {
        "response": episode.response,
        "verdict": episode.verdict.status,
        "reason": episode.verdict.reason,
        "kind": episode.verdict.kind,
        "finish": episode.finish_reason,
        "tokens": list(episode.token_ids),
    }


def _episode(prompt: Prompt, number: int, line: Mapping[str, Any]) -> Episode:
    tokens = tuple(line["tokens"])
    unknown = (float("nan"),) * len(tokens)  # the file has no log-probabilities, because no score needs them
    completion = Completion(tokens, unknown, line["finish"], 0)
    return Episode.of_completion(
        prompt,
        number,
        completion,
        line["response"],
        Verdict(line["verdict"], line["reason"], line.get("kind", "unspecified")),
    )
