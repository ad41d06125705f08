"""The before-and-after table shows the scores, and claims a change only if the evaluations can tell."""

import io

from rich.console import Console

from vapo.reports.runfiles import read_run
from vapo.reports.score_change import direction
from vapo.reports.tables import before_after_rows, before_after_table, evaluation_table, headings, headline


def result(label, step, avg, spread=0.04, **more):
    scores = {"avg": avg, "low": avg - spread, "high": avg + spread, "pass": {"1": avg, "8": 0.9}, "maj": None}
    return {"label": label, "step": step, "k": 8, "prompts": 128, **scores, **more}


def printed(evaluations):
    return shown(before_after_table(evaluations))


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_before_and_after_with_intervals_and_change():
    evaluations = [result("before", 0, 0.1), result("during", 10, 0.3), result("after", 20, 0.75)]
    text = printed(evaluations)
    line = next(line for line in text.splitlines() if "avg@8" in line)
    assert "0.100 [0.060, 0.140]" in line
    assert "0.750 [0.710, 0.790]" in line
    assert "+0.650" in line
    assert "pass@8" in text
    assert "128 held-out prompts" in text
    assert "0.300" not in text
    assert "maj" not in text  # null on both sides: no row of dashes


def test_recorded_runs_have_a_row_for_every_score(make_run):
    for preset in ("vapo", "grpo"):
        rows = before_after_rows(read_run(make_run(preset)).evaluations)
        assert [row.name for row in rows] == ["avg@2", "pass@2", "mean length", "cut off at the limit"]
        assert all("–" not in (row.before, row.after) for row in rows)


def test_an_unfinished_run_shows_its_newest_evaluation_with_its_step():
    evaluations = [result("before", 0, 0.1), result("during", 10, 0.3), result("during", 20, 0.4)]
    assert "step 20" in printed(evaluations)
    assert before_after_rows(evaluations)[0].after == "0.400"


def test_a_run_that_was_made_longer_shows_its_newest_evaluation():
    first = [result("before", 0, 0.1), result("during", 20, 0.3), result("after", 20, 0.32)]
    longer = [*first, result("during", 30, 0.7)]
    assert headings(first) == ("before", "after")
    assert headings(longer) == ("before", "step 30")
    assert before_after_rows(longer)[0].after == "0.700"
    assert "rose from 0.100 [0.060, 0.140] to 0.700 [0.660, 0.740] in 30 steps" in headline(longer)


def test_missing_evaluations_and_numbers_are_shown_as_dashes():
    only_after = before_after_rows([result("after", 20, 0.5, low=None, high=None)])[0]
    assert (only_after.before, only_after.after, only_after.change) == ("–", "0.500", "–")
    assert only_after.after_interval == ""
    assert "No evaluation yet" in printed([])


def test_the_headline_claims_a_change_only_if_the_intervals_do_not_overlap():
    rise = headline([result("before", 0, 0.1), result("after", 20, 0.75)])
    assert rise == "Held-out avg@8 rose from 0.100 [0.060, 0.140] to 0.750 [0.710, 0.790] in 20 steps."
    assert "fell from" in headline([result("before", 0, 0.75), result("after", 20, 0.1)])
    assert "not told apart" in headline([result("before", 0, 0.50), result("after", 20, 0.55)])
    one_prompt = result("after", 20, 0.9, low=None, high=None)
    assert "not told apart" in headline([result("before", 0, 0.1), one_prompt])
    assert "no evaluation both before and after" in headline([result("before", 0, 0.1)])


def counted_by_prompt(label, right, k=4):
    average = sum(right) / len(right) / k
    return result(
        label, 0 if label == "before" else 20, average, 0.2, right=right, valid=[k] * len(right), set="a", k=k
    )


def test_the_same_prompts_are_compared_one_by_one():
    before, after = counted_by_prompt("before", [0, 1, 2, 3] * 8), counted_by_prompt("after", [1, 2, 3, 4] * 8)
    assert direction(before, after) == "rose"  # their intervals overlap: 0.375 ± 0.2 and 0.625 ± 0.2
    assert direction(after, before) == "fell"
    assert "rose from 0.375" in headline([before, after])
    assert "; paired by prompt +0.250 [+0.1" in headline([before, after])
    assert direction(before, {**after, "set": "b"}) == "not told apart"
    one, other = counted_by_prompt("before", [1]), counted_by_prompt("after", [2])
    assert "paired" not in headline([one, other])  # one prompt has no interval
    assert direction(before, counted_by_prompt("after", [1, 0, 3, 2] * 8)) == "not told apart"


def test_the_best_of_many_evaluations_has_to_differ_more():
    before, after = counted_by_prompt("before", [2] * 16), counted_by_prompt("after", [2] * 11 + [1] * 5)
    assert direction(before, after) == "fell"
    assert direction(before, after, choices=50) == "not told apart"


def test_majorities_of_different_numbers_of_samples_are_not_compared():
    before, after = result("before", 0, 0.1, k=1, maj=0.1), result("after", 20, 0.5, k=16, maj=0.7)
    avg, *_, maj = [row for row in before_after_rows([before, after]) if "@" in row.name and "pass" not in row.name]
    assert (avg.name, avg.before, avg.after, avg.change) == ("avg@1 → avg@16", "0.100", "0.500", "+0.400")
    assert (maj.name, maj.before, maj.after, maj.change) == ("maj@16", "–", "0.700", "–")
    assert "Held-out accuracy (avg@1 before, avg@16 after) rose" in headline([before, after])


def test_a_critics_choice_on_one_prompt_has_a_difference_and_no_interval():
    best = {"score": 1.0, "low": None, "high": None, "over_maj": [0.5, None, None], "over_avg": [None, None, None]}
    text = shown(evaluation_table(result("after", 0, 0.5, ranking={"best-of-n": best}, in_order=[0.5, None, None])))
    rows = {cells[1].strip(): cells[2:4] for line in text.splitlines() if len(cells := line.split("│")) == 5}
    assert [cell.strip() for cell in rows["over the majority"]] == ["+0.500", ""]
    assert [cell.strip() for cell in rows["over one sample"]] == ["–", ""]
    assert "nan" not in text


def test_a_critics_choice_on_many_prompts_has_the_interval_of_the_difference():
    best = {"score": 1.0, "low": 0.9, "high": 1.0, "over_maj": [0.5, 0.25, 0.75]}
    assert "+0.250 to +0.750" in shown(evaluation_table(result("after", 0, 0.5, ranking={"best-of-n": best})))
