"""The numbers of `results.json`, compared with values computed by hand, and the tables made from them."""

import io
import json
import random
import re

import pytest
from rich.console import Console

from vapo.algo.presets import TECHNIQUES
from vapo.errors import DataError
from vapo.study.comparison import compare_runs, read_results, terminal_table, write_comparison
from vapo.study.comparison.compared_runs import read_compared_runs
from vapo.study.comparison.figures import main_figure
from vapo.study.comparison.markdown import comparison_markdown
from vapo.study.comparison.summary import rounded, summarise
from vapo.study.comparison.table_rows import (
    column_explanations,
    comparison_headline,
    main_headings,
    main_rows,
    runs_left_out,
    runs_resumed,
)


def entry(results, method):
    return next(m for m in results["methods"] if m["method"] == method)


def test_means_and_paired_differences_match_hand_computed_values(small):
    vapo, grpo = entry(small, "vapo"), entry(small, "grpo")
    # finals: vapo 1 and 3/4, grpo 1/2 and 1/4
    assert (vapo["final"]["mean"], grpo["final"]["mean"]) == (0.875, 0.375)
    assert vapo["spread"] == pytest.approx(0.17678)
    # every prompt of every pair differs by 1/2: 1 - .025^(1/2) = .842 of two prompts may differ otherwise
    gap = {"mean": -0.5, "low": -0.92094, "high": 0.76283, "n": 2, "excludes_zero": False, "p": 0.88889}
    assert grpo["difference"]["final"] == {**gap, "p_holm": 0.88889}
    assert vapo["difference"] is None


def test_scores_at_equal_samples_count_pretraining_or_leave_it_out(small):
    assert small["equal"] | {"seconds": 59.0, "area_gradient_steps": 40} == small["equal"]
    assert [small["equal"][k] for k in ("gradient_steps", "samples", "samples_with_pretraining")] == [40, 100, 100]
    vapo, grpo = entry(small, "vapo"), entry(small, "grpo")
    assert vapo["equal_samples"]["mean"] == 0.875
    # with pretraining counted, VAPO is at its first evaluation when GRPO has used its 100 samples
    assert vapo["equal_samples_with_pretraining"]["mean"] == 0.0
    assert grpo["difference"]["equal_samples_with_pretraining"]["mean"] == 0.375
    assert (vapo["samples"], vapo["pretraining_samples"], grpo["pretraining_samples"]) == (100, 100, 0)
    # one of the steps' 60 seconds belongs to an evaluation
    assert (vapo["seconds"], vapo["pretraining_seconds"]) == (59.0, 12.0)


def test_a_run_that_ends_far_below_its_best_evaluation_fell_and_its_score_counts(make_cell, tmp_path):
    up = make_cell("up", k=4, seed=0, right=[[0, 0], [2, 2], [4, 4]])
    down = make_cell("down", k=4, seed=1, right=[[0, 0], [4, 4], [2, 2]])
    results = compare_runs([up, down], tmp_path / "out")
    method = entry(results, "vapo")
    assert (method["fell"], method["crashes"], method["final"]["mean"]) == (1, 0, 0.75)
    assert main_rows(results)[0][-1] == "0, 1 fell"


def without_verdicts(run, *at):
    """Make all samples of the run's evaluations at these places invalid."""
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for i in at:
        lines[i] |= {"right": [0] * len(lines[i]["right"]), "valid": [0] * len(lines[i]["valid"]), "avg": None}
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_whose_final_evaluation_has_no_verdict_is_left_out_and_named(make_cell, tmp_path):
    runs = [make_cell(f"{p}{s}", preset=p, seed=s) for p in ("vapo", "grpo", "dapo") for s in (0, 1, 2)]
    without_verdicts(runs[0], -1)
    results = compare_runs(runs, tmp_path / "out")
    assert runs_left_out(results) == ["vapo0 (vapo, base shipped, seed 0): failed for a reason other than the method"]
    vapo = entry(results, "vapo")
    assert (vapo["final"]["n"], vapo["left_out"], entry(results, "grpo")["difference"]["final"]["n"]) == (2, 1, 2)
    assert vapo["spread"] is not None


