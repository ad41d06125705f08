"""How often processes of a run that died may be started again, all kinds together."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from vapo.errors import EngineError, counted


class RestartBudget:
    """Counts restarts; each is an alarm. It may be used from several threads."""

    def __init__(self, limit: int, on_alarm: Callable[[str], None]) -> None:
        self.limit, self.used = limit, 0
        self.on_alarm = on_alarm
        """Gets the alarms; a run puts its own here once it has a folder."""
        self._lock = Lock()

    def spend(self, who: str, why: str, then: str = "") -> None:
        """Take one restart of the process `who`, which was lost because of `why`; `then` is what happens besides.

        Raises EngineError if none is left.
        """
        with self._lock:
            if self.used >= self.limit:
                raise EngineError(
                    f"The {who} was lost: {why}. Processes were started again {counted(self.used, 'time')} "
                    f"(scale.restarts={self.limit})."
                )
            self.used += 1
            number = self.used
        self.on_alarm(
            f"The {who} was lost: {why}. It is started again, {number} of {counted(self.limit, 'restart')}"
            + (f"; {then}" if then else "")
        )
