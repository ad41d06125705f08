"""A study continues from a committed results.json: the same runs are taken over, others run again."""

from __future__ import annotations

import json
import shutil
import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vapo.cli import app
from vapo.errors import DataError
from vapo.session.layers import merge
from vapo.study.cell_processes import CellProcesses
from vapo.study.cells import critic_cells, run_cells, tuning_cells
from vapo.study.comparison import compare_runs, read_results
from vapo.study.comparison.compared_runs import read_compared_runs
from vapo.study.comparison.kept_runs import kept_run
from vapo.study.comparison.summary import summarise
from vapo.study.keeping import kept_runs, kept_tuning, needed_critics, read_kept_files
from vapo.study.runner import StudyError
from vapo.study.study import Study, Tuning, read_study
from vapo.study.study_run import run_study
from vapo.study.tuning_choice import choose_settings, read_tuning

STUDY = """
recipe: chain
seeds: [0, 1]
methods: [vapo, grpo]
"""
TUNED = (
    STUDY
    + """
tuning:
  methods: [grpo]
  grid: [{trainer: {actor_lr: 1.0e-4}}, {trainer: {actor_lr: 1.0e-3}}]
"""
)
CRITIC = {"name": "critic pretrained", "samples": 600, "tokens": 9, "seconds": 30.0, "gradient_steps": 80}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "small.yaml").write_text(STUDY)
    return read_study(str(tmp_path / "small.yaml"))


@pytest.fixture
def old(study, make_cell, tmp_path) -> Path:
    """The results.json of a study whose runs were all made, and whose folders are gone."""
    return finished(study, make_cell, tmp_path / "old")


def finished(study, make_cell, out, **changes) -> Path:
    cells = run_cells(study, out, {})
    folders = []
    for cell in cells:
        shared = {**CRITIC, "explained_variance": 0.2} if cell.critic else None
        card = {**cell.card(), "settings": cell.settings, "outcome": "finished", "critic": shared, **changes}
        name = f"{out.name}/{cell.folder.name}"
        folders.append(make_cell(name, preset=cell.method, seed=cell.seed, task="chain", cell=card))
    compare_runs(folders, out)
    for folder in folders:
        shutil.rmtree(folder)
    return out / "results.json"


def without_names(run: dict) -> dict:
    return {key: value for key, value in run.items() if key not in ("run", "kept_from")}


def test_runs_of_a_results_file_compare_as_their_folders_did(grid, tmp_path):
    results = json.loads(json.dumps(summarise(read_compared_runs(grid))))
    runs = [kept_run(results, run, path=f"there/{run['run']}", source="old") for run in results["runs"]]
    again = summarise(read_compared_runs([], runs))
    for method, other in zip(results["methods"], again["methods"], strict=True):
        for key in ("final", "difference", "equal_samples_with_pretraining", "steps_to_target", "curves", "crashes"):
            assert method[key] == other[key], key
        for key, curve in method["dynamics"].items():  # results.json has five digits
            assert (curve is None) == (other["dynamics"][key] is None)
            if curve:
                np.testing.assert_allclose(curve["mean"], other["dynamics"][key]["mean"], rtol=1e-4)
        np.testing.assert_allclose(method["bias_by_position"] or [], other["bias_by_position"] or [], atol=1e-4)
    assert [without_names(run) for run in again["runs"]] == [without_names(run) for run in results["runs"]]
    assert {run["kept_from"] for run in again["runs"]} == {"old"}


def test_counts_without_a_verdict_and_above_35_survive(make_cell):
    folder = make_cell(k=50, right=[[0, 40, 36], [50, 49, 0]])
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    lines[1]["valid"] = [50, 49, 0]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = summarise(read_compared_runs([folder]))
    (run,) = read_compared_runs([], [kept_run(results, results["runs"][0], path="x", source="old")])
    np.testing.assert_array_equal(run.evaluations[0].rates, [0, 0.8, 0.72])
    np.testing.assert_array_equal(run.final.rates, [1, 1, np.nan])


def test_a_study_whose_runs_are_all_kept_runs_nothing_and_compares_them(study, old, tmp_path):
    said: list[str] = []
    results = run_study(study, tmp_path / "new", say=said.append, keep=[old])
    assert not (tmp_path / "new" / "logs").exists()  # no process, and no critic either
    first = read_results(old)
    assert [m["final"] for m in results["methods"]] == [m["final"] for m in first["methods"]]
    assert [m["difference"] for m in results["methods"]] == [m["difference"] for m in first["methods"]]
    assert results["critics"] == first["critics"]
    assert any("4 runs of 4 kept from old/results.json (commit ab)" in line for line in said)
    assert results["notes"][1:] == ["4 runs of 4 kept from old/results.json (commit ab)"]
    # and the new file can be continued from in turn
    again = run_study(study, tmp_path / "third", say=said.append, keep=[tmp_path / "new" / "comparison/results.json"])
    assert {run["kept_from"] for run in again["runs"]} == {"old/results.json"}