def test_an_evaluation_without_a_verdict_is_no_point_of_the_curve(make_cell, tmp_path):
    right = [[0] * 4, [4] * 4, [4] * 4, [1] * 4]
    whole, gaps = make_cell("whole", k=4, right=right), make_cell("gaps", k=4, seed=1, right=right)
    more = [
        make_cell(f"more{i}", without=[technique], right=right, k=4) for i, technique in enumerate(list(TECHNIQUES)[:6])
    ]
    without_verdicts(gaps, 0, 1)
    results = compare_runs([whole, gaps, *more], tmp_path / "out")
    assert [len(run["evaluations"]["step"]) for run in results["runs"] if run["method"] == "vapo"] == [4, 2]
    assert entry(results, "vapo")["fell"] == 2
    assert entry(results, "vapo")["curves"]["gradient_steps"]["mean"][-1] == 0.25


def test_a_shared_critic_is_listed_once_with_its_cost_and_number_of_runs(make_cell, tmp_path):
    critic = {"name": "pretrained", "samples": 600, "tokens": 9, "seconds": 30.0, "gradient_steps": 80}
    card = {"method": "vapo", "base": "b", "outcome": "finished", "critic": {**critic, "explained_variance": 0.25}}
    results = compare_runs([make_cell(str(s), cell={**card, "seed": s}) for s in (0, 1)], tmp_path / "out")
    assert results["critics"] == [
        {
            "critic": "pretrained",
            "base": "b",
            "runs": 2,
            "samples": 600,
            "seconds": 30.0,
            "gradient_steps": 80,
            "explained_variance": 0.25,
        }
    ]
    explanations = " ".join(column_explanations(results))
    assert "pretrained on base b (600 samples, 80 gradient steps, 0.5 minutes" in explanations
    assert "do not include the variance of its pretraining" in explanations


def test_different_commits_of_the_runs_are_listed(make_cell, tmp_path):
    runs = [make_cell(str(seed), seed=seed) for seed in (0, 1)]
    assert "versions of the code" not in " ".join(column_explanations(compare_runs(runs, tmp_path / "one")))
    for run in runs:  # of an installed package
        (run / "environment.json").write_text(json.dumps({"commit": None}))
    assert "versions of the code" not in " ".join(column_explanations(compare_runs(runs, tmp_path / "none")))
    (runs[0] / "environment.json").write_text(json.dumps({"commit": "ab"}))
    (runs[1] / "environment.json").write_text(json.dumps({"commit": "cd"}))
    assert "made by 2 versions of the code: commit ab, commit cd" in " ".join(
        column_explanations(compare_runs(runs, tmp_path / "two"))
    )


def test_a_run_lists_its_evaluations_on_all_axes(small):
    run = small["runs"][-2]
    assert (run["run"], run["method"], run["seed"], run["score"]) == ("vapo0", "vapo", 0, 1.0)
    assert run["evaluations"] == {
        "step": [0, 5, 10],
        "k": [4, 4, 4],
        "gradient_steps": [0, 20, 40],
        "samples": [0, 50, 100],
        "samples_with_pretraining": [100, 150, 200],
        "seconds": [0.0, 30.0, 59.0],
        "score": [0.0, 0.5, 1.0],
    }
    versions = {"vapo": "0.1.0", "torch": "2.13", "transformers": None, "commit": "ab", "processor": None}
    assert run["versions"] == versions


