"""The page shows the run's numbers, needs no network, and never executes text that a model wrote."""

import gzip
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from vapo.errors import DataError
from vapo.metrics import Phase
from vapo.reports.page import write_report
from vapo.reports.runfiles import RolloutFile, read_rollouts, read_run, rollout_files
from vapo.reports.viewer import chosen_samples, chosen_steps, script_json, viewer_data, without_middle

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- &amp; \u2028 \ud800 \x1b[31m"


class Elements(HTMLParser):
    """The page's tags with their attributes, and its visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._hidden = [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style", "svg")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style", "svg")

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def report(path):
    page = write_report(path).read_text(encoding="utf-8")
    samples = re.search(r'<script type="application/json" id="samples">(.*?)</script>', page, re.S)
    return page, Elements(page.replace("<wbr>", "")), json.loads(samples[1]) if samples else None


def add_samples(path, records, name="step_000099.jsonl.gz"):
    (path / "rollouts").mkdir(exist_ok=True)
    (path / "rollouts" / name).write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))


def test_the_page_shows_the_numbers_of_the_run(make_run):
    path = make_run()
    page, elements, _ = report(path)
    words, run = elements.words(), read_run(path)
    first, last = run.evaluations[0], run.evaluations[-1]
    assert f"Held-out avg@2 went from {first['avg']:.3f} [" in words
    assert f"to {last['avg']:.3f} [" in words
    assert "1 alarm , the last: The critic is not ready" in words
    assert "3 of 3" in words
    assert f"actor_lr {run.config['trainer']['actor_lr']}" in words
    assert f"packages.torch {run.environment['packages']['torch']}" in words
    assert run.events[0]["time"] in words
    assert len(page) < 1_000_000


def test_the_page_needs_no_network(make_run):
    page, elements, _ = report(make_run())
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        assert not attributes.get("src", "").startswith(("http", "//"))
        assert not (attributes.get("href") or attributes.get("xlink:href") or "#").startswith(("http", "//"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert "@media (prefers-color-scheme: dark)" in page


def test_html_in_model_text_is_shown_as_text(make_run):
    path = make_run("grpo")
    evil = dict.fromkeys(("prompt_id", "prompt", "response", "reason", "sample", "weight_version"), EVIL)
    add_samples(path, [evil | {"verdict": "wrong", "tokens": [EVIL, "ok"], "logp": [-1, -2], "advantage": [0, 1]}])
    (path / "events.jsonl").write_text(json.dumps({"event": "alarm", "time": EVIL, "message": EVIL, EVIL: EVIL}))
    page, elements, data = report(path)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "alert(1)</script>" not in page
    assert "<script>alert" not in page
    shown = data["steps"][-1]["samples"][0]
    assert (shown["tokens"], shown["prompt"]) == ([EVIL, "ok"], EVIL)  # the text is complete
    assert "<script>alert(1)</script>" in elements.words()  # the alarm, as text


def test_html_in_settings_is_shown_as_text(make_run):
    path = make_run(config={"task": {"name": "<b>maze</b>"}, "<i>": "<script>alert(3)</script>"})
    _, elements, _ = report(path)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 2
    assert tags.count("i") == 0
    assert "<script>alert(3)</script>" in elements.words()


def test_the_viewer_script_uses_no_function_that_parses_html_or_code():
    script = (resources.files("vapo.reports") / "assets" / "report.js").read_text()
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert unsafe not in script


def test_the_viewer_has_tokens_with_all_their_numbers(make_run):
    path = make_run()
    data, _ = viewer_data(path)
    assert [step["label"] for step in data["steps"]] == ["pretraining step 2", "step 1", "step 2", "step 3"]
    for step, file in zip(data["steps"], chosen_steps(rollout_files(path)), strict=True):
        records = read_rollouts(file.path)
        assert step["counts"] == {v: [r["verdict"] for r in records].count(v) for v in ("right", "wrong", "invalid")}
        assert len(step["samples"]) == len(records) == 4
    sample = data["steps"][-1]["samples"][0]
    assert sample["num_tokens"] > 20
    assert all(len(sample[key]) == sample["num_tokens"] for key in ("tokens", "logp", "value", "advantage", "return"))
    assert data["scale"]["value"][0] <= 0 < 1 <= data["scale"]["value"][1]


def test_a_run_without_a_critic_is_coloured_by_advantage(make_run):
    data, _ = viewer_data(make_run("grpo"))
    assert data["scale"]["value"] is None
    assert data["scale"]["advantage"] > 0
    assert data["steps"][-1]["samples"][0]["value"] is None


def test_nan_and_short_columns_become_gaps(make_run):
    path = make_run("grpo")
    record = {"verdict": "odd", "tokens": ["a", "b", "c"], "logp": [-1.0], "advantage": [math.nan, math.inf, 0.5]}
    add_samples(path, [record])
    sample = viewer_data(path)[0]["steps"][-1]["samples"][0]
    assert sample["logp"] == [-1.0, None, None]
    assert sample["advantage"] == [None, None, 0.5]
    assert sample["verdict"] == "invalid"


def test_long_responses_are_cut_in_the_middle_to_the_size_limit(make_run):
    path = make_run()
    (record, *_) = read_rollouts(rollout_files(path)[-1].path)
    long = {key: (value * 4000)[:4000] if isinstance(value, list) else value for key, value in record.items()}
    add_samples(path, [long] * 4)
    page, _, _ = report(path)
    assert len(page) < 5_000_000
    small, notes = viewer_data(path, max_bytes=100_000)
    assert len(script_json(small)) <= 100_000
    assert "without their middle" in notes[0]
    sample = small["steps"][-1]["samples"][0]
    assert sample["num_tokens"] == 4000
    assert len(sample["tokens"]) + sample["left_out"] == 4000


def test_cutting_a_cut_sample_again_equals_cutting_it_once():
    series = {key: list(range(100)) for key in ("tokens", "logp", "value", "advantage")}
    whole = series | {"return": None, "cut_at": 0, "left_out": 0}
    once = without_middle(whole, 11)
    assert once["tokens"] == [0, 1, 2, 3, 4, 5, 95, 96, 97, 98, 99]
    assert (once["cut_at"], once["left_out"], once["return"]) == (6, 89, None)
    assert without_middle(without_middle(whole, 51), 11) == once
    assert without_middle(once, 11) is once


def test_samples_are_picked_so_that_each_verdict_appears():
    records = [{"verdict": "wrong", "n": n} for n in range(20)] + [{"verdict": "right", "n": 20}]
    picked = chosen_samples(records, 8)
    assert [record["n"] for record in picked] == [0, 1, 2, 3, 4, 5, 6, 20]
    assert chosen_samples([], 8) == []


def test_the_viewer_has_the_first_middle_and_last_training_step(tmp_path):
    files = [RolloutFile(tmp_path, Phase.PRETRAIN, s) for s in (1, 2)]
    files += [RolloutFile(tmp_path, Phase.TRAIN, s) for s in (1, 10, 20, 30, 40)]
    assert [(f.phase, f.step) for f in chosen_steps(files)] == [
        ("pretrain", 2),
        ("train", 1),
        ("train", 20),
        ("train", 40),
    ]
    assert chosen_steps([]) == []


def test_a_run_before_its_first_step_has_a_page(make_run):
    _, elements, data = report(make_run(begun=True))
    assert data is None
    assert "There is no evaluation both before and after training yet." in elements.words()
    assert "No alarms." in elements.words()


def test_a_damaged_rollout_file_is_named_on_the_page_and_the_rest_is_shown(make_run):
    path = make_run()
    (path / "rollouts" / "step_000002.jsonl.gz").write_bytes(b"junk")
    _, elements, data = report(path)
    assert "step_000002.jsonl.gz cannot be read" in elements.words()
    assert len(data["steps"]) == 3


def test_a_folder_that_is_not_a_run_raises_and_gets_no_page(tmp_path):
    with pytest.raises(DataError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
