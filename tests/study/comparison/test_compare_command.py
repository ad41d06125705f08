"""`vapo compare` from the command line."""

import json

import pytest
from typer.testing import CliRunner

from vapo.cli import app
from vapo.errors import ConfigError, DataError

runner = CliRunner()


def test_compare_writes_four_files_and_prints_the_table(make_cell, tmp_path):
    runs = [str(make_cell(p, preset=p)) for p in ("vapo", "grpo")]
    out = tmp_path / "out"
    done = runner.invoke(app, ["compare", *runs, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "grpo" in done.output
    assert sorted(f.name for f in out.iterdir()) == ["comparison.html", "curves.png", "results.json", "table.md"]


def test_compare_prints_json_and_makes_the_same_table_from_it(make_cell, tmp_path):
    run = str(make_cell())
    done = runner.invoke(app, ["compare", run, "--out", str(tmp_path / "a"), "--json"])
    results = json.loads(done.output)
    assert results["methods"][0]["method"] == "vapo"
    source = str(tmp_path / "a" / "results.json")
    done = runner.invoke(app, ["compare", "--from", source, "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(done.output) == results
    assert (tmp_path / "b" / "table.md").read_text() == (tmp_path / "a" / "table.md").read_text()


@pytest.mark.parametrize("arguments", [[], ["RUN", "--from", "results.json"]])
def test_compare_raises_without_runs_and_results_and_with_both(arguments):
    done = runner.invoke(app, ["compare", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert "give one of both" in str(done.exception)


def test_compare_from_a_file_computes_the_differences_to_another_reference(make_cell, tmp_path):
    runs = [str(make_cell(f"{p}-{seed}", preset=p, seed=seed)) for p in ("vapo", "grpo") for seed in (0, 1)]
    compare = ["compare", *runs, "--json", "--out", str(tmp_path / "a")]
    wanted = json.loads(runner.invoke(app, [*compare, "--reference", "grpo"]).output)
    assert wanted["reference"] == "grpo"
    assert runner.invoke(app, compare).exit_code == 0
    source = tmp_path / "a" / "results.json"
    command = ["compare", "--from", str(source), "--json", "--out", str(tmp_path / "b")]
    again = json.loads(runner.invoke(app, [*command, "--reference", "grpo"]).output)
    for old, new in zip(wanted["methods"], again["methods"], strict=True):
        assert new["final"] == old["final"]
        assert new["difference"] == old["difference"]
    assert again["runs"] == wanted["runs"]

    unknown = runner.invoke(app, [*command, "--reference", "rloo"])
    assert isinstance(unknown.exception, DataError)
    assert "Choose --reference from: grpo, vapo" in str(unknown.exception)
    older = json.loads(source.read_text())
    for run in older["runs"]:
        del run["record"]
    source.write_text(json.dumps(older))
    refused = runner.invoke(app, [*command, "--reference", "grpo"])
    assert isinstance(refused.exception, DataError)
    assert "its reference stays vapo" in str(refused.exception)
    assert runner.invoke(app, command).exit_code == 0


def test_a_reference_that_is_named_is_never_replaced_by_another(make_cell, tmp_path):
    runs = [str(make_cell(preset, preset=preset)) for preset in ("ppo", "grpo")]
    compare = ["compare", *runs, "--out", str(tmp_path / "a"), "--json"]
    assert json.loads(runner.invoke(app, compare).output)["reference"] == "ppo"
    again = ["compare", "--from", str(tmp_path / "a" / "results.json"), "--out", str(tmp_path / "b"), "--json"]
    for command in (compare, again):
        refused = runner.invoke(app, [*command, "--reference", "vapo"])
        assert isinstance(refused.exception, DataError)
        assert "'vapo' has no finished run. Choose --reference from: ppo, grpo" in str(refused.exception)


def test_the_results_of_a_critic_are_refused_and_so_is_an_out_that_is_a_file(make_cell, tmp_path):
    run, critics = str(make_cell()), tmp_path / "results.json"
    critics.write_text('{"format": 1, "critics": []}')
    refused = runner.invoke(app, ["compare", "--from", str(critics), "--out", str(tmp_path / "b")])
    assert isinstance(refused.exception, DataError)
    assert f"{critics} compares no runs" in str(refused.exception)
    refused = runner.invoke(app, ["compare", run, "--out", str(critics)])
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception).endswith("File exists. Choose another --out.")


def test_a_report_that_cannot_be_written_is_one_line(make_cell):
    run = make_cell()
    (run / "report.html").mkdir()
    refused = runner.invoke(app, ["report", str(run)])
    assert isinstance(refused.exception, ConfigError)
    assert f"Cannot write {run / 'report.html'}: Is a directory." in str(refused.exception)


def test_a_folder_with_brackets_is_printed_as_it_is(make_cell, tmp_path):
    done = runner.invoke(app, ["compare", str(make_cell("run [/k]")), "--out", str(tmp_path / "out [/k] [b]")])
    assert done.exit_code == 0, done.exception
    assert "out [/k] [b]/table.md" in done.output
