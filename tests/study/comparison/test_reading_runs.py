"""Reading run directories, labelling methods, and the errors for runs that cannot be compared."""

import json
import re

import pytest

from reports.recorded.record import restore
from vapo.errors import DataError
from vapo.json_text import flatten
from vapo.session.config import resolve
from vapo.session.layers import recipe_layer
from vapo.study.comparison import compare_runs
from vapo.study.comparison.compared_runs import read_compared_runs
from vapo.study.comparison.methods import PAPER, distinct_labels, method_settings, short_names, table_order
from vapo.study.comparison.summary import summarise
from vapo.study.comparison.table_rows import code_text


def change_evaluations(path, change):
    records = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(change(r)) + "\n" for r in records))


def error_of(*runs):
    with pytest.raises(DataError) as caught:
        read_compared_runs(runs)
    return str(caught.value)


def test_methods_sort_by_the_papers_table_and_then_by_name():
    from vapo.algo.presets import TECHNIQUES

    ladder = ["ppo", "vc-ppo", "grpo", "dapo", "vapo"]
    removals = [f"vapo without {t}" for t in reversed(TECHNIQUES)]
    rows = sorted([*removals, *reversed(ladder), "zebra", "ant"], key=table_order)
    assert rows == [*ladder, *(f"vapo without {t}" for t in TECHNIQUES), "ant", "zebra"]
    assert (PAPER["ppo"], PAPER["dapo"], PAPER["vapo"], PAPER["vapo without value-pretraining"]) == (5, 50, 60, 11)


def test_runs_without_cell_json_are_read_and_sorted(make_cell):
    cells = read_compared_runs(
        [make_cell("b", seed=1, pretraining=400), make_cell("a", preset="grpo"), make_cell("c", seed=0)]
    )
    assert [(c.method, c.seed) for c in cells] == [("grpo", 0), ("vapo", 0), ("vapo", 1)]
    pretrained = cells[2]
    assert (pretrained.pretraining.samples, pretrained.pretraining.seconds) == (400, 12.0)
    # 9 evaluations over 40 steps of 128 samples and 4 gradient steps: the second one is after 5 steps
    assert [pretrained.evaluations[i].samples for i in (0, 1, 8)] == [0, 640, 5120]
    assert [pretrained.evaluations[i].gradient_steps for i in (0, 1, 8)] == [0, 20, 160]
    assert pretrained.final.rates.shape == (20,)


def test_recorded_runs_can_be_compared(tmp_path):
    # real run directories, so that a comparison reads what the trainer writes
    runs = [restore(preset, tmp_path / preset) for preset in ("vapo", "grpo")]
    results = compare_runs(runs, tmp_path / "out")
    by_name = {method["method"]: method for method in results["methods"]}
    assert [m["final"]["n"] for m in by_name.values()] == [1, 1]
    assert by_name["vapo"]["pretraining_samples"] == 32
    assert by_name["grpo"]["dynamics"]["entropy"]["step"] == [1, 2, 3]
    residual = "value/residual_explained_variance"  # of a critic with a group baseline
    assert [key for key, curve in by_name["vapo"]["dynamics"].items() if not curve] == [residual]
    assert len(by_name["vapo"]["bias_by_position"]) == 10
    assert "over prompts, one seed" in (tmp_path / "out" / "table.md").read_text()


def test_cell_json_sets_method_base_seed_and_critic_cost(make_cell):
    critic = {"name": "rm", "samples": 600, "tokens": 90, "seconds": 30.0, "gradient_steps": 80}
    card = {"method": "vapo + filter", "base": "b1", "seed": 7, "outcome": None, "critic": critic}
    (cell,) = read_compared_runs([make_cell(pretraining=400, cell=card)])
    assert (cell.method, cell.base, cell.seed, cell.outcome) == ("vapo + filter", "b1", 7, "finished")
    assert (cell.pretraining.samples, cell.pretraining.seconds, cell.pretraining.critic) == (1000, 42.0, "rm")


def test_runs_with_one_label_and_different_settings_get_distinct_labels(make_cell):
    low = make_cell("low")
    high = make_cell("high", settings={"trainer.actor_lr": 0.0003, "trainer.save_rollouts_every": 5})
    assert {c.method for c in read_compared_runs([low, high])} == {
        "vapo (trainer.actor_lr=0.0001)",
        "vapo (trainer.actor_lr=0.0003)",
    }


def test_settings_without_effect_on_the_result_make_no_other_method():
    known = dict(flatten(resolve([recipe_layer("maze")]).effective()))
    for key in ("trackers", "rollout.engine.graphs", "model.gradient_checkpointing"):
        assert any(name == key or name.startswith(f"{key}.") for name in known)
        assert method_settings({key: True}) == {}
    assert method_settings({"rollout.engine.kind": "vllm"}) != {}


def test_distinct_labels_add_the_differing_settings_only():
    settings = [{"trainer.actor_lr": lr, "algorithm.positive_lm": "0.1"} for lr in ("1", "2")]
    assert distinct_labels(["vapo"] * 2, settings) == ["vapo (trainer.actor_lr=1)", "vapo (trainer.actor_lr=2)"]
    assert distinct_labels(["vapo", "ppo"], settings) == ["vapo", "ppo"]


