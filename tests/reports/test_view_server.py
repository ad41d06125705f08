"""The viewer's server answers its own machine only, reads only, and serves nothing but the run's records."""

import http.client
import json
import threading
from contextlib import contextmanager

import pytest

from vapo.errors import ConfigError
from vapo.reports.view_data import ViewedRun
from vapo.reports.view_server import MOST_ROWS, ViewServer


@contextmanager
def serving(*paths):
    with ViewServer([ViewedRun(path) for path in paths], port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def asked(server, path, *, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


@pytest.fixture
def server(make_run):
    with serving(make_run()) as running:
        yield running


def test_every_address_answers_with_the_runs_data(server):
    run = server.runs[0]
    for path, expected in {
        "/data/0/run": run.overview(),
        "/data/0/index/step_000003": run.index("step_000003"),
        "/data/0/rows/step_000003?n=0,2": {str(n): row for n, row in run.rows("step_000003", [0, 2]).items()},
        "/data/0/search/step_000003?q=north": run.search("step_000003", "north"),
        "/data/0/history?prompt=" + run.index("step_000003")["prompts"][0][0]: run.history(
            run.index("step_000003")["prompts"][0][0]
        ),
    }.items():
        answer, body = asked(server, path)
        assert (answer.status, json.loads(body)) == (200, json.loads(json.dumps(expected))), path
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8347", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0"]
)
def test_a_request_under_another_name_is_refused(server, host):
    for path in ("/", "/data/0/run"):
        answer, body = asked(server, path, host=host)
        assert answer.status == 403
        assert b"maze" not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999"])
def test_its_own_names_are_answered_at_any_port(server, host):
    assert asked(server, "/", host=host)[0].status == 200  # a port may be forwarded


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml", "/../config.yaml", "/data/0/rows/..%2f..%2fconfig?n=0", "/data/0/index/../../config.yaml",
        "/data/7/run", "/data/0/index/step_000099", "/data/0/rows/step_000003", "/data/0/rows/step_000003?n=x",
        "/data/0/nothing", "/data/0/search/step_000003", "/data/0/history", "/data/00000/run", "/favicon.ico",
    ],
)  # fmt: skip
def test_there_is_nothing_at_other_addresses(server, path):
    answer, body = asked(server, path)
    assert answer.status == 404
    assert body == b"There is nothing at this address."


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(server, method):
    folder = server.runs[0].files.path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert asked(server, "/data/0/run", method=method)[0].status == 501
    asked(server, "/data/0/index/step_000001")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_head_request_gets_no_body(server):
    answer, body = asked(server, "/", method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 1000


def test_answers_forbid_foreign_scripts_frames_and_guesses(server):
    page, _ = asked(server, "/")
    policy = page.headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "script-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    for path in ("/", "/data/0/run", "/nothing"):
        headers = asked(server, path)[0].headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


def test_one_answer_has_a_limited_number_of_responses(server):
    answer, body = asked(server, "/data/0/rows/step_000003?n=" + ",".join(map(str, range(9, 9 + MOST_ROWS))) + ",0")
    assert (answer.status, body) == (200, b"{}")


def test_a_damaged_step_is_named_and_the_others_are_served(make_run):
    path = make_run()
    (path / "rollouts" / "step_000002.jsonl.gz").write_bytes(b"junk")
    with serving(path) as server:
        answer, body = asked(server, "/data/0/index/step_000002")
        assert answer.status == 422
        assert b"step_000002.jsonl.gz cannot be read" in body
        assert asked(server, "/data/0/index/step_000003")[0].status == 200


def test_two_runs_are_served_side_by_side(make_run):
    with serving(make_run(), make_run("grpo")) as server:
        names = [json.loads(asked(server, f"/data/{n}/run")[1])["label"] for n in (0, 1)]
        assert names == ["vapo", "grpo"]


def test_a_port_that_is_taken_is_named(server):
    with pytest.raises(ConfigError, match=f"Port {server.server_port} cannot be used"):
        ViewServer([], port=server.server_port)
