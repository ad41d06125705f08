"""What a tracker is given, and the trackers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from vapo.errors import ConfigError

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
PACKAGES: Mapping[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
"""The module that a tracker imports, and the package to install for it."""
COLUMNS = ("prompt", "response", "verdict", "reward", "reason")
"""The columns of a table of samples."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run when it begins or goes on."""

    folder: Path
    config: Mapping[str, Any]
    step: int
    """The joint step it goes on from; 0 for a new run."""
    earlier: str | None
    """The tracker's own id of the run, where an earlier start was tracked."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """One tracker of one run. Any method may raise or hang: the run goes on without it."""

    @property
    def id(self) -> str:
        """By which the tracker finds the run again after a resume."""
        ...

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """Numbers by name, of a step; those of value pretraining begin with `pretraining/` and have steps of their
        own."""
        ...

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Some responses of a step, under the names of `COLUMNS`."""
        ...

    def alarm(self, message: str, step: int) -> None:
        """Something is probably wrong."""
        ...

    def close(self, *, failed: bool) -> None:
        """Send what is left; the run has ended, well or not."""
        ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise ConfigError(f"trackers: {name} is not installed. Install it, or leave it out: pip install {package}")


def make_tracker(name: TrackerName, run: TrackedRun) -> Tracker:
    """The tracker, connected to the run's own or to a new one; raises whatever its package raises."""
    return import_module(f"vapo.trackers.{name}_tracker").begin(run)
