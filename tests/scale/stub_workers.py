"""Workers in threads that answer as processes do, and that can be killed, stopped or delayed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from vapo.scale.crew import WorkerLostError


class StubBackend:
    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        return list(wait(calls, timeout_s, FIRST_COMPLETED).done)

    def result(self, call: Any) -> Any:
        return call.result()


class StubProcess:
    """`answer(process, method, *arguments)` runs in a thread of the call."""

    def __init__(self, number: int, answer: Callable[..., Any]) -> None:
        self.number, self._answer = number, answer
        self.killed, self.hangs = threading.Event(), threading.Event()
        self.version = -1
        self.progress: tuple[int, ...] = ()
        self._open: list[Future[Any]] = []
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._open.append(future)
        if self.killed.is_set():
            self._end(future)
        else:
            threading.Thread(target=self._run, args=(future, method, arguments), daemon=True).start()
        return future

    def _run(self, future: Future[Any], method: str, arguments: tuple[Any, ...]) -> None:
        while self.hangs.is_set() and not self.killed.is_set():
            time.sleep(0.01)
        try:
            result = self.progress if method == "beat" else self._answer(self, method, *arguments)
        except Exception as error:
            self._end(future, error)
            return
        self._end(future, result=result)

    def _end(self, future: Future[Any], error: Exception | None = None, result: Any = None) -> None:
        with self._lock:
            if future.done():
                return
            if self.killed.is_set():
                future.set_exception(WorkerLostError("it was killed"))
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

    def describe(self) -> str:
        return f"stub {self.number}"

    def kill(self) -> None:
        self.killed.set()
        for future in list(self._open):
            self._end(future)
