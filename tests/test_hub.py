"""A hub that cannot be reached: said in seconds, and what was downloaded before is still taken."""

from __future__ import annotations

import socket
import time
from contextlib import nullcontext

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

from vapo import hub
from vapo.errors import DataError, ModelError
from vapo.models.pretrained import explained, load_config
from vapo.models.tokens import load_tokenizer
from vapo.tasks.row_files import read_rows


@pytest.fixture(autouse=True)
def cut_off(monkeypatch):
    """An address where nobody listens, in the hub's place."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub._tried.cache_clear()
    yield
    hub._tried.cache_clear()


NOT_HERE = r"there is no such .*folder here, it is not in the cache, and 127.0.0.1 cannot be reached \(.*refused"


def test_a_missing_model_raises_at_once_without_the_hub(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    for load in (load_tokenizer, load_config):
        with pytest.raises(ModelError, match=rf"from nobody/nowhere: {NOT_HERE}"):
            load("nobody/nowhere")
    assert not constants.HF_HUB_OFFLINE


def test_a_download_that_breaks_off_is_one_line():
    with (
        pytest.raises(ModelError, match=r"some/model: the connection failed: peer closed connection. Try again\."),
        explained("some/model", "policy"),
    ):
        raise HTTPError("peer closed connection")


def test_a_missing_data_set_raises_at_once_without_the_hub(monkeypatch):
    import datasets

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    with pytest.raises(DataError, match=rf"data set nobody/nowhere, split train: {NOT_HERE}"):
        list(read_rows("nobody/nowhere"))
    assert datasets.config.HF_HUB_OFFLINE == constants.HF_HUB_OFFLINE


def test_a_reachable_hub_and_local_sources_are_used_normally(tmp_path, monkeypatch):
    with hub.hub_access(tmp_path) as why:
        assert (why, constants.HF_HUB_OFFLINE) == ("", False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with hub.hub_access("nobody/nowhere") as why:
            assert (why, constants.HF_HUB_OFFLINE) == ("", False)


def test_behind_a_proxy_the_connection_to_the_proxy_is_checked(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert hub.unreachable() == ""


def test_a_host_lookup_that_hangs_is_abandoned_after_the_limit(monkeypatch):
    monkeypatch.setattr(hub, "LIMIT_S", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *_: time.sleep(0.3) or nullcontext())
    assert hub.unreachable() == "127.0.0.1 cannot be reached (no answer within 0.05 s)"


def test_only_download_errors_count_as_not_cached():
    told = OSError("cannot load")
    told.__cause__ = ConnectionError("offline")
    assert hub.not_cached(told)
    assert not hub.not_cached(ValueError("damaged"))
