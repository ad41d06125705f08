"""`vapo critic`, from a run's folder to a judgement: runs with and without a critic, every head, stops, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
import vapo
from vapo import cli
from vapo.errors import ConfigError, ModelError
from vapo.evals.judgement import Finding
from vapo.json_text import json_text
from vapo.models.loading import load_critic
from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.judge_options import FOLDER, JudgeOptions, parse_fractions
from vapo.session.judged_critic import judged_models
from vapo.types import Episode, Verdict

TASK = "toys:EchoTask"
FEW: dict[str, Any] = {"task": TASK, "responses": 3, "continuations": 2, "fractions": (0.0, 0.5)}


class GroupTask(toys.EchoTask):
    """Judges the responses to a prompt against each other."""

    def verify_groups(self, groups: list[list[Episode]], on_progress: Any) -> list[Verdict]:
        return [Verdict("wrong") for group in groups for _ in group]


class Notes(SilentView):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def step(self, metrics: dict[str, Any]) -> None:
        self.steps.append(metrics["step"])


def trained(folder: Path, *layers: dict[str, Any], preset: str = "vapo") -> Path:
    base = toys.toy_base(folder.parent / "base")
    return runs.finish(toys.toy_run(base, folder, *layers, preset=preset), report=False).folder.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained toy run with a critic."""
    return trained(tmp_path_factory.mktemp("judged") / "run")


def test_a_runs_critic_is_judged_and_numbers_picture_and_page_are_written(run: Path, tmp_path: Path):
    view = Notes()
    found = vapo.judge_critic(run, **FEW, out=tmp_path, observer=view)
    assert (found.prompts, found.responses, found.continuations) == (8, 3, 2)
    assert found.has_critic
    assert not found.residual
    assert found.group_size == 4  # the training's
    assert 0 < found.accuracy < 1
    assert found.invalid_ratio == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["conclusion"] == found.conclusion
    assert results["figures"]["ceiling"]["value"] == pytest.approx(found.figures["ceiling"].value)
    assert (results["critic"], results["task"]) == (str(run / "critic"), "echo")
    page = (tmp_path / "judgement.html").read_text()
    assert found.conclusion.split(":")[0] in page.replace("&#39;", "'")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert (tmp_path / "judgement.png").read_bytes().startswith(b"\x89PNG")
    assert view.steps == [1]
    assert any("saved critic" in note for note in view.notes)


def test_the_same_again_draws_nothing_and_more_prompts_use_what_is_there(run: Path, tmp_path: Path):
    first = vapo.judge_critic(run, **FEW, prompts=4, out=tmp_path)
    lines = (tmp_path / "judged.jsonl").read_text()
    view = Notes()
    again = vapo.judge_critic(run, **FEW, prompts=4, out=tmp_path, observer=view)
    assert json_text(again.summary()) == json_text(first.summary())
    assert (tmp_path / "judged.jsonl").read_text() == lines
    assert view.steps == []
    more = vapo.judge_critic(run, **FEW, out=tmp_path)
    assert more.prompts == 8
    assert (tmp_path / "judged.jsonl").read_text().startswith(lines)
    with pytest.raises(ConfigError, match=r"another judgement: continuations was 2, is 3\. Choose another --out"):
        vapo.judge_critic(run, **{**FEW, "continuations": 3}, out=tmp_path)


def test_another_critic_is_judged_on_the_same_continuations(run: Path, tmp_path: Path):
    own = vapo.judge_critic(run, **FEW, out=tmp_path)
    network, _ = load_critic(run / "critic")
    with torch.no_grad():
        network.score.bias += 0.5  # type: ignore[union-attr]
    save_model(network, toys.tokenizer(), tmp_path / "shifted")
    lines = (tmp_path / "judged.jsonl").read_text()
    shifted = vapo.judge_critic(run, critic=tmp_path / "shifted", **FEW, out=tmp_path)
    assert (tmp_path / "judged.jsonl").read_text() == lines
    assert shifted.figures["bias"].value == pytest.approx(own.figures["bias"].value + 0.5, abs=1e-5)
    assert shifted.figures["explained_variance"].value == pytest.approx(
        own.figures["explained_variance"].value, abs=1e-5
    )


