"""The health of workers as a pure state machine: no processes, no clock.

    DEAD --begin--> STARTING --ready--> HEALTHY or STALE --handed_over--> HEALTHY
      ^---------------lost---------------------------/

A worker is used while HEALTHY only: it has said that it has the current version. A DEAD one becomes HEALTHY in no other
way than through a new life, which starts with a hand-over. What an earlier life says is ignored.
"""

from __future__ import annotations

from enum import Enum


class Health(Enum):
    """What a worker may be used for."""

    DEAD = "dead"
    STARTING = "starting"
    """A new process, which has not said yet that it is ready."""
    STALE = "stale"
    """Ready, with another version than the current one."""
    HEALTHY = "healthy"


class Fleet:
    """The states of `size` workers, numbered from 0, all dead at first."""

    def __init__(self, size: int) -> None:
        self.version = 0
        """The current version."""
        self._health = [Health.DEAD] * size
        self._lives = [0] * size

    def health(self, worker: int) -> Health:
        """The worker's state."""
        return self._health[worker]

    def usable(self) -> list[int]:
        """The healthy workers, in order."""
        return [worker for worker, health in enumerate(self._health) if health is Health.HEALTHY]

    def life(self, worker: int) -> int:
        """The number of its processes so far; events name the life that they are about."""
        return self._lives[worker]

    def current(self, worker: int, life: int) -> bool:
        """Whether this is the worker's present life, and not over."""
        return life == self._lives[worker] and self._health[worker] is not Health.DEAD

    def begin(self, worker: int) -> int:
        """A new process of a dead worker was started; returns the number of this life."""
        self._expect(worker, Health.DEAD)
        self._lives[worker] += 1
        self._health[worker] = Health.STARTING
        return self._lives[worker]

    def ready(self, worker: int, life: int, version: int) -> Health:
        """It has started, with this version."""
        if self.current(worker, life):
            self._expect(worker, Health.STARTING)
            self._set(worker, version)
        return self._health[worker]

    def publish(self, version: int) -> None:
        """There is a new version, which no worker has yet."""
        self.version = version
        self._health = [Health.STALE if health is Health.HEALTHY else health for health in self._health]

    def handed_over(self, worker: int, life: int, version: int) -> Health:
        """It has taken over this version."""
        if self.current(worker, life):
            self._expect(worker, Health.STALE, Health.HEALTHY)
            self._set(worker, version)
        return self._health[worker]

    def lost(self, worker: int, life: int) -> bool:
        """Its process ended or hangs; False if that is known already."""
        known = not self.current(worker, life)
        if not known:
            self._health[worker] = Health.DEAD
        return not known

    def _set(self, worker: int, version: int) -> None:
        self._health[worker] = Health.HEALTHY if version == self.version else Health.STALE

    def _expect(self, worker: int, *allowed: Health) -> None:
        if self._health[worker] not in allowed:
            raise ValueError(f"worker {worker} is {self._health[worker].value}: this cannot happen to it now")