def test_only_new_seeds_run_beside_kept_ones(study, old, tmp_path):
    more = study.model_copy(update={"seeds": [0, 1, 2]})
    cells = run_cells(more, tmp_path / "new", {})
    kept = kept_runs(cells, read_kept_files([old]))
    pending = [cell for cell in cells if not kept.done(cell)]
    assert [(cell.method, cell.seed) for cell in pending] == [("vapo", 2), ("grpo", 2)]
    critics = critic_cells(more, tmp_path / "new")
    assert needed_critics(pending, critics) == critics
    assert needed_critics(pending[1:], critics) == []  # grpo has none


def test_a_run_with_other_settings_is_not_kept_and_the_setting_is_named(study, old, tmp_path):
    other = study.model_copy(update={"settings": merge(study.settings, {"trainer": {"weight_decay": 0.25}})})
    kept = kept_runs(run_cells(other, tmp_path / "new", {}), read_kept_files([old]))
    assert not kept.runs
    assert [line.split(":")[0] for line in kept.refused] == ["2 runs (first"] * 2  # the methods' settings differ
    first = "2 runs (first: vapo, base shipped, seed 0) of old/results.json: it has them with other settings"
    assert first in kept.refused[0]
    assert "trainer.weight_decay: 0.0 → 0.25" in kept.refused[0]


def test_machine_and_folder_do_not_change_the_identity_of_a_run(study, old, tmp_path):
    here = {"checkpoint": {"every": 3}, "trainer": {"micro_batch_tokens": 512}, "rollout": {"engine": {"slots": 7}}}
    other = study.model_copy(update={"settings": merge(study.settings, here)})
    assert len(kept_runs(run_cells(other, Path("/elsewhere"), {}), read_kept_files([old])).runs) == 4


def test_runs_whose_critic_was_made_otherwise_are_not_kept(study, old, tmp_path):
    plan = study.critics["pretrained"].model_copy(update={"settings": {"trainer": {"pretraining_lr": 0.5}}})
    other = study.model_copy(update={"critics": {"pretrained": plan}})
    kept = kept_runs(run_cells(other, tmp_path / "new", {}), read_kept_files([old]))
    assert {run.method for run in kept.runs.values()} == {"grpo"}
    assert all("shared critic: " in line for line in kept.refused)


def test_a_file_that_does_not_record_settings_keeps_nothing_and_says_so(study, make_cell, tmp_path):
    old = finished(study, make_cell, tmp_path / "old", settings=None)
    kept = kept_runs(run_cells(study, tmp_path / "new", {}), read_kept_files([old]))
    assert not kept.runs
    reason = "it does not record its settings, as an older version wrote it"
    assert kept.refused == [f"4 runs (first: vapo, base shipped, seed 0) of old/results.json: {reason}"]


def test_a_file_without_a_run_of_the_study_is_named(study, old, tmp_path):
    other = study.model_copy(update={"seeds": [7]})
    kept = kept_runs(run_cells(other, tmp_path / "new", {}), read_kept_files([old]))
    assert kept.refused == ["old/results.json: none of its 4 runs is a finished one of this study"]


@pytest.mark.parametrize("name", ["maze", "walk"])
def test_committed_results_of_older_versions_keep_nothing(name, tmp_path):
    study = read_study(name)
    file = Path(__file__).parents[3] / "results" / name / "results.json"
    kept = kept_runs(run_cells(study, tmp_path, {}), read_kept_files([file]))
    assert not kept.runs
    assert kept.refused


@pytest.mark.parametrize("place", [("runs", 0, "record", "right"), ("settings", "shared")])
def test_a_damaged_entry_raises_an_error_with_the_file_and_the_run(study, old, tmp_path, place):
    results = read_results(old)
    *above, last = place
    del reduce(lambda tree, key: tree[key], above, results)[last]
    old.write_text(json.dumps(results))
    with pytest.raises(DataError, match=r"old/results.json: the entry of .* is damaged"):
        kept_runs(run_cells(study, tmp_path / "new", {}), read_kept_files([old]))