def test_steps_to_dapos_score_match_hand_computed_shares(make_cell, tmp_path):
    runs = [
        make_cell("dapo", preset="dapo", right=[[0] * 4, [1] * 4, [2] * 4], k=4),
        make_cell("vapo", preset="vapo", right=[[0] * 4, [3] * 4, [4] * 4], k=4),
        make_cell("ppo", preset="ppo", right=[[0] * 4, [1] * 4, [1] * 4], k=4),
    ]
    results = compare_runs(runs, tmp_path / "out")
    assert results["target"] == {"method": "dapo", "score": 0.5, "gradient_steps": 160.0}
    # VAPO is at 3/4 after 80 gradient steps, so at 1/2 after 53.3: a third of DAPO's 160
    assert entry(results, "vapo")["steps_to_target"]["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert entry(results, "dapo")["steps_to_target"]["share"] == 1.0
    assert entry(results, "ppo")["steps_to_target"]["share"] is None
    table = {row[0]: row for row in main_rows(results)}
    at = main_headings(results).index("steps to dapo's score")
    assert [table[m][at] for m in ("vapo", "dapo", "ppo")] == ["33 %", "100 %", "not reached"]
    # four prompts, all right: .025^(1/4) = .398
    assert table["vapo"][2] == "1.00 [0.398, 1.00] over prompts, one seed"


def test_a_narrow_terminal_shows_the_main_columns_in_full(small):
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(small, 80))
    text = console.file.getvalue()
    assert "difference to vapo" in text
    assert "-0.500 [-0.921, +0.763]" in text
    assert "…" not in text
    assert len(terminal_table(small, 200).columns) > len(terminal_table(small, 80).columns)


def test_methods_that_differ_in_a_setting_are_told_apart_on_a_narrow_terminal(small):
    small["methods"][0]["method"] = "vapo (trainer.actor_lr=0.0006)"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(small, 80))
    shown = console.export_text()
    assert "…" not in shown
    names = "".join(line.split("│")[1] for line in shown.splitlines() if "│" in line)
    assert "trainer.actor_lr=0.0006" in re.sub(r"\s", "", names)


def test_results_do_not_depend_on_the_order_of_the_runs(grid):
    shuffled = random.Random(1).sample(grid, len(grid))
    assert summarise(read_compared_runs(shuffled)) == summarise(read_compared_runs(grid))


@pytest.fixture(scope="module")
def whole(written):
    return read_results(written / "results.json"), written


def test_methods_are_in_the_order_of_the_papers_table(whole):
    results, _ = whole
    methods = [m["method"] for m in results["methods"]]
    assert methods[:6] == ["ppo", "vc-ppo", "grpo", "dapo", "vapo", "vapo without value-pretraining"]
    assert len(methods) == 12
    assert entry(results, "vapo")["final"]["n"] == 3
    assert entry(results, "vapo")["pretraining_samples"] == 600
    assert entry(results, "vapo")["dynamics"]["gae/lambda_mean"]["step"][-1] == 40
    assert entry(results, "grpo")["dynamics"]["gae/lambda_mean"] is None
    assert len(entry(results, "vapo")["bias_by_position"]) == 10


def test_a_crashed_run_is_counted_and_excluded_from_the_mean(whole):
    results, _ = whole
    broken = entry(results, "vapo without value-pretraining")
    assert (broken["crashes"], broken["final"]["n"], broken["difference"]["final"]["n"]) == (1, 2, 2)
    assert [row[-1] for row in main_rows(results) if row[0] == broken["method"]] == ["1"]
    assert runs_left_out(results) == [
        "vapo-without-value-pretraining-1 (vapo without value-pretraining, base base-a, seed 1): "
        "diverged: counted as a crash"
    ]


def test_a_method_whose_runs_all_crashed_keeps_its_row(make_cell, tmp_path):
    card = {"method": "ppo", "base": "builtin", "seed": 0, "outcome": "diverged", "critic": None}
    results = compare_runs([make_cell("a"), make_cell("b", cell=card, finished=False)], tmp_path / "out")
    assert entry(results, "ppo")["final"] == {"mean": None, "low": None, "high": None, "n": 0}
    row = next(row for row in main_rows(results) if row[0] == "ppo")
    assert (row[2], row[3], row[-1]) == ("–", "0", "1")


