"""The command line: what a user types, what comes back, and one line with a fix for each mistake."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

import toys
from vapo import cli
from vapo.bases.shipped import builtin_model

pytestmark = pytest.mark.slow

SMALL = {
    "scale.threads": 1,
    "trainer.samples_per_step": 16,
    "trainer.group_size": 4,
    "trainer.minibatch_size": 8,
    "trainer.pretraining_steps": 1,
    "trainer.pretraining_heldout": 8,
    "evaluation.prompts": 4,
    "evaluation.samples_per_prompt": 2,
    "rollout.max_response_tokens": 24,
}


def settings(without: str = "") -> list[str]:
    return [word for key, value in SMALL.items() if key != without for word in ("--set", f"{key}={value}")]


TINY = settings()


def vapo(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of one call in this process."""
    monkeypatch.setattr(sys, "argv", ["vapo", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The smallest run of the real default, by the real command."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "vapo", "train", "--steps", "2", "--run-dir", str(folder), *TINY]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "value pretraining 1/1",
        "training 2/2",
        "avg@2",
        "report.html",
    ):
        assert words in done.stdout, words
    assert "\x1b" not in done.stdout  # not a terminal: plain lines
    return folder


def test_resume_of_a_finished_run_shows_its_table_again(trained: Path, monkeypatch, capsys):
    assert vapo("resume", str(trained), monkeypatch=monkeypatch) == 0
    assert "avg@2" in capsys.readouterr().out


def test_eval_takes_a_trained_policy_a_checkpoint_and_the_builtin_model(trained: Path, monkeypatch, capsys):
    checkpoint = max((trained / "checkpoints").iterdir()) / "policy"
    results = []
    few = ("-k", "2", "--prompts", "3", "--set", "rollout.max_response_tokens=24", "--json")
    for model in (trained / "policy", checkpoint, "builtin"):
        assert vapo("eval", str(model), *few, monkeypatch=monkeypatch) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["per_prompt"] == results[1]["per_prompt"]
    setup = ("--task", str(trained / "config.yaml"))
    assert vapo("eval", str(trained / "policy"), *few[:4], "--json", *setup, monkeypatch=monkeypatch) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["task"], again["per_prompt"]) == ("maze", results[0]["per_prompt"])
    assert {"avg", "low", "high", "pass", "maj", "k", "prompts"} <= set(results[2])
    assert results[2]["top_p"] == 0.7  # the paper's protocol is the default
    assert vapo("eval", "builtin", *few[:-1], "--per-problem", monkeypatch=monkeypatch) == 0
    assert "pass@2" in capsys.readouterr().out


