"""The list of settings: units, ranges, and the options of the shipped tasks, each as the task itself takes it."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import yaml

from vapo import cli
from vapo.errors import ConfigError, DataError
from vapo.session.reference import Setting, all_settings, task_options
from vapo.tasks.catalog import DATA_TASKS, check_named
from vapo.tasks.registry import BUILTIN

PURE_NUMBERS = {
    "seed",
    "algorithm.credit.policy_lambda.value",
    "algorithm.credit.policy_lambda.q",
    "algorithm.credit.critic_lambda.value",
    "algorithm.credit.critic_lambda.q",
    "algorithm.credit.gamma",
    "algorithm.clip.low",
    "algorithm.clip.high",
    "algorithm.credit.head.start",
    "algorithm.clip.c",
    "algorithm.sampler.cap",
    "algorithm.sampler.low",
    "algorithm.sampler.high",
    "algorithm.positive_lm",
    "algorithm.kl.coef",
    "model.policy_lora",
    "model.critic_lora",
    "model.lora_alpha",
    "rollout.temperature",
    "trainer.weight_decay",
    "trainer.max_grad_norm",
    "trainer.pretraining_ready",
    "evaluation.temperature",
    "guards.explained_variance_below",
    "guards.stuck_factor",
    "task.layout",
    "task.limit",
    "task.rules",
    "task.right_at",
    "task.seed",
}
"""Seeds, weights, ratios: numbers that count and measure nothing."""

TASKS = {**{name: {} for name in BUILTIN}, "math": {"data": "openai/gsm8k"}, "reasoning-gym/chain_sum": {}}
"""A task of each kind, with what it needs to be made."""


def options_of(task: str) -> list[Setting]:
    named = {"reasoning-gym/chain_sum": "reasoning-gym/NAME"}.get(task, task)
    return [option for option in task_options() if named in option.task.split(", ")]


def test_every_number_has_a_unit_or_is_a_pure_number():
    numbers = [s for s in [*all_settings().values(), *task_options()] if re.search(r"\b(int|float)\b", s.type)]
    assert {s.key for s in numbers if not s.unit} == PURE_NUMBERS
    assert [s.key for s in all_settings().values() if s.unit and s not in numbers] == []


@pytest.mark.parametrize("task", TASKS)
def test_the_listed_options_of_a_task_are_those_it_takes(task: str):
    with pytest.raises(ConfigError, match=r"There are: ([\w, ]+)\.") as caught:
        check_named(task, {"nosuch": 1})
    found = re.search(r"There are: ([\w, ]+)\.", str(caught.value))
    assert found is not None
    assert [option.key for option in options_of(task)] == [f"task.{name}" for name in found[1].split(", ")]
    assert all(option.meaning for option in options_of(task))


@pytest.mark.parametrize("task", TASKS)
def test_the_listed_default_of_an_option_is_a_value_that_the_task_takes(task: str):
    defaults = {option.key.removeprefix("task."): yaml.safe_load(option.default) for option in options_of(task)}
    check_named(task, {**defaults, **TASKS[task]})


@pytest.mark.parametrize("task", TASKS)
def test_a_value_below_the_listed_range_of_an_option_is_refused(task: str):
    bounded = [option for option in options_of(task) if option.range]
    assert bounded
    for option in bounded:
        low = re.search(r"-?[\d.]+", option.range)
        assert low is not None
        below: Any = yaml.safe_load(low[0]) - 1
        with pytest.raises(ConfigError, match=rf"{option.key} must be .*got {below}"):
            check_named(task, {**TASKS[task], option.key.removeprefix("task."): below})


def test_an_entry_of_another_type_is_explained_by_what_may_stand_there():
    with pytest.raises(ConfigError, match=r"task.columns takes {prompt: ...} with text or a list, \[a, b\], got"):
        check_named("math", {**TASKS["math"], "columns": {"prompt": 3, "answer": "x"}})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", [[1], {"a": 1}, "some words", 1.5])
def test_an_option_of_another_type_is_explained_in_our_own_words(task: str, value: Any):
    for option in options_of(task):
        said = ""
        try:
            check_named(task, {**TASKS[task], option.key.removeprefix("task."): value})
        except (ConfigError, DataError) as error:
            said = str(error)
        assert re.search(rf"^{option.key}[: ]|these task options|^There is no file|^$", said), said
        assert not re.search("Input should|valid (?:integer|number|string|dict)", said)


def test_every_data_task_is_named_with_the_options():
    assert {name for option in task_options() for name in option.task.split(", ")} >= {*DATA_TASKS, *BUILTIN}


def test_a_name_of_another_trainer_lists_all_that_have_the_word(monkeypatch: pytest.MonkeyPatch, capsys):
    def listed(word: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["vapo", "settings", word, "--json"])
        cli.main()
        return [entry["key"] for entry in json.loads(capsys.readouterr().out)]

    assert listed("lr") == ["trainer.actor_lr", "trainer.pretraining_lr", "trainer.critic_lr"]
    assert listed("num_generations") == ["trainer.group_size"]


def test_the_command_shows_units_and_options_of_tasks(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vapo", "settings", "verifier_timeout", "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert [(entry["task"], entry["unit"]) for entry in found] == [
        (", ".join(DATA_TASKS), "seconds"),
        ("reasoning-gym/NAME", "seconds"),
    ]
    monkeypatch.setattr(sys, "argv", ["vapo", "settings", "stuck_floor"])
    cli.main()
    assert "float above 0 (seconds); default 300" in capsys.readouterr().out
