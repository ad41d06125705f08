"""Results on disk, a line for each prompt, so that long work resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, StoppedError
from vapo.json_text import json_text


class KeptLines:
    """A .jsonl file: a line that describes what the results belong to, then one line for each prompt.

    `entry` is the name of a line's content beside `prompt`. `what` is the kind of results, in words.
    Raises ConfigError if the file holds results of something else, or cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, entry: str, what: str) -> None:
        self.path, self._entry, self._what = path, entry, what
        about = json.loads(json_text(about))
        self._lines: dict[str, Any] = {}
        if self.path.exists():
            self._read(about)
        else:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append({"about": about})
            except OSError as error:
                raise ConfigError(
                    f"Cannot write samples into {path.parent}: {error.strerror}. Choose another --out."
                ) from error

    def get(self, prompt_id: str) -> Any | None:
        """What a prompt's line holds, None if there is none."""
        return self._lines.get(prompt_id)

    def put(self, prompt_id: str, content: Any) -> None:
        """Keep a prompt's line; a later line of the same prompt counts. Raises StoppedError if the disk refuses."""
        try:
            self._append({"prompt": prompt_id, self._entry: content})
        except OSError as error:
            raise StoppedError(
                f"Cannot write {self.path}: {error.strerror}. Free space, then give the same command again; it resumes "
                "where it stopped."
            ) from error

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")

    def _read(self, about: Mapping[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:  # a half-written line
            self.path.write_bytes(b"\n".join(lines[:-1]) + b"\n" if len(lines) > 1 else b"")
        try:
            records = [json.loads(line) for line in lines[:-1] if line]
            self._lines = {record["prompt"]: record[self._entry] for record in records[1:]}
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
                    f"{self.path} holds samples of another {self._what}: {key} was {before.get(key)!r}, is "
                    f"{about.get(key)!r}. Choose another --out."
                )