def test_a_critic_can_be_reused_without_pretraining_it_again(trained: Path, tmp_path: Path, monkeypatch, capsys):
    small = settings(without="trainer.pretraining_steps")
    options = ["--steps", "1", "--run-dir", str(tmp_path / "run"), "--critic", str(trained / "critic"), *small]
    assert vapo("train", *options, monkeypatch=monkeypatch) == 0
    assert "saved critic" in capsys.readouterr().out
    phases = [json.loads(line)["phase"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert phases == ["train"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vapo_value_head": {"kind": "bounded", "low": 0.0, "high": 1.0}}, "has a bounded head (low 0, high 1), and"),
        ({"vapo_value_head": {"kind": "of-tomorrow"}}, "this version does not know: of-tomorrow"),
        ({"model_type": "nosuch"}, "nosuch"),
        ({"model_type": "vapo_side_critic"}, "holds a side critic. Set model.critic_kind=side"),
        ({"vocab_size": 7}, "a vocabulary of 7 where the policy has"),
    ],
)
def test_dry_run_looks_at_the_critic_that_is_given(
    change: dict[str, Any], words: str, tmp_path: Path, monkeypatch, capsys
):
    config = json.loads((Path(builtin_model("maze", None)) / "config.json").read_text())
    saved = {**config, "architectures": ["LlamaForTokenClassification"], **change}
    (tmp_path / "config.json").write_text(json.dumps(saved))  # no weights: they are not read
    assert vapo("train", "--dry-run", "--critic", str(tmp_path), monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(tmp_path) in said or "config.json" in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_dry_run_prints_every_setting_with_its_origin_and_writes_nothing(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert vapo("train", "--dry-run", "--preset", "dapo", "--steps", "5", "--run-dir", str(folder),
                monkeypatch=monkeypatch) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["preset:", "dapo", "#", "--preset"] for line in lines)
    assert any(line.split() == ["steps:", "5", "#", "--steps"] for line in lines)
    assert "# label: dapo" in lines
    assert any(line.split() == ["#", "high:", "0.28"] for line in lines)
    assert not folder.exists()


def test_tasks_and_recipes_list_what_ships(monkeypatch, capsys):
    assert vapo("tasks", "--json", monkeypatch=monkeypatch) == 0
    listed = {entry["task"] for entry in json.loads(capsys.readouterr().out)}
    assert {"maze", "walk", "chain", "math", "gsm8k", "aime24", "reasoning-gym/countdown"} <= listed
    assert vapo("recipes", monkeypatch=monkeypatch) == 0
    assert "maze" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "trainer.stepz=3"], "did you mean 'steps'"),
        (["--without", "clip-hiher"], "did you mean 'clip-higher'"),
        (["--preset", "vappo"], "did you mean 'vapo'"),
        (["--set", "task.name=mase"], "did you mean 'maze'"),
        (["--set", "task.name=math"], "give them with --set task.data=FILE"),
        (["--set", "task.name=gsm8k", "--set", "task.data=none.jsonl"], "There is no file none.jsonl"),
        (["--set", "task.sidde=5"], "did you mean 'side'"),
        (["--set", "model.policy=./nowhere"], "./nowhere does not exist. Check the path"),
        (["--set", "model.critic=./nowhere"], "./nowhere does not exist. Check the path"),
        (["--set", "trainer.group_size=7"], "must divide the 128 responses"),
        (["--set", "algorithm.credit.critic_lambda.value=-0.1"], "must be in [0, 1]"),
        (["--set", "algorithm.clip.low=1.2"], "clip.low must be in [0, 1]"),
        (["--set", "rollout.max_response_tokens=100000"], "exceed the model's context"),
        (["mase"], "did you mean 'maze'"),
        (["no.yaml"], "Check the path"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix_and_exit_code_2(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert vapo("train", *arguments, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err + said.out
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_mistakes_are_found_before_weights_load(tmp_path: Path, monkeypatch, capsys):
    # a folder whose weights would fail to load: whatever is wrong besides must be said first
    shutil.copytree(builtin_model("maze"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    model = ["--set", f"model.policy={tmp_path / 'model'}"]
    assert vapo("train", *model, "--set", "rollout.max_response_tokens=100000", monkeypatch=monkeypatch) == 2
    assert "exceed the model's context" in capsys.readouterr().err
    words = toys.tokenizer()
    words.eos_token = None
    words.save_pretrained(tmp_path / "model")
    assert vapo("train", *model, monkeypatch=monkeypatch) == 2
    assert "no EOS token" in capsys.readouterr().err


def test_a_run_directory_that_is_in_use_or_cannot_be_written_is_refused(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    for folder, words in (("full", "is not empty"), ("file", "is a file"), ("file/below", "Cannot write")):
        assert vapo("train", "--run-dir", str(tmp_path / folder), monkeypatch=monkeypatch) == 2
        assert words in capsys.readouterr().err
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert vapo("train", "--run-dir", str(tmp_path / "locked" / "run"), monkeypatch=monkeypatch) == 2
        assert "Cannot write" in capsys.readouterr().err


def test_resume_of_something_else_is_refused(tmp_path: Path, monkeypatch, capsys):
    assert vapo("resume", str(tmp_path), monkeypatch=monkeypatch) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path):
    # what `| head` and a closed pager do: the pipe is closed after the first line
    settings = ["trainer.steps=2", "trainer.pretraining_steps=1", "trainer.samples_per_step=16",
                "trainer.minibatch_size=8", "rollout.max_response_tokens=16", "evaluation.prompts=4",
                "trainer.pretraining_heldout=8"]  # fmt: skip
    command = [sys.executable, "-m", "vapo", "train", "--run-dir", str(tmp_path / "run")]
    command += [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "vapo"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_exit_codes_come_through_a_closed_stderr(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "vapo", "resume", str(tmp_path)], stderr=write)
    os.close(write)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        ("math", "task.max_response_tokens=1e3", "task.max_response_tokens takes a whole number, got"),
        ("math", "task.eval_data=5", "task.eval_data takes text, got 5"),
        ("reasoning-gym/chain_sum", "task.config=5", "task.config takes a mapping, {name: value}, got 5"),
        ("maze", "task.side=abc", "task.side must be a whole number from 4 to 9"),
    ],
)
def test_a_task_option_of_another_type_is_one_line(monkeypatch, capsys, task: str, setting: str, words: str):
    assert vapo("train", "--set", f"task.name={task}", "--set", setting, "--dry-run", monkeypatch=monkeypatch) == 2
    assert words in capsys.readouterr().err


def test_a_side_critic_ranks_samples_of_its_own_policy_alone(tmp_path: Path, monkeypatch, capsys):
    run, critic = tmp_path / "run", tmp_path / "run" / "critic"
    final = ["--set", "checkpoint.final=weights", "--set", "model.critic_kind=side"]
    assert vapo("train", "--steps", "1", "--run-dir", str(run), *final, *TINY, monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    one = ["-k", "2", "--prompts", "4", "--critic", str(critic)]
    tensors = load_file(critic / "model.safetensors")
    tensors["score.weight"] += 1  # one step with 24 tokens finds no right answer, so nothing was learned
    save_file(tensors, critic / "model.safetensors", metadata={"format": "pt"})
    assert vapo("eval", str(run), *one, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "side critic of" in said
    assert "best" in said
    config = json.loads((critic / "config.json").read_text())
    (critic / "config.json").write_text(json.dumps({**config, "policy_width": 7}))
    assert vapo("eval", str(run), *one, monkeypatch=monkeypatch) == 2
    assert "Give the policy it was trained beside" in capsys.readouterr().err
    # a run that kept its weights only says how to go on with both
    assert vapo("resume", str(run), "--set", "trainer.steps=2", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert f"vapo train {run / 'config.yaml'} --set model.policy={run / 'policy'} --critic {critic}" in said
    again = shlex.split(said[said.index("vapo train") :])[1:]
    (critic / "config.json").write_text(json.dumps(config))
    assert vapo(*again, "--run-dir", str(tmp_path / "again"), "--dry-run", monkeypatch=monkeypatch) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"]["critic_kind"] == "side"
    assert settings["trainer"]["samples_per_step"] == 16
