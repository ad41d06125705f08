"""The viewer's data are the run's records: indexed or not, whole or torn, of one turn or several."""

import gzip
import json
import math

import pytest

from vapo.algo import gae
from vapo.errors import DataError
from vapo.reports.rollout_reading import StepRollouts
from vapo.reports.runfiles import read_rollouts
from vapo.reports.view_data import ViewedRun, response_data, td_errors
from vapo.trainer.rollout_blocks import index_path, prompt_names, write_blocks, write_index


def indexed(path, records):
    """Write records as a run does: in blocks, with an index."""
    path.parent.mkdir(exist_ok=True)
    write_index(write_blocks(path, records), index_path(path))
    return path


def many(count=200):
    return [
        {"prompt_id": f"p{n // 4}", "prompt": f"question {n // 4}", "response": f"word{n} " + "x" * 2_000,
         "sample": n % 4, "verdict": "right" if n % 3 else "wrong", "reward": n % 3 / 2, "reason": "", "num_tokens": n,
         **({"tokens": ["a", "b"], "advantage": [0.1, -0.2], "logp": [-1.0, -0.5]} if n < 8 else {})}
        for n in range(count)
    ]  # fmt: skip


def test_responses_are_read_one_by_one_and_are_those_of_the_file(tmp_path):
    records = many()
    step = StepRollouts(indexed(tmp_path / "rollouts" / "step_000001.jsonl.gz", records))
    assert len(step.index.blocks) > 3
    assert step.rows([0, 77, 199, 200, -1]) == {0: records[0], 77: records[77], 199: records[199]}
    assert step.rows([]) == {}


def test_a_file_without_an_index_gives_the_same(tmp_path):
    path = indexed(tmp_path / "rollouts" / "step_000001.jsonl.gz", many())
    before = StepRollouts(path)
    index_path(path).unlink()
    after = StepRollouts(path)
    assert (after.index.rows, after.index.prompts) == (before.index.rows, before.index.prompts)
    assert after.rows([5, 150]) == before.rows([5, 150])
    assert after.search("WORD15 ") == before.search("WORD15 ") == [15]


@pytest.mark.parametrize(
    ("words", "found"), [("Word7 ", [7]), ("question 3", [12, 13, 14, 15]), ("zebra", []), ('"x', []), ("é", [])]
)
def test_the_search_reads_prompts_and_responses_whatever_their_case(tmp_path, words, found):
    step = StepRollouts(indexed(tmp_path / "rollouts" / "step_000001.jsonl.gz", many(40)))
    assert [n for n in step.search(words) if n < 30] == found


def test_the_search_finds_letters_that_json_escapes(tmp_path):
    records = [{"response": 'say "Épée"\n', "prompt": [{"role": "user", "content": "\\boxed{Ü}"}]}, {"response": "-"}]
    step = StepRollouts(indexed(tmp_path / "rollouts" / "step_000001.jsonl.gz", records))
    assert [step.search(words) for words in ('y "É', "épée", "\\BOXED", "{ü}", "épe ")] == [[0], [0], [0], [0], []]


def test_a_damaged_block_is_an_error_that_names_the_file(tmp_path):
    path = indexed(tmp_path / "rollouts" / "step_000001.jsonl.gz", many())
    packed = bytearray(path.read_bytes())
    packed[40:60] = bytes(20)
    path.write_bytes(bytes(packed))
    with pytest.raises(DataError, match=r"step_000001\.jsonl\.gz cannot be read"):
        StepRollouts(path).rows([0])


def test_a_run_has_its_steps_and_each_has_all_responses(make_run):
    run = ViewedRun(make_run())
    told = run.overview()
    assert [step["key"] for step in told["steps"]] == [
        "pretrain_000001", "pretrain_000002", "step_000001", "step_000002", "step_000003"
    ]  # fmt: skip
    assert (told["every"], told["gamma"], told["outcomes"]) == (1, 1.0, [0.0, 1.0])
    index = run.index("step_000003")
    records = read_rollouts(run.steps["step_000003"].path)
    assert index["rows"]["reward"] == [record["reward"] for record in records]
    assert index["rows"]["tokens"] == [len(record["tokens"]) for record in records]
    assert index["prompts"][0] == [records[0]["prompt_id"], records[0]["prompt"]]
    assert index["scale"]["value"][0] <= 0 < 1 <= index["scale"]["value"][1]
    with pytest.raises(KeyError):
        run.index("step_000099")


def test_a_step_that_is_written_while_the_viewer_runs_is_seen(make_run):
    run = ViewedRun(make_run())
    before = run.index("step_000003")
    indexed(run.files.path / "rollouts" / "step_000003.jsonl.gz", many(20))
    indexed(run.files.path / "rollouts" / "step_000004.jsonl.gz", many(8))
    assert len(run.index("step_000003")["rows"]["prompt"]) == 20 != len(before["rows"]["prompt"])
    assert run.overview()["steps"][-1]["label"] == "step 4"


def test_a_response_has_gold_and_extracted_answer_and_all_its_numbers(make_run):
    run = ViewedRun(make_run())
    row = run.rows("step_000003", [0])[0]
    assert {"map", "start", "goal"} <= row["answer"].keys()
    for name in ("tokens", "value", "return", "advantage", "td", "logp"):
        assert len(row[name]) == row["num_tokens"], name
    assert row["turns"] == [["policy", row["num_tokens"]]]


