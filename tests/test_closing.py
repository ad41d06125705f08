"""What a finished run advises next depends on how it went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from command_line import sets
from reports.recorded.record import restore
from vapo.cli.closing import closing_words

AGAIN = ["train", "--seed", "3"]


def evaluation(label: str, avg: float, low: float, high: float) -> dict:
    return {"step": 0 if label == "before" else 4, "label": label, "k": 2, "prompts": 9, "avg": avg,
            "low": low, "high": high, "pass": {"1": avg}}  # fmt: skip


def said(path: Path, capsys, monkeypatch, again: Sequence[str] = AGAIN) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    closing_words(path, False, again)
    return capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    restore("vapo", tmp_path / "run")
    Path("run/critic").mkdir()
    return Path("run")


def outcome(run: Path, before: tuple[float, float, float], after: tuple[float, float, float]) -> None:
    lines = [evaluation("before", *before), evaluation("after", *after)]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_where_the_score_rose_the_critic_is_compared(run: Path, capsys, monkeypatch):
    outcome(run, (0.2, 0.1, 0.3), (0.6, 0.5, 0.7))
    text = said(run, capsys, monkeypatch)
    assert "Next, see what the critic is worth:\n  vapo train --seed 3 --preset grpo" in text
    assert "doctor" not in text


def test_the_commands_of_other_methods_repeat_no_setting_that_they_refuse_or_that_makes_the_method(
    run: Path, capsys, monkeypatch
):
    outcome(run, (0.2, 0.1, 0.3), (0.6, 0.5, 0.7))
    refused = ["algorithm.credit.head.kind=hl_gauss", "model.critic=base", "model.critic_lora=2"]
    kept_ones = ["trainer.minibatch_size=8", "trainer.pretraining_steps=2"]
    again = ["train", *sets(*refused, "algorithm.preset=vapo", *kept_ones)]
    text = said(run, capsys, monkeypatch, again)
    kept = "vapo train --set trainer.minibatch_size=8 --set trainer.pretraining_steps=2 --preset grpo"
    assert kept in text
    assert "algorithm.preset=vapo" not in text
    (line,) = [line for line in text.splitlines() if "--without value-pretraining" in line]
    assert "trainer.pretraining_steps" not in line
    assert "model.critic_lora=2" in line


def test_a_file_that_sets_the_critics_credit_is_not_run_with_grpo(run: Path, capsys, monkeypatch):
    outcome(run, (0.2, 0.1, 0.3), (0.6, 0.5, 0.7))
    Path("mine.yaml").write_text("recipe: maze\nalgorithm: {credit: {gamma: 0.99}}\n")
    assert "grpo" not in said(run, capsys, monkeypatch, ["train", "mine.yaml"])
    Path("mine.yaml").write_text("recipe: maze\n")
    assert "vapo train mine.yaml --preset grpo" in said(run, capsys, monkeypatch, ["train", "mine.yaml"])


def test_where_the_score_fell_the_reason_is_looked_for(run: Path, capsys, monkeypatch):
    outcome(run, (0.6, 0.5, 0.7), (0.2, 0.1, 0.3))
    text = said(run, capsys, monkeypatch)
    assert "  vapo doctor run" in text
    assert "worth" not in text


def test_where_the_score_stayed_training_goes_on(run: Path, capsys, monkeypatch):
    outcome(run, (0.2, 0.1, 0.3), (0.25, 0.15, 0.35))
    steps = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["steps"]
    text = said(run, capsys, monkeypatch)
    assert f"vapo resume run --set trainer.steps={2 * steps}" in text
    assert "worth" not in text


def test_a_run_that_kept_its_weights_only_trains_on_as_a_new_run(run: Path, capsys, monkeypatch):
    outcome(run, (0.2, 0.1, 0.3), (0.25, 0.15, 0.35))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["checkpoint"]["final"] = "weights"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "policy").mkdir()
    text = said(run, capsys, monkeypatch)
    assert "vapo train run/config.yaml --set model.policy=run/policy --critic run/critic" in text
    assert "vapo resume" not in text


@pytest.mark.parametrize("by", ["verdict", "score"])
def test_where_all_outcomes_were_equal_that_is_all_that_is_said(run: Path, capsys, monkeypatch, by: str):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["algorithm"]["reward"] = {"by": by}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "accuracy": 0.0, "reward_std": 0.0, "reward": 0.5, "verdict/judged": 8} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = said(run, capsys, monkeypatch)
    assert ("have equal outcomes (mean 0.5)" if by == "score" else "are right: nothing to learn") in text
    assert "Next" not in text


def test_lines_about_files_fit_80_columns(run: Path, capsys, monkeypatch):
    outcome(run, (0.2, 0.1, 0.3), (0.6, 0.5, 0.7))
    Path("runs").mkdir()
    usual = run.rename("runs/maze-vapo-seed0")
    assert max(map(len, said(usual, capsys, monkeypatch).splitlines())) <= 80
