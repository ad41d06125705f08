"""How a worker is asked for rounds. Standard library only: every peer's interpreter imports it.

A worker is started with the path of a job, a JSON file. It says once that it is ready and what it is, then answers
each command on stdin with one line on stdout. It ends when stdin closes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


class Channel:
    """The worker's side: the job, the commands and the answers."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        # libraries print to stdout; the answers have it to themselves
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def lengths(self, command: dict[str, Any]) -> list[int] | None:
        """Tokens of each response in this round; None where the model decides."""
        lengths, most = self.job["lengths"], command["at_most"]
        return lengths and [min(length, most or length) for length in lengths]

    def limit(self, command: dict[str, Any]) -> int:
        """The length limit of this round, in tokens."""
        lengths = self.lengths(command)
        return max(lengths) if lengths else min(self.job["max_tokens"], command["at_most"] or self.job["max_tokens"])

    def send(self, **message: Any) -> None:
        """Answer a command; the first answer says what the worker is."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def wait(self) -> dict[str, Any]:
        """The next command; ends the process when there will be none."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # a trainer's loop is somewhere below, and threads of engines may be waiting
        return json.loads(line)
