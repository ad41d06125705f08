"""Checks whether the hub of models and data sets can be reached, in 5 seconds; its own libraries try for a minute."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LIMIT_S = 5.0
"""Seconds allowed for looking up the host and connecting."""
FRESH_S = 60.0
"""Seconds until the connection is checked again."""


@contextmanager
def hub_access(source: str | Path) -> Iterator[str]:
    """Load `source` within this context. Yields why the hub cannot be used; "" if it can, or if the source is local.

    Without the hub, its libraries use what was downloaded before and fail at once for everything else.
    """
    why = "" if Path(source).exists() else unreachable()
    with _cache_only() if why else nullcontext():
        yield why


def not_cached(error: BaseException | None) -> bool:
    """Whether an error means that a file would have to be downloaded."""
    while error is not None:
        if type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def unreachable() -> str:
    """Why the hub cannot be reached from this machine; "" if it can. Behind a proxy, tries the proxy."""
    from huggingface_hub import constants

    return _tried(constants.ENDPOINT, int(time.monotonic() / FRESH_S))


@lru_cache(maxsize=1)
def _tried(endpoint: str, _: int) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    hub = urlsplit(endpoint)
    host, port = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
    proxies = {} if proxy_bypass(host) else getproxies()
    through = proxies.get(hub.scheme) or proxies.get("all")
    if through:
        proxy = urlsplit(through if "//" in through else f"//{through}")
        host, port = proxy.hostname or "", proxy.port or (443 if proxy.scheme == "https" else 80)
    reason = _no_connection(host, port)
    return f"{host} cannot be reached ({reason})" if reason else ""


def _no_connection(host: str, port: int) -> str:
    """Why connecting failed or took longer than the limit; "" if it succeeded."""
    found = [f"no answer within {LIMIT_S:g} s"]

    def connect() -> None:
        try:
            with socket.create_connection((host, port), LIMIT_S):
                found[0] = ""
        except (OSError, UnicodeError) as error:
            found[0] = str(error)

    # looking up a name has no time limit of its own
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return found[0]


@contextmanager
def _cache_only() -> Iterator[None]:
    """Within, the hub's libraries use what was downloaded before and make no connection."""
    from huggingface_hub import constants

    places: list[Any] = [constants, *(m for m in [sys.modules.get("datasets.config")] if m is not None)]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was