def test_a_run_without_a_critic_has_no_values_and_no_errors(make_run):
    run = ViewedRun(make_run("grpo"))
    scale = run.index("step_000003")["scale"]
    assert (scale["value"], scale["td"]) == (None, None)
    assert scale["advantage"] > 0
    assert run.rows("step_000003", [0])[0]["value"] is None


def test_td_errors_are_those_that_the_advantages_were_summed_from():
    import torch

    values = torch.tensor([[0.5, 0.25, 0.75, 0.0, 0.5]])
    mask = torch.tensor([[True, True, True, False, True]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    (advantages,) = gae(rewards, values, mask, lam=0.9, gamma=0.95).tolist()
    (errors,) = gae(rewards, values, mask, lam=0.0, gamma=0.95).tolist()
    learned = [x if m else None for x, m in zip(advantages, mask[0].tolist(), strict=True)]
    found = td_errors(learned, [0.9] * 5, 0.95)
    assert found is not None
    assert found[3] is None
    assert [x for x in found if x is not None] == pytest.approx([errors[t] for t in (0, 1, 2, 4)], abs=1e-3)
    assert td_errors(None, [0.9], 1.0) is None
    assert td_errors([0.5], [math.nan], 1.0) is None


def test_td_errors_of_a_lambda_between_turns_are_those_of_its_sum():
    import torch

    from vapo.algo.advantages import turn_lambda

    values = torch.tensor([[0.5, 0.25, 0.75, 0.0, 0.5]])
    mask = torch.tensor([[True, True, False, True, True]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    lam = turn_lambda(mask, torch.tensor([0.6]))
    (advantages,), (errors,) = (gae(rewards, values, mask, lam=one).tolist() for one in (lam, 0.0))
    record = {"tokens": list("abcde"), "advantage": advantages, "lambda": 0.6,
              "turns": [["policy", 2], ["environment", 1], ["policy", 2]]}  # fmt: skip
    row = response_data(record, by_turns=True)
    assert row["lambdas"] == [x if m else 1.0 for x, m in zip(row["lambdas"], mask[0].tolist(), strict=True)]
    assert [x for x in row["td"] if x is not None] == pytest.approx([errors[t] for t in (0, 1, 3, 4)], abs=1e-3)
    assert response_data(record)["lambdas"] is None
    touching = record | {"tokens": list("abcd"), "advantage": [0.1] * 4,
                         "turns": [["policy", 2], ["environment", 0], ["policy", 2]]}  # fmt: skip
    assert response_data(touching, by_turns=True)["lambdas"] == [1.0, 0.6, 1.0, 0.6]


def test_whitened_advantages_have_no_td_errors():
    record = {"tokens": ["a"], "advantage": [0.5], "lambda": 0.9}
    assert response_data(record)["td"] == [0.5]
    assert response_data(record, whitened=True)["td"] is None


def test_tokens_of_the_environment_have_no_numbers():
    record = {"tokens": ["a", "b", "c"], "advantage": [0.1, 9.0, 0.2], "logp": [-1.0, 0.0, -2.0], "lambda": 0.5,
              "turns": [["policy", 1], ["environment", 1], ["policy", 1]]}  # fmt: skip
    row = response_data(record)
    assert (row["advantage"], row["logp"], row["td"]) == ([0.1, None, 0.2], [-1.0, None, -2.0], [0.0, None, 0.2])


def test_what_is_missing_or_odd_in_a_record_becomes_a_gap():
    row = response_data(
        {"verdict": "odd", "tokens": ["a", "b", "c"], "logp": [-1.0], "advantage": [math.nan, math.inf, 0.5],
         "turns": "?", "prompt": [{"role": "user", "content": "hi"}, "odd"]}
    )  # fmt: skip
    assert (row["logp"], row["advantage"]) == ([-1.0, None, None], [None, None, 0.5])
    assert (row["verdict"], row["turns"]) == ("invalid", [["policy", 3]])
    assert row["prompt"] == [{"role": "user", "content": "hi"}, {"role": "?", "content": "odd"}]
    assert response_data({})["tokens"] is None
    json.dumps(row, allow_nan=False)


def test_the_history_of_a_prompt_has_the_steps_that_sampled_it(make_run):
    run = ViewedRun(make_run())
    indexed(run.files.path / "rollouts" / "step_000008.jsonl.gz", many(8))
    indexed(run.files.path / "rollouts" / "step_000009.jsonl.gz", many(4))
    (run.files.path / "rollouts" / "step_000010.jsonl.gz").write_bytes(gzip.compress(b"junk\n{}\n"))
    assert run.history("p1") == [
        {"key": "step_000008", "label": "step 8", "verdicts": ["right", "right", "wrong", "right"]}
    ]
    assert [found["key"] for found in run.history("p0")] == ["step_000008", "step_000009"]
    assert run.history("nobody") == []


def test_prompts_are_called_by_what_is_their_own():
    start = "You are helpful. Solve the problem.\n"
    assert prompt_names([start + "1 + 1 = ?", start + "1 + 2 = ?"]) == ["1 + 1 = ?", "1 + 2 = ?"]
    assert prompt_names([start]) == ["You are helpful. Solve the problem."]
    (name,) = prompt_names(["word " * 100])
    assert len(name) <= 100
    assert name.endswith("…")
    assert prompt_names([]) == []
