"""The `Backend` of a crew over Ray's references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vapo.errors import EngineError, RankError
from vapo.scale.cluster import import_ray
from vapo.scale.crew import WorkerLostError
from vapo.scale.ray_signals import raised_by_signals


class RayBackend:
    """Waits for calls of `RemoteProcess`."""

    def __init__(self) -> None:
        self._ray = import_ray()

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """See `Backend`."""
        calls = list(calls)
        with raised_by_signals():
            ready, waiting = self._ray.wait(calls, num_returns=1, timeout=timeout_s, fetch_local=False)
            if ready and waiting:
                more, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
                ready += more
        return ready

    def result(self, call: Any) -> Any:
        """See `Backend`. An error that the call raised comes as it was raised there.

        Raises RankError where the call could not read its weights: the store forgets what a dead rank has put there.
        """
        from ray.exceptions import ObjectLostError, RayError, RayTaskError

        try:
            with raised_by_signals():
                return self._ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineError):  # the engine in it is lost, so a new worker has to do its work
                raise WorkerLostError(str(cause)) from error
            if isinstance(cause, ObjectLostError):
                raise RankError(
                    "The weights for the rollout workers are lost: the training rank that handed them out died, or its "
                    "machine is gone."
                ) from error
            raise (cause if isinstance(cause, Exception) else error) from error
        except RayError as error:
            raise WorkerLostError(how_it_ended(error)) from error


def how_it_ended(error: BaseException) -> str:
    """Ray's account of a lost process in a few words."""
    text = str(error)
    if "node" in text.lower() and "died" in text.lower() and "worker" not in text.lower():
        return "its machine is gone"
    if "connection error code 2" in text or "End of file" in text:
        return "its process ended (killed, or out of memory?)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
