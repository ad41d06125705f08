"""The page shows the run's numbers, needs no network, and never executes text that a model wrote."""

import gzip
import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from command_line import vapo
from vapo.errors import DataError
from vapo.metrics import Phase
from vapo.reports.metric_panels import metric_panels
from vapo.reports.page import write_report
from vapo.reports.report_samples import chosen_steps, report_samples
from vapo.reports.runfiles import RolloutFile, read_rollouts, read_run, rollout_files
from vapo.reports.view_data import ViewedRun

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


def test_what_the_page_and_the_command_name_can_be_copied(make_run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    path = make_run(name="my first run")
    assert vapo(monkeypatch, "report", str(path)) == 0
    assert capsys.readouterr().out == f"Report: {path / 'report.html'}\n"
    assert f"vapo view '{path}'" in Elements((path / "report.html").read_text(encoding="utf-8")).words()


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
    assert tags.count("script") == 3  # two of them data
    assert "img" not in tags
    assert "alert(1)</script>" not in page
    assert "<script>alert" not in page
    shown = data["parts"]["0/step_000099"]["rows"]["0"]
    assert (shown["tokens"], shown["prompt"]) == ([EVIL, "ok"], EVIL)  # the text is complete
    assert "<script>alert(1)</script>" in elements.words()  # the alarm, as text


def test_html_in_settings_is_shown_as_text(make_run):
    path = make_run(config={"task": {"name": "<b>maze</b>"}, "<i>": "<script>alert(3)</script>"})
    _, elements, _ = report(path)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 3
    assert tags.count("i") == 0
    assert "<script>alert(3)</script>" in elements.words()


def test_scripts_use_no_function_that_parses_html_or_code():
    scripts = [path for path in (resources.files("vapo.reports") / "assets").iterdir() if path.name.endswith(".js")]
    assert len(scripts) >= 6
    for script in scripts:
        text = script.read_text()
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "srcdoc",
        ):
            assert unsafe not in text, (script.name, unsafe)


def test_the_page_has_all_responses_of_its_steps_with_all_their_numbers(make_run):
    path = make_run()
    data, notes = report_samples(ViewedRun(path))
    assert notes == []
    assert data["complete"]
    assert [step["label"] for step in data["runs"][0]["steps"]] == ["pretraining step 2", "step 1", "step 2", "step 3"]
    for file, part in zip(chosen_steps(rollout_files(path)), data["parts"].values(), strict=True):
        records = read_rollouts(file.path)
        assert part["index"]["rows"]["verdict"] == [record["verdict"] for record in records]
        assert len(part["rows"]) == len(records) == 4
    row = data["parts"]["0/step_000003"]["rows"]["0"]
    assert row["num_tokens"] > 20
    assert all(len(row[key]) == row["num_tokens"] for key in ("tokens", "logp", "value", "advantage", "return", "td"))


def test_a_page_of_limited_size_has_whole_responses_of_mixed_groups_first(make_run):
    path = make_run("grpo")
    (record, *_) = read_rollouts(rollout_files(path)[-1].path)
    long = {key: (value * 400)[:400] if isinstance(value, list) else value for key, value in record.items()}
    long |= {"turns": [["policy", 400]], "prompt": "p"}
    records = [long | {"prompt_id": f"p{n // 2}", "verdict": "right" if n == 5 else "wrong"} for n in range(8)]
    for file in rollout_files(path):
        file.path.unlink()
    add_samples(path, records)
    whole = report_samples(ViewedRun(path))[0]["parts"]["0/step_000099"]
    size = len(json.dumps(whole["rows"]["0"], separators=(",", ":")))
    data, _ = report_samples(ViewedRun(path), max_bytes=int(3.5 * size))
    part = data["parts"]["0/step_000099"]
    assert set(part["rows"]) == {"4", "5", "0"}  # the mixed group, then the others
    assert part["index"]["rows"]["full"] == [n in (0, 4, 5) for n in range(8)]
    assert len(part["index"]["rows"]["verdict"]) == 8
    assert not data["complete"]
    assert all(len(row["tokens"]) == 400 for row in part["rows"].values())


def test_all_metrics_are_on_the_page_with_their_meaning(make_run):
    run = read_run(make_run())
    panels = metric_panels(run)
    by_name = {(panel["phase"], panel["name"]): panel for panel in panels["panels"]}
    accuracy = by_name["train", "accuracy"]
    assert accuracy["values"] == [float(f"{row['accuracy']:.5g}") for row in run.phase(Phase.TRAIN)]
    assert accuracy["meaning"]
    assert panels["steps"]["train"] == [1, 2, 3]
    logged = {key for row in run.phase(Phase.TRAIN) for key, value in row.items() if isinstance(value, float)}
    assert {name for phase, name in by_name if phase == "train"} >= logged
    sections = [panel["section"] for panel in panels["panels"]]
    assert sections == sorted(sections, key=sections.index)  # one heading each


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
    assert len(data["parts"]) == 3


def test_a_folder_that_is_not_a_run_raises_and_gets_no_page(tmp_path):
    with pytest.raises(DataError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
