"""`vapo recipes`, `vapo settings` and `vapo tasks`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from vapo.cli.options import DebugOption, JsonOption, print_names
from vapo.errors import ConfigError, counted
from vapo.json_text import json_text


def recipes(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """The shipped recipes: one configuration for each result."""
    from vapo.session.layers import recipes as shipped

    entries = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in shipped().items()}
    print_names(entries, as_json, "recipe", "vapo train RECIPE")


def settings(
    word: Annotated[str | None, typer.Argument(metavar="[WORD]", help="Only settings with this word.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Every setting of a run, the options of the shipped tasks included: type, range, unit, default, meaning."""
    from vapo.session.reference import all_settings, task_options
    from vapo.session.suggest import SYNONYMS

    every = [*all_settings().values(), *task_options()]
    if word in SYNONYMS:  # a name of TRL, verl or OpenRLHF
        meant = SYNONYMS[word]
        found = [setting for setting in every if setting.matches(meant)]
        found += [setting for setting in every if setting.is_named(word) and setting not in found]
    else:
        found = [setting for setting in every if word is None or setting.matches(word)]
    if as_json:
        print(json_text([dataclasses.asdict(setting) for setting in found]))
        return
    if not found:
        raise ConfigError(f"No setting has {word!r} in its name or meaning. `vapo settings` lists all of them.")
    console = Console()
    for setting in found:
        takes = " ".join(filter(None, (setting.type, setting.range, f"({setting.unit})" if setting.unit else "")))
        console.print(f"[bold]{setting.key}[/bold]  {escape(takes)}; default {escape(setting.default)}", soft_wrap=True)
        console.print(Padding(escape(setting.words), (0, 0, 0, 4)))
    console.print("\nSet one with: vapo train --set KEY=VALUE", soft_wrap=True)


def tasks(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """The tasks to train on, with an example of each."""
    from vapo.tasks.catalog import DATA_TASKS, installed
    from vapo.tasks.gym import dataset_names
    from vapo.tasks.registry import BUILTIN, make_task

    console = Console()
    found: list[dict[str, Any]] = []
    for name in BUILTIN:
        task = make_task(name)
        prompt, response = task.example()
        found.append(
            {"task": name, "about": task.description, "train": len(task.train), "heldout": len(task.heldout),
             "prompt": prompt.text, "right response": response}
        )  # fmt: skip
    data = [{"task": name, "about": about} for name, (about, _) in DATA_TASKS.items()]
    plugins = [{"task": name, "about": f"installed, from {where}"} for name, where in installed().items()]
    gyms = dataset_names()
    if as_json:
        print(json_text([*found, *data, *plugins, *({"task": name} for name in gyms)]))
        return
    for entry in found:
        console.print(f"[bold]{entry['task']}[/bold]  {escape(entry['about'])}")
        console.print(f"  {counted(entry['train'], 'training prompt')}, {entry['heldout']:,} held out")
        console.print(f"  prompt    [cyan]{escape(str(entry['prompt']))}[/cyan]")
        turns = entry["right response"].splitlines()  # of a game of several turns, a line each
        console.print(f"  response  {escape(' / '.join(turns))}\n")
    for entry in [*data, *plugins]:
        console.print(f"[bold]{entry['task']}[/bold]  {escape(entry['about'])}")
    if gyms:
        console.print(f"\n[bold]{len(gyms)} of reasoning-gym[/bold]  {escape(', '.join(gyms))}")
    else:
        console.print("\n[bold]reasoning-gym/...[/bold]  a hundred more, once installed: pip install reasoning-gym")
    console.print("\nTrain on one with: vapo train --set task.name=NAME --set model.policy=MODEL", soft_wrap=True)
