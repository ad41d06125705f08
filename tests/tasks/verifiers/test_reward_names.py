"""The names of several reward functions, under which their metrics are logged."""

from __future__ import annotations

from functools import partial

import pytest

from vapo.tasks.verifiers.rewards import Rewards


def named(name: str):
    def reward(completions, **kwargs):
        return [0.0 for _ in completions]

    reward.__name__ = name
    return reward


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        (["format_reward", "format"], ["format_reward", "format"]),
        (["format", "format"], ["format", "format_2"]),
        (["format", "format", "format_2", "format"], ["format", "format_3", "format_2", "format_4"]),
        (["<lambda>", "<lambda>"], ["lambda", "lambda_2"]),
    ],
)
def test_only_equal_names_get_a_number_and_it_is_free(functions: list[str], names: list[str]):
    assert Rewards([named(name) for name in functions]).names == names


def test_a_partial_has_the_name_of_its_function():
    assert Rewards([partial(named("short"), limit=3)]).names == ["short"]