def test_a_checkpoint_is_judged_with_the_critic_that_was_saved_with_it(run: Path, tmp_path: Path):
    first, *_, last = sorted((run / "checkpoints").glob("step_*"))
    assert judged_models(str(first), None, None, TASK, {}).out == run / FOLDER / first.name
    assert judged_models(str(run), None, None, TASK, {}).out == run / FOLDER
    early = vapo.judge_critic(first, **FEW, out=tmp_path / "early")
    late = vapo.judge_critic(last, **FEW, out=tmp_path / "late")
    assert json.loads((tmp_path / "early" / "results.json").read_text())["critic"] == str(first / "critic")
    assert early.figures["bias"] != late.figures["bias"]
    assert late.figures == vapo.judge_critic(run, **FEW, out=tmp_path / "whole").figures  # of the run's end


def test_a_run_without_a_critic_gets_the_ceiling_in_its_own_folder(tmp_path: Path):
    path = trained(tmp_path / "grpo", preset="grpo")
    view = Notes()
    found = vapo.judge_critic(path, **FEW, observer=view)
    assert not found.has_critic
    assert set(found.by_position) == {"ceiling", "best_variance_ratio"}
    assert found.finding in (Finding.LOW, Finding.UNSURE, Finding.DIFFICULTY, Finding.WORTH_IT)
    assert any("any critic could explain" in note for note in view.notes)
    assert {p.name for p in (path / FOLDER).iterdir()} == {
        "judged.jsonl",
        "results.json",
        "judgement.png",
        "judgement.html",
    }


@pytest.mark.parametrize("kind", ["bounded", "sigmoid", "hl_gauss"])
def test_values_of_every_head_are_in_units_of_reward(tmp_path: Path, kind: str):
    path = trained(tmp_path / kind, {"algorithm": {"credit": {"head": {"kind": kind}}}, "trainer": {"steps": 1}})
    found = vapo.judge_critic(path, **FEW, out=tmp_path / "out")
    assert abs(found.figures["bias"].value) < 0.5
    assert all(-0.2 <= b.value <= 1.2 for b in found.bins)


def test_a_side_critic_is_judged_beside_its_policy(tmp_path: Path):
    path = trained(tmp_path / "side", {"model": {"critic_kind": "side"}, "trainer": {"steps": 1}})
    found = vapo.judge_critic(path, **FEW, out=tmp_path / "out")
    assert abs(found.figures["bias"].value) < 0.5


def test_a_critic_that_reads_the_answer_is_judged_with_it(tmp_path: Path):
    changes = {"algorithm": {"credit": {"privileged": "answer"}}, "trainer": {"steps": 1}}
    path = trained(tmp_path / "privileged", changes)
    found = vapo.judge_critic(path, **FEW, out=tmp_path / "out")
    assert abs(found.figures["bias"].value) < 0.5
    with pytest.raises(ModelError, match="trained with the privileged column 'answer', and the settings give None"):
        vapo.judge_critic(policy=path / "policy", critic=path / "critic", **FEW, out=tmp_path / "other",
                          settings={"algorithm": {"credit": {"privileged": None}}})  # fmt: skip


