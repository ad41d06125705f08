"""The viewer's page: text of a run never becomes markup or script, with a server or without."""

import json
import re

import pytest

from reports.test_page import EVIL, Elements, add_samples
from vapo.cli.viewing import view
from vapo.errors import ConfigError, DataError
from vapo.reports import view_page
from vapo.reports.view_data import ViewedRun
from vapo.reports.view_page import hash_of, served_html, view_html


def evil_run(make_run):
    path = make_run(name=f"<img src=x> {EVIL[:9].replace('/', '')}")
    names = ("prompt_id", "response", "reason", "sample", "weight_version", "final_answer", "kind")
    record = dict.fromkeys(names, EVIL) | {
        "verdict": "wrong",
        "tokens": [EVIL, "ok"],
        "logp": [-1, -2],
        "answer": {EVIL: EVIL},
    }
    add_samples(path, [record | {"prompt": [{"role": EVIL, "content": EVIL}], "parts": {EVIL: 1.0}}])
    return path


@pytest.mark.parametrize("served", [True, False])
def test_text_of_a_run_is_data_and_not_markup(make_run, served):
    run = ViewedRun(evil_run(make_run))
    page = served_html([run])[0] if served else view_html([run])
    tags = [tag for tag, _ in Elements(page).tags]
    assert tags.count("script") == 2  # the data and our own
    assert not {"img", "iframe", "link", "object", "base"} & set(tags)
    assert "<script>alert" not in page
    if not served:
        data = json.loads(re.search(r'id="samples">(.*?)</script>', page, re.S)[1])
        row = data["parts"]["0/step_000099"]["rows"]["0"]
        assert (row["tokens"][0], row["prompt"][0]["content"], row["answer"]) == (EVIL, EVIL, {EVIL: EVIL})


def test_the_policy_allows_exactly_our_script_and_our_style(make_run):
    page, policy = served_html([ViewedRun(make_run())])
    script = re.findall(r"<script>(.*?)</script>", page, re.S)
    style = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert len(script) == len(style) == 1
    assert f"script-src {hash_of(script[0])};" in policy
    assert f"style-src {hash_of(style[0])};" in policy
    assert "unsafe" not in policy
    meta = [dict(attrs).get("content") for tag, attrs in Elements(page).tags if tag == "meta"]
    assert policy in meta


def test_the_page_without_a_server_asks_nobody(make_run):
    page = view_html([ViewedRun(make_run())])
    assert "connect-src" not in page.split("</head>")[0]
    (policy,) = [dict(attrs)["content"] for tag, attrs in Elements(page).tags if "http-equiv" in dict(attrs)]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r'(src|href)="', page)


def test_the_page_has_the_chosen_steps(make_run):
    run = ViewedRun(make_run())
    assert list(view_page.embedded_data([run], [1, 3])["parts"]) == ["0/step_000001", "0/step_000003"]
    assert len(view_page.embedded_data([run, run])["parts"]) == 10
    for steps in ([7], [1, 7]):  # also beside one that is there
        with pytest.raises(ConfigError, match=r"no recorded responses of step 7\. Choose from 1, 2, 3;"):
            view_html([run], steps)


def test_a_page_that_is_too_large_is_refused_with_the_way_out(make_run, monkeypatch):
    monkeypatch.setattr(view_page, "MOST_BYTES", 1_000)
    with pytest.raises(ConfigError, match="--step"):
        view_html([ViewedRun(make_run())])


def test_the_command_writes_the_page_or_says_what_is_wrong(make_run, tmp_path, capsys):
    path = make_run()
    view(path, None, out=tmp_path / "page.html", step=None, port=None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "page.html").stat().st_size > 50_000
    with pytest.raises(ConfigError, match="Add --out"):
        view(path, None, out=None, step=[1], port=None)
    with pytest.raises(ConfigError, match="Cannot write"):
        view(path, None, out=tmp_path / "no" / "page.html", step=None, port=None)
    with pytest.raises(DataError, match="No run at"):
        view(tmp_path / "nothing", None, out=None, step=None, port=None)
