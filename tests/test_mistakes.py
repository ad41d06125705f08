"""Typical mistakes of users, each answered in one line with the fix and an exit code, without a traceback."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

import toys
from command_line import vapo
from vapo.trackers import tracker

ROWS = [{"problem": f"{i} x", "answer": str(i)} for i in range(30)]
VERIFIERS = """
def raises(response, answer):
    raise RuntimeError("no such service")

def asks(response, colour):
    return True
"""
SETTINGS = """
task: {name: math, data: rows.jsonl, verifier: exact, heldout: 2, template: "{problem}", max_response_tokens: 8}
model: {policy: base}
"""
SMALL = (
    "--set trainer.samples_per_step=8 --set trainer.group_size=4 --set trainer.minibatch_size=8 --set trainer.steps=1 "
    "--set trainer.pretraining_steps=0 --set evaluation.prompts=2 --set evaluation.samples_per_prompt=1 "
    "--set scale.threads=1 --run-dir new"
)
MISTAKES = {
    # settings
    "train --set trainer.stepz=3": ("Unknown setting trainer.stepz; did you mean 'steps'?", 2),
    "train --set learning_rate=1e-6": ("did you mean 'trainer.actor_lr'?", 2),
    "train --set trainer.steps=many": ("trainer.steps takes a whole number, at least 0, got 'many'", 2),
    "train --set trainer.actor_lr=-1": ("trainer.actor_lr must be at least 0, got -1", 2),
    "train --set trainer.steps=true": ("trainer.steps takes a whole number, at least 0, got true", 2),
    "train --preset grpo --set trainer.group_size=1": ("Raise trainer.group_size, or use a preset with a critic", 2),
    "train --set trainer.group_size=7": ("must divide the 128 responses", 2),
    "train --set rollout.temperature=0": ("rollout.temperature must be above 0 in training", 2),
    "train --set rollout.max_response_tokens=100000": ("exceed the model's context", 2),
    "train --set trackers=[wandbb]": ("got 'wandbb' in it; did you mean 'wandb'?", 2),
    "train --set trackers=wandb": ("got 'wandb': write a list, [wandb]", 2),
    "train --set model.dtype=bf16": ("got 'bf16'; did you mean 'bfloat16'?", 2),
    "train --run-dir rows.jsonl": ("rows.jsonl is a file, and a run needs a folder. Choose another --run-dir", 2),
    "train --critic base": ("base holds a language model, which has no value head. Give a critic/ folder", 2),
    "train --preset vappo": ("No preset is called 'vappo'; did you mean 'vapo'?", 2),
    "train --without clip-hiher": ("did you mean 'clip-higher'?", 2),
    "train --seed -1": ("seed takes a whole number, in [0, 2^64), got -1", 2),
    "train mase": ("did you mean 'maze'?", 2),
    "train broken.yaml": ("broken.yaml is not valid YAML: line 3", 2),
    "train list.yaml": ("list.yaml must hold `key: value` lines, found a list", 2),
    "train section.yaml": ("Unknown setting train.steps; did you mean 'trainer.steps'?", 2),
    "make-base maze --out new --recipe layers": ("--recipe takes key=value, like --recipe layers=4; got 'layers'", 2),
    # options of other trainers
    "train --lr 1e-4": ("No such option: --lr. Write --set trainer.actor_lr=1e-4. All options: vapo train --help", 2),
    "train --lr": ("Write --set trainer.actor_lr=VALUE.", 2),
    "train --max-steps=7": ("Write --steps 7.", 2),
    "train --out here": ("Write --run-dir here.", 2),
    "train --config mine.yaml": ("No such option: --config. Write it without an option: mine.yaml.", 2),
    "train --task chain": ("No such option: --task. Write it without an option: chain.", 2),
    "train --task gsm8k": ("No such option: --task. Write --set task.name=gsm8k.", 2),
    "train --model base": ("Write --set model.policy=base.", 2),
    "train --trainer.actor-lr 1e-4": ("Write --set trainer.actor_lr=1e-4.", 2),
    "train --bogus 3": ("No such option: --bogus", 2),
    "train trainer.actor_lr=1e-4": ("To change a setting write --set trainer.actor_lr=1e-4.", 2),
    "train maze trainer.actor_lr=1e-4": ("To change a setting write --set trainer.actor_lr=1e-4.", 2),
    "resume run --lr 1": ("Write --set trainer.actor_lr=1.", 2),
    # packages
    "train --set trackers=[mlflow]": ("pip install mlflow-skinny", 2),
    "train --set task.name=reasoning-gym/countdown --set model.policy=base": ("pip install reasoning-gym", 2),
    "train --set rollout.engine=vllm": ("pip install", 2),
    # models
    "train mine.yaml --set model.policy=nowhere/at/all": ("Check the path", 2),
    "train mine.yaml --set model.policy=pickled": ("no file named model.safetensors", 2),
    "train chat.yaml --set model.prompt_format=chat": ("chat template", 2),
    # data
    "train mine.yaml --set task.data=nowhere.jsonl": ("There is no file nowhere.jsonl. Check the path", 2),
    "train mine.yaml --set 'task.columns={prompt: question, answer: answer}'": ("question", 2),
    "train mine.yaml --set task.data=one.jsonl": ("one.jsonl", 2),
    "train mine.yaml --set task.data=empty.jsonl": ("empty.jsonl", 2),
    "train mine.yaml --set task.data=torn.jsonl": ("torn.jsonl line 2 is not JSON", 2),
    "train mine.yaml --set task.data=unanswered.jsonl": ("answer", 2),
    # verifiers
    "train mine.yaml --set task.verifier=judge.py:nothing": ("has no function 'nothing'", 2),
    f"train mine.yaml --set task.verifier=judge.py:raises {SMALL}": (
        "RuntimeError: no such service. Fix the verifier.",
        2,
    ),
    f"train mine.yaml --set task.verifier=judge.py:asks {SMALL}": (
        "asks for 'colour'; there are: answer, problem, prompt, response. Fix the verifier.",
        2,
    ),
    # run folders
    "train --run-dir run": ("The run directory run is not empty", 2),
    "resume nowhere": ("nowhere is not a run directory", 2),
    "resume run --set trainer.actor_lr=0.5": ("--allow-change", 2),
    "eval base": ("its task is not known. Name one: --task maze", 2),
    "export run --adapter": ("run has no adapters of the policy", 2),
    "evall run": ("No such command 'evall'", 2),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A user's folder, with a finished run in it."""
    folder = tmp_path_factory.mktemp("mistakes")
    toys.toy_base(folder / "base")
    lines = [json.dumps(row) for row in ROWS]
    files = {
        "rows.jsonl": "\n".join(lines), "one.jsonl": lines[0], "empty.jsonl": "", "torn.jsonl": lines[0] + '\n{"pro',
        "chat.jsonl": "\n".join(
            json.dumps({"prompt": [{"role": "user", "content": f"{i} x"}], "answer": f"{i}"}) for i in range(30)
        ),
        "chat.yaml": "task: {name: math, data: chat.jsonl, verifier: exact, heldout: 2, max_response_tokens: 8}\n"
        "model: {policy: base}\n",
        "unanswered.jsonl": "\n".join(json.dumps({"problem": row["problem"]}) for row in ROWS),
        "judge.py": VERIFIERS, "mine.yaml": SETTINGS, "broken.yaml": "trainer:\n  steps: [1\n", "list.yaml": "- 1\n",
        "section.yaml": "train: {steps: 3}\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    shutil.copytree(folder / "base", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save({}, folder / "pickled" / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        small = SMALL.replace("--run-dir new", "--run-dir run")
        assert vapo(patch, *shlex.split(f"train mine.yaml {small}")) == 0
    return place / "run"


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_answered_in_one_line(command: str, place: Path, finished: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # its import fails
    shutil.rmtree("new", ignore_errors=True)
    words, code = MISTAKES[command]
    before = set(place.iterdir())
    capsys.readouterr()
    assert vapo(monkeypatch, *shlex.split(command)) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.out + said.err
    assert code != 2 or set(place.iterdir()) == before


def test_resuming_a_finished_run_says_how_to_make_it_longer(place: Path, finished: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert vapo(monkeypatch, "resume", "run") == 0
    assert "this run has ended; to make it longer: vapo resume run --set trainer.steps=N" in capsys.readouterr().out


def test_a_verifier_that_always_says_right_is_found_by_check_and_by_an_alarm(place: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "kind.py").write_text("def right(response, answer):\n    return True\n")
    command = f"train mine.yaml --set task.verifier=kind.py:right {SMALL}"
    shutil.rmtree("new", ignore_errors=True)
    assert vapo(monkeypatch, *shlex.split(command)) == 0
    assert "before training are right: nothing is left to learn" in capsys.readouterr().out