@pytest.mark.parametrize(("first", "second", "chosen"), [(None, 0.3, 1e-3), (0.3, None, 1e-4), (None, None, 1e-4)])
def test_a_trial_whose_accuracy_is_unknown_counts_as_0_in_tuning(make_cell, tmp_path, first, second, chosen):
    (tmp_path / "small.yaml").write_text(TUNED)
    study = read_study(str(tmp_path / "small.yaml"))
    trials = tuning_cells(study, tmp_path / "out")
    for (_, point), cells in trials.items():
        for cell in cells:
            folder = make_cell(f"../{cell.folder.relative_to(tmp_path)}", cell={"outcome": "finished"})
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            accuracy = {"accuracy": (first, second)[point]}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row | accuracy) + "\n" for row in rows))
    assert choose_settings(study, trials, tmp_path / "out") == {"grpo": {"trainer": {"actor_lr": chosen}}}
    scores = json.loads((tmp_path / "out" / "tuning.json").read_text())["grpo"]["late_accuracy"]
    assert scores == pytest.approx([first or 0.0, second or 0.0])


def test_tuning_is_kept_with_its_scores_if_its_trials_are_the_same(tmp_path):
    (tmp_path / "small.yaml").write_text(TUNED)
    study = read_study(str(tmp_path / "small.yaml"))
    there, here = tuning_cells(study, tmp_path / "there"), tuning_cells(study, tmp_path / "here")
    (tmp_path / "there").mkdir()
    choose_settings(study, there, tmp_path / "there")
    files = read_kept_files([tmp_path / "there" / "tuning.json"])
    kept, refused = kept_tuning(here, tmp_path / "here", files)
    assert not refused
    assert kept["grpo"]["chosen"] == {"trainer": {"actor_lr": 1e-4}}
    assert (kept["grpo"]["late_accuracy"], kept["grpo"]["kept_from"]) == ([0.0, 0.0], "there/tuning.json")
    (tmp_path / "here").mkdir()
    assert choose_settings(study, here, tmp_path / "here", kept) == {"grpo": {"trainer": {"actor_lr": 1e-4}}}
    # the study's own file is enough from now on, and keeps the origin
    assert kept_tuning(here, tmp_path / "here", [])[0]["grpo"]["kept_from"] == "there/tuning.json"
    other = study.model_copy(update={"settings": {"trainer": {"weight_decay": 0.25}}})
    other_trials = tuning_cells(other, tmp_path / "here")
    assert kept_tuning(other_trials, tmp_path / "x", files) == (
        {},
        ["tuning of grpo: there/tuning.json has other trials"],
    )


ONLY_TRAINS = """
import sys
from pathlib import Path

if sys.argv[1] == "make-base":
    sys.exit(1)
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(parents=True)
(folder / "config.yaml").write_text("seed: 0")
"""