def test_a_residual_critic_stands_on_the_mean_of_the_group(tmp_path: Path):
    path = trained(
        tmp_path / "residual", {"algorithm": {"credit": {"baseline": "group"}}, "trainer": {"group_size": 8}}
    )
    with pytest.raises(ConfigError, match=r"of 7 in training.*give --responses 8"):
        vapo.judge_critic(path, **FEW, out=tmp_path / "few")
    enough = {key: value for key, value in FEW.items() if key != "responses"}  # as many as the group has
    found = vapo.judge_critic(path, **enough, out=tmp_path / "out")
    assert found.residual
    assert abs(found.figures["bias"].value) < 0.3  # C alone is near 0, where the mean outcome is about .2
    # the critic's own run says what its value means, also beside a named policy
    named = vapo.judge_critic(policy=path / "policy", critic=path / "critic", **enough, out=tmp_path / "out")
    assert named.residual


def test_a_policy_and_a_critic_of_no_run_need_a_task(run: Path, tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"belongs to no run, so its task is not known. Name one: --task"):
        vapo.judge_critic(policy=base, critic=run / "critic", out=tmp_path / "out")
    found = vapo.judge_critic(policy=base, critic=run / "critic", **FEW, out=tmp_path / "out")
    assert found.has_critic
    with pytest.raises(ModelError, match="has learned nothing: its head is 0"):
        vapo.judge_critic(policy=base, critic=base, **FEW, out=tmp_path / "other")


def test_what_cannot_be_judged_is_refused_with_the_reason(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="--prompts 9 exceeds the 8 held-out prompts of task echo"):
        vapo.judge_critic(run, **FEW, prompts=9, out=tmp_path)
    with pytest.raises(ConfigError, match="compares the responses to a prompt with each other"):
        vapo.judge_critic(run, **{**FEW, "task": f"{__file__}:GroupTask"}, out=tmp_path)
    with pytest.raises(ConfigError, match="give one of both"):
        vapo.judge_critic(run, policy=run / "policy", **FEW)
    with pytest.raises(ConfigError, match="is no run directory and no checkpoint of one"):
        vapo.judge_critic(tmp_path, **FEW)
    assert not (tmp_path / "judged.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"continuations": 1}, "--continuations must be at least 2, got 1: one continuation does not show its own"),
        ({"responses": 1}, "--responses must be at least 2, got 1"),
        ({"prompts": 1}, "--prompts must be at least 2, got 1"),
        ({"fractions": (0.0, 1.0)}, r"--at takes fractions in \[0, 1\), got 0, 1\."),
        ({"fractions": (-0.1,)}, r"--at takes fractions in \[0, 1\), got -0.1\."),
        ({"fractions": (float("nan"),)}, r"--at takes fractions in \[0, 1\), got nan\."),
        ({"fractions": ()}, "got none"),
        ({"fractions": (0.5, 0.5)}, "in ascending order, each once, got 0.5, 0.5"),
    ],
)
def test_numbers_that_give_no_judgement_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        JudgeOptions(**changes)


def test_fractions_are_numbers_with_commas():
    assert parse_fractions("0,0.5, .9") == (0.0, 0.5, 0.9)
    with pytest.raises(ConfigError, match="got '0;1'"):
        parse_fractions("0;1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "-k", "1"], "--continuations must be at least 2"),
        (["nowhere"], "There is no run directory nowhere"),
        (["--policy", "builtin", "--at", "0,1"], "--at takes fractions in [0, 1)"),
        ([], "give one of both"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_without_torch(words: list[str], said: str, tmp_path: Path):
    script = (
        "import sys; sys.argv = ['vapo', 'critic', *sys.argv[1:]]\nfrom vapo import cli\n"
        "try: cli.main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_prints_tables_and_a_conclusion(run: Path, tmp_path: Path, monkeypatch, capsys):
    few = ["--task", TASK, "-g", "3", "-k", "2", "--at", "0,0.5", "--out", str(tmp_path)]

    def command(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["vapo", "critic", str(run), *few, *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert command() == 0
    text = capsys.readouterr().out
    for words in ("ceiling", "critic explains", "calibration", "judgement.html", "prompt", "50 %"):
        assert words in text, words
    assert command("--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert " ".join(results["conclusion"].split()) in " ".join(text.split())