def test_all_files_can_be_made_from_results_json(whole, tmp_path):
    results, folder = whole
    write_comparison(results, tmp_path)
    names = ["comparison.html", "curves.png", "results.json", "table.md"]
    assert sorted(f.name for f in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_results_json_is_small_though_it_holds_the_outcome_of_every_prompt(whole):
    results, folder = whole
    size = (folder / "results.json").stat().st_size
    assert size / len(results["runs"]) < 10_000
    assert all(len(counts) == 40 for run in results["runs"] for counts in run["record"]["right"])


def test_floats_are_rounded_and_nan_and_infinity_become_none():
    assert rounded({"a": [0.123456789, float("nan"), float("inf"), 7424000], "b": (1e-7, True, None)}) == {
        "a": [0.12346, None, None, 7424000],
        "b": [1e-7, True, None],
    }


def test_the_reference_can_be_chosen_and_raises_without_a_finished_run(grid):
    cells = read_compared_runs([run for run in grid if run.name in ("dapo-0", "grpo-0")])
    assert summarise(cells)["reference"] == "grpo"  # without vapo, the first method
    assert summarise(cells, reference="dapo")["reference"] == "dapo"
    for absent in ("ppo", "vapo"):
        with pytest.raises(DataError, match="Choose --reference from: grpo, dapo"):
            summarise(cells, reference=absent)


def test_different_gradient_steps_are_listed(make_cell, tmp_path):
    results = compare_runs([make_cell("a", steps=40), make_cell("b", preset="grpo", steps=20)], tmp_path / "out")
    assert results["equal"]["gradient_steps"] is None
    assert any("grpo 80, vapo 160" in sentence for sentence in column_explanations(results))


def test_the_headline_reports_no_clear_difference_if_the_interval_contains_0(make_cell, tmp_path):
    same = {"right": [[1] * 6, [4, 2, 6, 3, 5, 1]], "k": 8}
    runs = [make_cell(f"{p}{s}", preset=p, seed=s, **same) for p in ("vapo", "grpo") for s in (0, 1)]
    results = compare_runs(runs, tmp_path / "out")
    assert entry(results, "grpo")["difference"]["final"]["excludes_zero"] is False
    assert comparison_headline(results).endswith("in 2 runs. Compared with it: no clear difference: grpo (0).")


def test_markdown_and_html_in_labels_is_escaped_in_the_table(make_cell, tmp_path):
    card = {"method": "a|b <script>`", "base": "b", "seed": 0, "outcome": "finished", "critic": None}
    text = comparison_markdown(compare_runs([make_cell(cell=card)], tmp_path / "out"))
    assert "a\\|b &lt;script&gt;\\`" in text
    assert "<script" not in text


def test_the_interval_of_one_pair_of_runs_covers_prompts_and_is_labelled_so(make_cell, tmp_path):
    vapo = make_cell("a", k=4, right=[[0] * 8, [4, 4, 4, 4, 2, 2, 4, 4]])
    grpo = make_cell("b", k=4, right=[[0] * 8, [2, 2, 2, 2, 2, 2, 2, 4]], preset="grpo")
    results = compare_runs([vapo, grpo], tmp_path / "out")
    gap = entry(results, "grpo")["difference"]["final"]
    # prompt by prompt -1/2 five times and 0 three times
    assert (gap["mean"], gap["n"], gap["excludes_zero"]) == (-0.3125, 1, None)
    assert -0.5 < gap["low"] < gap["mean"] < gap["high"] < 0.0
    cell = next(row for row in main_rows(results) if row[0] == "grpo")[4]
    assert cell == f"-0.312 [{gap['low']:.3f}, {gap['high']:.3f}] over prompts, one seed"
    assert "over prompts, one seed" in comparison_markdown(results)
    assert "one pair only: grpo" in comparison_headline(results)  # no claim about other seeds


@pytest.mark.parametrize(("seeds", "labelled"), [((0,), True), ((0, 1), False)])
def test_the_figure_labels_intervals_over_prompts_of_one_pair_of_runs(make_cell, tmp_path, seeds, labelled):
    runs = [make_cell(f"{p}{s}", preset=p, seed=s) for p in ("vapo", "grpo") for s in seeds]
    figure = main_figure(compare_runs(runs, tmp_path / "out"))
    finals, differences = figure.axes[-2:]
    assert ("one run, interval over prompts only" in finals.get_xlabel()) == labelled
    assert ("one pair of runs, interval over prompts only" in differences.get_xlabel()) == labelled
    bars = [line for line in differences.lines if line.get_linewidth() == 2]
    assert [line.is_dashed() for line in bars] == [labelled]


def test_runs_with_equal_outcomes_have_the_exact_interval(make_cell, tmp_path):
    runs = [make_cell(str(seed), seed=seed, k=4, right=[[0] * 32, [0] * 32]) for seed in (0, 1)]
    final = entry(compare_runs(runs, tmp_path / "out"), "vapo")["final"]
    # 1 - .025^(1/32) = .109
    assert (final["mean"], final["low"], final["high"]) == (0.0, 0.0, pytest.approx(0.10888, abs=1e-5))


def test_equal_paired_differences_have_the_exact_interval_and_its_p_value(make_cell, tmp_path):
    how = {"k": 10, "pretraining": 0}
    runs = [make_cell(f"vapo{s}", seed=s, right=[[0] * 40, [2 + s] * 40], **how) for s in (0, 1)]
    runs += [make_cell(f"grpo{s}", preset="grpo", seed=s, right=[[0] * 40, [s] * 40], **how) for s in (0, 1)]
    runs += [make_cell(f"dapo{s}", preset="dapo", seed=s, right=[[0] * 40, [2 + s] * 40], **how) for s in (0, 1)]
    results = compare_runs(runs, tmp_path / "out")
    # 1 - .025^(1/40) = .0881 of the prompts may differ by anything in [-1, 1]
    same = entry(results, "dapo")["difference"]["final"]
    assert [same[key] for key in ("mean", "low", "high")] == pytest.approx([0, -0.0881, 0.0881], abs=1e-4)
    assert (same["excludes_zero"], same["p"]) == (False, 1.0)
    # .2 below in every pair: -.2 - .0881 * .8 and -.2 + .0881 * 1.2; p = 2 / 1.2^40
    lower = entry(results, "grpo")["difference"]["final"]
    assert [lower[key] for key in ("mean", "low", "high")] == pytest.approx([-0.2, -0.27048, -0.09428], abs=1e-4)
    assert (lower["excludes_zero"], lower["p"]) == (True, pytest.approx(0.0013607, abs=1e-7))


def test_a_run_resumed_with_other_settings_is_marked_in_table_and_page(make_cell, tmp_path):
    changed, other = make_cell("changed"), make_cell("other", seed=1)
    events = [
        {"event": "resumed", "step": 5, "changes": []},
        {"event": "resumed", "step": 12, "changes": ["trainer.actor_lr: 0.1 -> 0.0001"]},
    ]
    (changed / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    results = compare_runs([changed, other], tmp_path / "out")
    line = (
        "changed (vapo, base shipped, seed 0): resumed with other settings at step 12: trainer.actor_lr: 0.1 -> 0.0001"
    )
    assert runs_resumed(results) == [line]
    assert main_rows(results)[0][3] == "2, 1 resumed"
    assert "Resumed with other settings" in comparison_markdown(results)
    assert line.replace(">", "&gt;") in (tmp_path / "out" / "comparison.html").read_text()


def test_reading_another_file_or_a_missing_file_as_results_raises(tmp_path):
    (tmp_path / "results.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="of this version"):
        read_results(tmp_path / "results.json")
    with pytest.raises(DataError, match="Cannot read"):
        read_results(tmp_path / "nothing.json")
