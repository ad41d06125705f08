"""The viewer's server: on this machine only, reading only, and only what the runs recorded.

It answers `GET` and `HEAD` of a few addresses. None of them names a file: runs are numbers, steps are looked up in the
run's list. Requests for another host name are refused, so that no web page reaches it through a name of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vapo.errors import ConfigError, DataError
from vapo.json_text import json_text
from vapo.reports.view_data import ViewedRun
from vapo.reports.view_page import served_html

ADDRESS = "127.0.0.1"
PORT = 8347
"""The port that is tried first, so that links stay the same."""
HOSTS = ("127.0.0.1", "localhost")
MOST_ROWS = 256
"""Responses in one answer."""
Query = dict[str, list[str]]
Answer = Callable[[ViewedRun, str, Query], Any]


class ViewServer(ThreadingHTTPServer):
    """Serves the viewer of some runs; `serve_forever` runs it."""

    daemon_threads = True

    def __init__(self, runs: Sequence[ViewedRun], port: int | None = None) -> None:
        """Bind to a port of this machine: the given one, or `PORT`, or any where that is taken (0: any)."""
        self.runs = tuple(runs)
        try:
            super().__init__((ADDRESS, PORT if port is None else port), _Handler)
        except OSError as error:
            if port is not None:
                raise ConfigError(
                    f"Port {port} cannot be used: {error.strerror}. Choose another --port, or leave it out."
                ) from error
            super().__init__((ADDRESS, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong with a request, unless the reader closed the page before the answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "vapo", ""
    timeout = 60

    def do_GET(self) -> None:
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if host not in HOSTS:
            self._send(403, "text/plain", f"This server is {self.server.url} on its own machine only.")
            return
        address = urlsplit(self.path)
        try:
            if address.path == "/":
                page, policy = served_html(self.server.runs)
                self._send(200, "text/html", page, policy + "; frame-ancestors 'none'")
            else:
                data = self._data(address.path, parse_qs(address.query))
                self._send(200, "application/json", json_text(data, separators=(",", ":")))
        except (LookupError, ValueError, FileNotFoundError):  # a run may be rolled back and lose a step
            self._send(404, "text/plain", "There is nothing at this address.")
        except DataError as error:
            self._send(422, "text/plain", str(error))

    do_HEAD = do_GET  # noqa: N815  the name is http.server's

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not news."""

    def _data(self, path: str, query: Query) -> Any:
        """The answer to `/data/RUN/WHAT` or `/data/RUN/WHAT/STEP`; LookupError or ValueError if there is none."""
        found = re.fullmatch(r"/data/(\d{1,3})/([a-z]+)(?:/([a-z]+_\d+))?", path)
        if found is None:
            raise LookupError(path)
        return _ANSWERS[found[2]](self.server.runs[int(found[1])], found[3] or "", query)

    def _send(self, status: int, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _rows(run: ViewedRun, step: str, query: Query) -> Any:
    numbers = [int(number) for number in query["n"][0].split(",")]
    return run.rows(step, numbers[:MOST_ROWS])


_ANSWERS: dict[str, Answer] = {
    "run": lambda run, step, query: run.overview(),
    "index": lambda run, step, query: run.index(step),
    "rows": _rows,
    "search": lambda run, step, query: run.search(step, query["q"][0]),
    "history": lambda run, step, query: run.history(query["prompt"][0]),
}
