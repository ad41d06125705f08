"""What the pages show can be done: commands parse, settings exist, settings files resolve, Python runs."""

from __future__ import annotations

import ast
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main

import vapo.cli
from command_line import vapo as run_vapo
from doc_blocks import PAGES, ROOT, Block, blocks, commands
from vapo.session.config import resolve
from vapo.session.layers import source_layers
from vapo.session.reference import all_settings, task_options
from vapo.session.suggest import SYNONYMS

RUN = ("index", "first-run", "rewards", "lora", "base-models", "chat-models", "gguf", "coming-from-verl",
       "coming-from-openrlhf", "faq", "api")  # fmt: skip
"""Pages whose Python runs here, and their commands where they need no run, file or download."""

ELSEWHERE = re.compile(r"Qwen/|runs/|\.(yaml|jsonl|parquet|gguf)\b")
RUNNING = [page for page in PAGES if page.stem in RUN]
COMING = [page for page in PAGES if page.stem.startswith("coming-from-")]
SETTINGS = {*all_settings(), *(option.key for option in task_options())}
NO_SETTINGS = {
    "algorithm.credit.pretraining_steps",
    "trainer.state.global_step",
    "task.arguments",
    "algorithm.adv_estimator",
}
"""A method's field, whose setting is trainer.pretraining_steps; what a trainer's callbacks read; an option of the tasks
that the verifiers library brings, which no list of shipped tasks has; verl's setting."""

OWN_MEANING = {
    "coming-from-verl": ("critic.optim.lr", "critic.ppo_epochs"),
    "coming-from-openrlhf": ("train_batch_size",),  # of a gradient step; verl's is of a rollout step
}
"""Names that mean something else where they stand than their last part alone."""

SECTION = "algorithm|model|task|rollout|trainer|evaluation|guards|checkpoint|scale"


def known(key: str) -> bool:
    """Whether there is such a setting, or a group of settings, or a part of a value of this kind."""
    return any(name == key or name.startswith(f"{key}.") for name in SETTINGS)


def line(arguments: list[str]) -> str:
    return " ".join(["vapo", *arguments])


def here() -> list[Any]:
    """Each command that runs here in seconds; a plan takes some more."""
    found = {line(args): args for page in RUNNING for args in commands(page) if not ELSEWHERE.search(line(args))}
    marks = {"plan": pytest.mark.slow}
    return [
        pytest.param(args, id=name, marks=marks.get(args[0], ()))
        for name, args in found.items()
        if args[0] in ("train", "plan", "tasks", "recipes", "settings")
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one_that_the_parser_takes(page: Path):
    app: Any = typer.main.get_command(vapo.cli.app)
    for arguments in commands(page):
        app.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        pairs = pairwise(arguments)
        keys = [value.split("=")[0] for option, value in pairs if option == "--set" and "=" in value]
        assert [key for key in keys if not known(key)] == [], line(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    if page in COMING:  # the first column has another trainer's names
        text = re.sub(r"^\| .*? \| ", "", text, flags=re.M)
    names = re.findall(rf"`((?:{SECTION})\.[a-z_.]+[a-z_])(?=[`=:])", text)
    assert [name for name in names if not known(name) and name not in NO_SETTINGS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_is_python(page: Path):
    for block in blocks(page, "python"):
        ast.parse(block.text)


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block.text, f"{page.name}", "exec"), names)


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=f"{page.stem}-{block.file}") for page in PAGES for block in blocks(page, "yaml")
     if block.file],
)  # fmt: skip
def test_a_settings_file_of_a_page_resolves(page: Path, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for shown in blocks(page, "python"):
        if shown.file:
            Path(shown.file).write_text(shown.text, encoding="utf-8")
    Path(block.file or "").write_text(block.text, encoding="utf-8")
    resolve(source_layers(block.file))


@pytest.mark.parametrize("arguments", here())
def test_a_command_of_a_page_runs(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    dry = ["--dry-run"] if arguments[0] == "train" and "--dry-run" not in arguments else []
    assert run_vapo(monkeypatch, *arguments, *dry) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_plan_of_the_page_on_adapters_is_what_it_says(monkeypatch: pytest.MonkeyPatch, capsys):
    page = ROOT / "docs" / "lora.md"
    plan = next(args for args in commands(page) if args[0] == "plan" and not ELSEWHERE.search(line(args)))
    assert run_vapo(monkeypatch, *plan) == 0
    used, there = re.findall(r"It fits: (\d+)\.\d of (\d+)\.\d GB", capsys.readouterr().out)[0]
    assert f"{used} of {there} GB" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", COMING, ids=lambda page: page.stem)
def test_a_foreign_name_leads_to_the_same_setting_as_the_messages_say(page: Path):
    rows = re.findall(r"^\| (`.*?`) .*?\| (.*) \|$", page.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 30
    for theirs, ours in rows:
        key = theirs.split("`")[1]
        name = key.rsplit(".")[-1]
        if name in SYNONYMS and key not in OWN_MEANING[page.stem]:
            assert SYNONYMS[name].split(" ")[0] in ours, name
