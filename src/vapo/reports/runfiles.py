"""Read the files of a run directory: `read_run` for everything small, `read_rollouts` for samples.

A run may be killed at any moment, so the last line of a JSONL file may be half written; it is skipped. A
damaged line anywhere else is an error that names file and line.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vapo.errors import DataError
from vapo.metrics import EventName, Phase

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The content of a run's files. Files that do not exist yet are empty here."""

    path: Path
    config: Record
    config_text: str
    method: Record
    """The content of method.yaml: the label and the expanded method; empty for a run of vapo 0.1."""
    environment: Record
    metrics: list[Record]
    events: list[Record]
    evaluations: list[Record]

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.resolve().name

    @property
    def label(self) -> str:
        """A label of the method that ran, such as "vapo without clip-higher, changed: credit.gamma"."""
        if label := self.method.get("label"):
            return str(label)
        algorithm = self.config.get("algorithm")
        if not isinstance(algorithm, dict):
            return str(algorithm or "unknown")
        removed = algorithm.get("without") or []
        preset = str(algorithm.get("preset") or "custom")
        return f"{preset} without {', '.join(map(str, removed))}" if removed else preset

    @property
    def alarms(self) -> list[Record]:
        """The alarms among the events."""
        return [event for event in self.events if event.get("event") == EventName.ALARM]

    def phase(self, phase: Phase) -> list[Record]:
        """The metrics of one phase, one record per step."""
        return [row for row in self.metrics if row.get("phase", Phase.TRAIN) == phase]


@dataclass(frozen=True)
class RolloutFile:
    """The file with the samples of one step."""

    path: Path
    phase: Phase
    step: int


def read_run(path: str | Path) -> RunFiles:
    """Read everything small in a run directory. Raises DataError if the folder is not a run."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"No run at {folder}: there is no such folder. Name the --run-dir of a training run.")
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        raise DataError(
            f"{folder} is not a run: it has neither config.yaml nor metrics.jsonl. "
            "Name the folder that `vapo train` wrote."
        )
    config_text = _text(folder / "config.yaml")
    return RunFiles(
        path=folder,
        config=_yaml_object(folder / "config.yaml", config_text),
        config_text=config_text,
        method=_yaml_object(folder / "method.yaml", _text(folder / "method.yaml")),
        environment=_json_object(folder / "environment.json"),
        metrics=read_jsonl(folder / "metrics.jsonl"),
        events=read_jsonl(folder / "events.jsonl"),
        evaluations=read_jsonl(folder / "evaluations.jsonl"),
    )


def read_jsonl(path: Path) -> list[Record]:
    """The objects of a JSONL file, without a half-written last line; empty if there is no file."""
    if not path.exists():
        return []
    return _objects(path, path.read_bytes())


def rollout_files(path: str | Path) -> list[RolloutFile]:
    """The rollout files of a run: pretraining first, then training, each by step."""
    found = []
    for file in (Path(path) / "rollouts").glob("*.jsonl.gz"):
        match = re.fullmatch(r"(step|pretrain)_(\d+)\.jsonl\.gz", file.name)
        if match:
            phase = Phase.TRAIN if match[1] == "step" else Phase.PRETRAIN
            found.append(RolloutFile(path=file, phase=phase, step=int(match[2])))
    return sorted(found, key=lambda file: (file.phase != Phase.PRETRAIN, file.step))


def read_rollouts(path: Path) -> list[Record]:
    """The samples of one rollout file, up to where a killed run stopped writing. Raises DataError for other damage."""
    packed, content = path.read_bytes(), bytearray()
    try:
        while packed:  # a gzip file holds one or more streams; a cut one yields the bytes before the cut
            stream = zlib.decompressobj(wbits=31)
            content += stream.decompress(packed)
            packed = stream.unused_data
    except zlib.error as error:
        raise DataError(f"{path} cannot be read: {error}. Delete it to continue without it.") from error
    return _objects(path, bytes(content))


def number(value: object) -> float:
    """A metric as a float; nan for null, for a missing value, and for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def column(rows: list[Record], key: str) -> tuple[list[int], list[float]]:
    """The steps and finite values of one metric; steps without a finite value are left out."""
    points = [(int(row.get("step", index)), number(row.get(key))) for index, row in enumerate(rows, start=1)]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf value) of nested settings, in order; an empty mapping is a leaf."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _objects(path: Path, content: bytes) -> list[Record]:
    lines = [(at, line) for at, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    records = []
    for at, line in lines:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, found {type(record).__name__}")
        except ValueError as error:  # includes JSON and Unicode errors
            if at == lines[-1][0]:
                break
            raise DataError(f"{path}, line {at}: {error}. Only the last line may be half written.") from error
        records.append(record)
    return records


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _yaml_object(path: Path, text: str) -> Record:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise DataError(f"{path} should hold settings by name, found {type(content).__name__}.")
    return content or {}


def _json_object(path: Path) -> Record:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {"environment": content}