def test_bases_are_made_for_runs_that_were_kept_until_tuning_chose_their_settings(
    make_cell, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    text = TUNED.replace("[vapo, grpo]", "[grpo]") + "bases: [builtin, 1]"
    (tmp_path / "tuned.yaml").write_text(text)
    (tmp_path / "plain.yaml").write_text(text.replace(text[text.index("tuning") : text.index("bases")], ""))
    old = finished(read_study(str(tmp_path / "plain.yaml")), make_cell, tmp_path / "old")
    (tmp_path / "program.py").write_text(ONLY_TRAINS)
    monkeypatch.setattr(CellProcesses.__init__, "__defaults__", ([sys.executable, "-S", str(tmp_path / "program.py")],))
    with pytest.raises(StudyError, match="base model of seed 1 failed"):
        run_study(read_study(str(tmp_path / "tuned.yaml")), tmp_path / "new", say=lambda line: None, keep=[old])
    assert len(list((tmp_path / "new" / "tuning").iterdir())) == 2
    assert not (tmp_path / "new" / "runs").exists()


def test_a_cell_that_failed_before_its_run_began_leaves_the_finished_ones_to_be_compared(
    make_cell, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "small.yaml").write_text(STUDY.replace("[vapo, grpo]", "[grpo]"))
    study = read_study(str(tmp_path / "small.yaml"))
    old = finished(study, make_cell, tmp_path / "old")
    (tmp_path / "program.py").write_text(
        ONLY_TRAINS.replace('(folder / "config.yaml").write_text("seed: 0")', "sys.exit(2)")
    )
    monkeypatch.setattr(CellProcesses.__init__, "__defaults__", ([sys.executable, "-S", str(tmp_path / "program.py")],))
    more = study.model_copy(update={"seeds": [0, 1, 2]})
    with pytest.raises(StudyError, match=r"1 cell failed .* compares the finished runs"):
        run_study(more, tmp_path / "new", say=lambda line: None, keep=[old])
    assert [path.name for path in (tmp_path / "new" / "runs" / "grpo-shipped-seed2").iterdir()] == ["cell.json"]
    results = read_results(tmp_path / "new" / "comparison" / "results.json")
    assert [run["outcome"] for run in results["runs"]] == ["finished", "finished", "failed"]
    assert results["methods"][0]["left_out"] == 1
    folder = tmp_path / "new" / "runs" / "grpo-shipped-seed2"
    other = make_cell("other", preset="grpo", task="/elsewhere/mine.py:Task")  # the card has no path of a file
    assert [run.outcome for run in read_compared_runs([folder, other])] == ["finished", "failed"]


@pytest.mark.parametrize("tuned", [False, True])
def test_runs_that_need_no_critic_run_beside_a_critic_that_diverged(
    study, make_cell, tmp_path, monkeypatch: pytest.MonkeyPatch, tuned
):
    old = finished(study.model_copy(update={"methods": {"grpo": study.methods["grpo"]}}), make_cell, tmp_path / "old")
    end = 'sys.exit(3 if "critics" in str(folder) else 2)'
    (tmp_path / "program.py").write_text(ONLY_TRAINS.replace("folder.mkdir", f"{end}\nfolder.mkdir"))
    monkeypatch.setattr(CellProcesses.__init__, "__defaults__", ([sys.executable, "-S", str(tmp_path / "program.py")],))
    said: list[str] = []
    tuning = Tuning(methods=["vapo"], grid=[{}]) if tuned else None  # whose trials need the critic, too
    more = study.model_copy(update={"seeds": [0, 1, 2], "tuning": tuning})
    with pytest.raises(StudyError) as caught:
        run_study(more, tmp_path / "new", say=said.append, keep=[old])
    assert not (tmp_path / "new" / "tuning").exists()
    assert "vapo" not in read_tuning(tmp_path / "new")
    critic = tmp_path / "new" / "critics" / "pretrained-shipped"
    assert "critic pretrained, base shipped, seed 0 diverged, and no run that needs it was started" in str(caught.value)
    assert f"delete {critic} to train it again" in str(caught.value)
    assert "1 cell failed (first: grpo, base shipped, seed 2)" in str(caught.value)
    assert [path.name for path in (tmp_path / "new" / "runs").iterdir()] == ["grpo-shipped-seed2"]
    assert [run["method"] for run in read_results(tmp_path / "new/comparison/results.json")["runs"]] == ["grpo"] * 3


def test_a_study_without_a_finished_run_names_no_comparison(study, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "program.py").write_text("raise SystemExit(2)")
    monkeypatch.setattr(CellProcesses.__init__, "__defaults__", ([sys.executable, "-S", str(tmp_path / "program.py")],))
    with pytest.raises(StudyError) as caught:
        run_study(study, tmp_path / "new", say=lambda line: None)
    assert "critic pretrained, base shipped, seed 0 did not finish" in str(caught.value)
    assert "2 cells failed" in str(caught.value)
    assert "compares" not in str(caught.value)


def test_the_tuning_of_a_method_without_a_row_is_in_the_results_too(study, old, tmp_path):
    tuned = {"grpo": {"chosen": {}}, "vapo": {"chosen": {}}, "dapo": {"chosen": {}}}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tuning.json").write_text(json.dumps(tuned))
    methods = {"grpo": study.methods["grpo"]}
    study = study.model_copy(update={"methods": methods, "untabled": {"vapo": study.methods["vapo"]}})
    results = run_study(study, tmp_path / "new", say=lambda line: None, keep=[old])
    assert sorted(results["tuning"]) == ["grpo", "vapo"]


def test_a_dry_run_shows_which_runs_are_kept(study, old, tmp_path):
    command = ["ablate", str(tmp_path / "small.yaml"), "--budget", "full", "--keep", str(old), "--dry-run"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "new"), "--json"])
    cells = json.loads(done.stdout)
    assert [cell["kept_from"] for cell in cells] == [None, *["old/results.json"] * 4]


def test_the_page_notes_the_command_of_the_study_that_ran(study, old, tmp_path):
    options = ["--budget", "full", "--method", "grpo", "--seeds", "1", "--keep", str(old)]
    command = ["ablate", str(tmp_path / "small.yaml"), *options]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "new"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["notes"][0].startswith(f"vapo {' '.join(command)}, ended ")
