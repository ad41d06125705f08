"""Shell completion: what the words may become, and the functions of the shells that are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import command_line
from vapo.cli.completing import SCRIPTS, Shell

CASES = {
    ("tra",): ["train"],
    ("comp",): ["compare", "completion"],
    ("--v",): ["--version"],
    ("train", "--pre"): ["--preset"],
    ("train", "--preset", "vapo"): ["vapo", "vapo2"],
    ("train", "--without", "clip"): ["clip-higher"],
    ("train", "maz"): ["maze"],
    ("train", "--set", "trainer.actor"): ["trainer.actor_lr="],
    ("train", "--set", "model.dtype=b"): ["model.dtype=bfloat16", "model.dtype=bfloat16-weights"],
    ("train", "--set", "model.dtype", "=", "b"): ["bfloat16", "bfloat16-weights"],  # as bash splits it
    ("train", "--set", "model.gradient_checkpointing", "="): ["false", "true"],
    ("train", "--set", "algorithm.preset=gr"): ["algorithm.preset=grpo"],
    ("train", "--set", "task.sid"): ["task.side="],
    ("export", "run", "--dtype", "f"): ["float16", "float32"],
    ("train", "--run-dir", "ru"): [],  # a path: the shell's own completion
    ("resume", "ru"): [],
    ("nosuch", "--se"): [],
}


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_the_last_word_becomes_what_is_there(words: tuple[str, ...], monkeypatch, capsys):
    assert command_line.vapo(monkeypatch, "complete", "--", *words) == 0
    assert capsys.readouterr().out.split() == CASES[words]


@pytest.mark.parametrize("shell", Shell)
def test_the_script_is_printed_and_the_helper_is_hidden(shell: Shell, monkeypatch, capsys):
    assert command_line.vapo(monkeypatch, "completion", shell.value) == 0
    assert capsys.readouterr().out.strip() == SCRIPTS[shell].strip()
    assert command_line.vapo(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert "completion " in said
    assert "complete " not in said


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `vapo` is this package's."""
    script = tmp_path / "bin" / "vapo"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m vapo "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:/usr/bin:/bin"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("vapo train --pre", ["--preset"]),
        ("vapo train --set model.dtype = bf", ["bfloat16", "bfloat16-weights"]),
        ("vapo resume ru", []),
    ],
)
def test_bash_completes_with_its_function(typed: str, completed: list[str], path: str, monkeypatch):
    monkeypatch.setenv("PATH", path)
    code = f"""
        {SCRIPTS[Shell.BASH]}
        COMP_WORDS=({typed}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        compopt() {{ :; }}
        _vapo; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


@pytest.mark.parametrize("shell", [Shell.ZSH, Shell.FISH])
def test_other_shells_can_read_their_script(shell: Shell, tmp_path: Path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(SCRIPTS[shell])
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
