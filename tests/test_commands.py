"""Commands in messages can be copied into a shell, whatever the paths in them are."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import vapo
from vapo import cli
from vapo.cli.training import train_command
from vapo.durability import watchdog
from vapo.errors import ConfigError, StoppedError, command
from vapo.session.run_dirs import check_folder
from vapo.trainer import snapshot

ODD = "my runs/it's $HOME; rm"


def copied(text: str) -> list[str]:
    """The words of the command a message ends with, as a shell takes them."""
    return shlex.split(text[text.rindex("vapo resume") :])


def test_a_quoted_command_splits_into_its_arguments():
    assert shlex.split(command("resume", Path(ODD), "--set", "trainer.steps=3")) == [
        *("vapo", "resume", ODD),
        *("--set", "trainer.steps=3"),
    ]


def test_behind_dev_a_command_begins_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAPO_COMMAND", "./dev")
    assert command("resume", "my runs/one") == "./dev resume 'my runs/one'"


def test_the_error_for_an_existing_folder_has_a_working_command(tmp_path: Path):
    run = tmp_path / ODD
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(ConfigError) as error:
        check_folder(run)
    assert copied(str(error.value)) == ["vapo", "resume", str(run)]


def test_a_new_base_is_trained_by_the_recipe_of_its_task():
    assert train_command("codebreaker", ["pegs=3"], Path("b")) == (
        "vapo train codebreaker --set task.pegs=3 --set model.policy=b"
    )


def test_a_stopped_run_prints_a_working_resume_command():
    run = SimpleNamespace(failed_saves=0, folder=SimpleNamespace(path=Path(ODD)))
    with pytest.raises(StoppedError) as error:
        snapshot.raise_stopped(run)  # type: ignore[arg-type]
    assert copied(str(error.value)) == ["vapo", "resume", ODD]


def test_the_watchdog_logs_a_working_resume_command(tmp_path: Path, capsys, monkeypatch):
    run = tmp_path / "a run"
    run.mkdir()
    monkeypatch.setattr(watchdog.os, "kill", lambda *_: None)
    watchdog._report(1, str(run / "watchdog.log"), "stacks.txt", "sampling", 9.0, None)
    assert copied(capsys.readouterr().err.strip()) == ["vapo", "resume", str(run)]


def test_messages_build_commands_with_one_function():
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(vapo.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\bvapo (?:train|resume|eval|report|compare|ablate|make-base|chaos)\b[^\"'`]*\{(?!shlex)", line)
    ]
    assert found == []


def test_every_command_that_reports_something_takes_json():
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    without = [name for name, command in commands.items() if not any("--json" in p.opts for p in command.params)]
    assert without == ["completion", "complete"]  # these print what a shell reads


def test_an_output_without_greek_letters_gets_question_marks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["vapo", "settings", "alpha"])
    output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", output)
    cli.main()
    output.flush()
    said = output.buffer.getvalue().decode("latin-1")
    assert "algorithm.alpha" in said
    assert "?" in said