def test_short_names_omit_the_folders_that_all_paths_share():
    assert short_names(["/a/b/x/0", "/a/b/y/0"]) == ["x/0", "y/0"]
    assert short_names(["/a/b", "/a/b/c"]) == ["b", "b/c"]
    assert short_names([]) == []


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_unfinished_runs_keep_their_outcome(make_cell, outcome):
    card = {"method": "ppo", "base": "b", "seed": 0, "outcome": outcome, "critic": None}
    failed = make_cell("b", cell=card, finished=False)
    cells = read_compared_runs([make_cell("a"), failed, make_cell("c", seed=2, finished=False)])
    assert [c.outcome for c in cells] == [outcome, "finished", "unfinished"]


def test_runs_of_a_study_and_others_have_one_name_for_a_base(make_cell):
    card = {"method": "vapo", "seed": 0, "outcome": "finished"}
    one = make_cell("one", base="/bases/mine", cell={**card, "base": "mine"})
    two = make_cell("two", cell={**card, "base": "shipped"})
    others = [make_cell(f"other{at}", preset="grpo", base=base) for at, base in enumerate(("/bases/mine", "builtin"))]
    far = make_cell("far", preset="grpo", base="/elsewhere/mine")
    runs = read_compared_runs([one, two, *others, far])
    assert [(run.method, run.base) for run in runs] == [
        ("grpo", "/elsewhere/mine"), ("grpo", "mine"), ("grpo", "shipped"), ("vapo", "mine"), ("vapo", "shipped")
    ]  # fmt: skip


def test_runs_of_installed_packages_name_their_version(make_cell):
    installed = [make_cell(version, seed=seed) for seed, version in enumerate(("0.2.0", "0.3.0"))]
    for run in installed:
        (run / "environment.json").write_text(json.dumps({"packages": {"vapo": run.name}, "commit": None}))
    commits = summarise(read_compared_runs([*installed, make_cell("ab", seed=2)]))["commits"]
    assert commits == ["ab", "vapo 0.2.0", "vapo 0.3.0"]
    assert [code_text(code) for code in [*commits, "None"]] == [
        "commit ab", "vapo 0.2.0", "vapo 0.3.0", "an unknown version"
    ]  # fmt: skip


def test_a_run_that_failed_in_its_study_and_was_resumed_to_its_end_has_finished(make_cell):
    (cell,) = read_compared_runs([make_cell(cell={"outcome": "failed"})])
    assert cell.outcome == "finished"


def test_a_run_that_is_made_longer_has_finished_at_its_new_end(make_cell):
    longer = make_cell("longer", seed=1)
    config = (longer / "config.yaml").read_text()
    (longer / "config.yaml").write_text(config.replace("steps: 40", "steps: 80"))
    assert [c.outcome for c in read_compared_runs([make_cell("a"), longer])] == ["finished", "unfinished"]


def test_a_run_with_a_diverged_event_counts_as_diverged(make_cell):
    stopped = make_cell("b", seed=1, finished=False)
    assert [c.outcome for c in read_compared_runs([make_cell("a"), stopped])] == ["finished", "unfinished"]
    with (stopped / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "diverged", "message": "Gradients were not finite."}) + "\n")
    assert [c.outcome for c in read_compared_runs([make_cell("c"), stopped])] == ["finished", "diverged"]


@pytest.mark.parametrize("missing", ["set", "right", "valid"])
def test_a_run_of_an_older_version_raises(make_cell, missing):
    old = make_cell("old")
    change_evaluations(old, lambda r: {k: v for k, v in r.items() if k != missing})
    message = error_of(make_cell("new", seed=1), old)
    assert str(old) in message
    assert "train this run again with this version" in message


def test_runs_with_different_held_out_sets_raise(make_cell):
    one, other = make_cell("one"), make_cell("other", preset="grpo", set_="ffff0000")
    message = error_of(one, other)
    assert str(one) in message
    assert str(other) in message
    assert "ab12cd34" in message


def test_a_held_out_set_that_changes_within_a_run_raises(make_cell):
    run = make_cell()
    change_evaluations(run, lambda r: r | {"set": f"s{r['label']}"})
    assert "same held-out prompts" in error_of(run)


def test_runs_with_different_k_raise(make_cell):
    message = error_of(make_cell("one", k=8), make_cell("other", preset="grpo", k=16))
    assert "avg@16" in message
    assert "avg@8" in message


def test_runs_of_different_tasks_raise(make_cell):
    assert "'walk'" in error_of(make_cell("one"), make_cell("other", preset="grpo", task="walk"))


def test_a_repeated_run_raises(make_cell):
    one, two = make_cell("one"), make_cell("two")
    message = error_of(one, two)
    assert re.search(r"one and .*two are both vapo with base shipped and seed 0", message)
    assert "both vapo" in error_of(one, one)


def test_runs_without_a_finished_one_raise(make_cell):
    unfinished = make_cell(finished=False)
    assert (
        f"None of 1 run has finished, so there is no score to compare. Finish one with: vapo resume {unfinished}"
        in (error_of(unfinished))
    )
    diverged = make_cell("diverged", cell={"outcome": "diverged"}, finished=False)
    assert "Runs diverged: train them with a lower trainer.actor_lr" in error_of(diverged)


def test_a_damaged_run_raises_an_error_with_file_and_step(make_cell, tmp_path):
    run = make_cell("a")
    change_evaluations(run, lambda r: r | {"right": r["right"][1:]})
    assert f"{run}, evaluation at step 0" in error_of(run)
    run = make_cell("b")
    (run / "metrics.jsonl").write_text("")
    assert "evaluation at step 5" in error_of(run)
    run = make_cell("c")
    (run / "cell.json").write_text("{")
    assert "cell.json is not JSON" in error_of(run)
    assert "no such folder" in error_of(tmp_path / "nowhere")
