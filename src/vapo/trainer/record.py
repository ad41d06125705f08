"""The run directory: write logs and rollouts, cut the log lines of an interrupted attempt."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from safetensors.torch import save_file

from vapo.durability.checkpoint import LOCK
from vapo.errors import ConfigError, DataError
from vapo.json_text import json_text
from vapo.trainer.batch import Batch
from vapo.trainer.rollout_blocks import index_path, write_blocks, write_index
from vapo.trainer.rollout_lines import plain_answer, rollout_line, whole_groups
from vapo.trainer.rollouts import Rollout
from vapo.types import Episode, Prompt, Turn, Verdict

EVENTS = "events.jsonl"
BYTES_PER_TOKEN = 40
"""About what `write_rollout` writes for a response token: its number, its log-probability, its text."""
LOGS = ("metrics.jsonl", EVENTS, "evaluations.jsonl")
_ROLLOUT_FILE = re.compile(r"(step|pretrain)_(\d+)\.(?:jsonl|index\.json)\.gz")
"""A file of a step's responses, or the index of its lines."""


class RunFolder:
    """Append-only logs and rollouts of one run. One process at a time: the folder is locked while open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: dict[str, str] = {}
        self._appending = Lock()  # an engine may raise an alarm from the thread that samples ahead
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("w")
        except OSError as error:
            raise ConfigError(
                f"Cannot write to {path}: {error.strerror}. Choose another --run-dir, or mend its permissions."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                f"Another process is working on {path}. Wait for it, or choose another --run-dir."
            ) from error
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"Cannot lock {path / LOCK}: {error.strerror}. Choose a --run-dir on a file system with locks."
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / name)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def metrics(self, figures: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._append("metrics.jsonl", figures)

    def evaluation(self, result: dict[str, Any]) -> None:
        """Append a line to evaluations.jsonl."""
        self._append("evaluations.jsonl", result)

    def event(self, event: str, *, lasting: bool = False, **details: Any) -> None:
        """Append a line to events.jsonl, with the time of day.

        A `lasting` event is about the process, not about the run's state, such as a resume. It is synced to the disk
        at once, and `cut_logs` keeps it.
        """
        marks = {"lasting": True} if lasting else {}
        line = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **details, **marks}
        self._append(EVENTS, line, sync=lasting)

    def log_bytes(self) -> dict[str, int]:
        """Bring all lines to the disk; the length of each log. Raises OSError if the disk refuses."""
        lengths = {}
        for name in LOGS:
            path = self.path / name
            lengths[name] = 0
            with self._appending:
                if path.exists() or name in self._waiting:
                    with path.open("ab", buffering=0) as file:
                        self._write(name, file)
                        os.fsync(file.fileno())
                    lengths[name] = path.stat().st_size
        return lengths

    def cut_logs(self, lengths: dict[str, int]) -> None:
        """Cut each log to its length in `lengths`: the lines after a checkpoint go, so each step appears once.

        Lasting events stay.
        """
        events = self.path / EVENTS
        content = events.read_bytes() if events.exists() else b""
        length = lengths.get(EVENTS, 0)
        lasting = "".join(_lasting_lines(content[length:].decode(errors="replace") + self._waiting.get(EVENTS, "")))
        self._waiting.clear()
        for name in LOGS:
            path = self.path / name
            if path.exists() and not (name == EVENTS and lasting):
                os.truncate(path, min(path.stat().st_size, lengths.get(name, 0)))
        if lasting:
            try:
                self.write_text(EVENTS, content[:length].decode(errors="replace") + lasting)
            except OSError:  # a full disk: cut the log, and write the lasting events when there is space
                (self.path / f".{EVENTS}.tmp").unlink(missing_ok=True)
                if events.exists():
                    os.truncate(events, min(len(content), length))
                self._waiting[EVENTS] = lasting

    def rollouts(
        self,
        name: str,
        episodes: Sequence[Episode],
        batch: Batch,
        decode: Callable[[Sequence[int]], list[str]],
        *,
        in_full: int | None = None,
        final_answer: Callable[[str], str | None] | None = None,
    ) -> None:
        """Write the step's responses, one JSON object a line, and the index of the lines; raises OSError.

        The first groups, up to `in_full` responses (None: all), are written with every token and its numbers, the
        others with their text. `final_answer` finds the short answer in a response.
        """
        folder = self.path / "rollouts"
        temporary = folder / f".{name}.tmp"
        full = len(episodes) if in_full is None else whole_groups(episodes, in_full)
        lines = (
            rollout_line(_episode_line(episode), row, episode, batch, decode if row < full else None, final_answer)
            for row, episode in enumerate(episodes)
        )
        try:
            folder.mkdir(exist_ok=True)
            index = write_blocks(temporary, lines)
            target = folder / f"{name}.jsonl.gz"
            index_path(target).unlink(missing_ok=True)
            temporary.rename(target)
            write_index(index, temporary)
            temporary.rename(index_path(target))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def cut_rollouts(self, step: int, pretrain_step: int) -> None:
        """Remove the responses of later joint steps and of later steps of value pretraining, with their indices."""
        last = {"step": step, "pretrain": pretrain_step}
        for file in (self.path / "rollouts").glob("*.gz"):
            found = _ROLLOUT_FILE.fullmatch(file.name)
            if found and int(found[2]) > last[found[1]]:
                file.unlink(missing_ok=True)

    def keep_skipped(self, name: str, batches: Sequence[Batch]) -> None:
        """Write minibatches whose gradient steps were skipped, to inspect and to repeat; raises OSError or
        SafetensorError."""
        folder = self.path / "skipped"
        for number, batch in enumerate(batches):
            folder.mkdir(exist_ok=True)
            save_file(batch.tensors(), folder / f"{name}_{number}.safetensors")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _append(self, name: str, data: dict[str, Any], *, sync: bool = False) -> None:
        line = json_text(data) + "\n"
        with self._appending:
            self._waiting[name] = self._waiting.get(name, "") + line
            # On a full disk the lines wait in memory, and the next save reports it.
            with contextlib.suppress(OSError), (self.path / name).open("ab", buffering=0) as file:
                self._write(name, file)
                if sync:
                    os.fsync(file.fileno())

    def _write(self, name: str, file: FileIO) -> None:
        """Write the waiting lines, all of them or none."""
        before = os.fstat(file.fileno()).st_size
        left = self._waiting.get(name, "").encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
        self._waiting.pop(name, None)


def _lasting_lines(text: str) -> Iterator[str]:
    """The lines of lasting events; a torn line is left out."""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("lasting") and line.endswith("\n"):
                yield line


def read_episodes(path: Path) -> list[Episode]:
    """The episodes of a file that `RunFolder.rollouts` wrote, to be scored or judged again: those written in full.

    Log-probabilities have 4 decimals. A prompt has its id, text and tokens; what the verifier needs is the task's.
    Raises DataError for a file that is damaged or older than its token ids.
    """
    try:
        with gzip.open(path, "rt") as file:
            lines = [json.loads(line) for line in file]
        return [_episode(line) for line in lines if "tokens" in line]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as rollouts with token ids ({type(error).__name__}: {error}). It is cut short, or "
            "an older version of vapo wrote it: save the rollouts again."
        ) from error


def write_rollout(path: Path, rollout: Rollout) -> None:
    """Write a rollout that nothing has been learned from yet; `read_rollout` reads it back with the same numbers.

    Of what the verifier needs of a prompt only the answer is kept, as records show it: everything is judged. Durations
    are left out.
    """
    with path.open("w") as file:
        file.write(json_text({"prompts_seen": rollout.prompts_seen, "kept": rollout.kept}) + "\n")
        for episode in rollout.drawn:
            more = {
                "score": episode.verdict.score,
                "parts": dict(episode.verdict.parts),
                "privileged_ids": list(episode.prompt.privileged_ids),
                "gold": plain_answer(episode.prompt.answer),
                "opened": episode.opened,
            }
            file.write(json_text({**_episode_line(episode), "logp": list(episode.logprobs), **more}) + "\n")


def read_rollout(path: Path) -> Rollout:
    """The rollout that `write_rollout` wrote."""
    with path.open() as file:
        head = json.loads(next(file))
        return Rollout(tuple(_episode(json.loads(line)) for line in file), tuple(head["kept"]), head["prompts_seen"])


def _episode(line: dict[str, Any]) -> Episode:
    text = line["prompt"] if isinstance(line["prompt"], str) else tuple(line["prompt"])
    turns, start = [], 0
    for author, length in line["turns"]:
        ids = tuple(line["token_ids"][start : start + length])
        logp = [math.nan if x is None else x for x in line["logp"][start : start + length]]
        turns.append(Turn(author, ids, tuple(logp) if author == "policy" else ()))
        start += length
    return Episode(
        prompt=Prompt(
            line["prompt_id"],
            text,
            token_ids=tuple(line["prompt_token_ids"]),
            answer=line.get("gold"),
            privileged_ids=tuple(line.get("privileged_ids", ())),
        ),
        sample=line["sample"],
        turns=tuple(turns),
        response=line["response"],
        finish_reason="length" if line["truncated"] else "stop",
        policy_version=line["weight_version"],
        verdict=Verdict(line["verdict"], line["reason"], line["kind"], line.get("score"), line.get("parts") or {}),
        opened=line.get("opened", 0),
    )


def _episode_line(episode: Episode) -> dict[str, Any]:
    """What `_episode` reads, but for the log-probabilities."""
    return {
        "prompt_id": episode.prompt.id,
        "prompt": episode.prompt.text,
        "response": episode.response,
        "verdict": episode.verdict.status,
        "reason": episode.verdict.reason,
        "kind": episode.verdict.kind,
        "sample": episode.sample,
        "weight_version": episode.policy_version,
        "truncated": episode.truncated,
        "token_ids": list(episode.token_ids),
        "prompt_token_ids": list(episode.prompt.token_ids),
        "turns": [[turn.author, len(turn.token_ids)] for turn in episode.turns],
    }
