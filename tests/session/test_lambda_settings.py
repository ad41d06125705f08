"""algorithm.alpha and algorithm.k: two rules for one λ, of which one holds."""

from __future__ import annotations

import re

import pytest
from configured import of, reread

from vapo.algo.method import LengthAdaptive, Share
from vapo.algo.sizes import sizes_of
from vapo.errors import ConfigError
from vapo.session.config import resolve
from vapo.session.layers import file_layer, recipe_layer, set_layer


@pytest.mark.parametrize("preset", ["vapo", "vapo2", "ppo", "sao"])
def test_k_makes_lambda_one_by_share_whatever_the_preset_and_the_recipe_say(preset: str):
    config = of(f"algorithm.preset={preset}", "algorithm.k=0.4")
    assert config.algorithm.credit.policy_lambda == Share(0.4)
    assert config.changed == (() if preset == "vapo2" else ("credit.policy_lambda",))
    assert config.effective()["algorithm"]["k"] == 0.4
    assert config.effective()["algorithm"]["alpha"] is None
    assert config.choice.alpha is None  # the recipe's
    assert not config.notes
    assert reread(config) == config


def test_k_of_a_preset_can_be_left_and_null_keeps_it():
    assert of("algorithm.preset=vapo2").algorithm.credit.policy_lambda == Share(0.135)
    assert of("algorithm.preset=vapo2", "algorithm.k=null").algorithm.credit.policy_lambda == Share(0.135)
    assert of("algorithm.k=null").algorithm.credit.policy_lambda == LengthAdaptive(0.5)  # the recipe's alpha
    other_rule = resolve([file_layer("f", {"algorithm": {"alpha": 1.5}}), set_layer("algorithm.alpha=null"),
                            set_layer("algorithm.k=0.4")])  # fmt: skip
    assert other_rule.algorithm.credit.policy_lambda == Share(0.4)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["algorithm.alpha=1.5"], "algorithm.alpha=1.5 and algorithm.k=0.4 are two rules for one lambda. Set one"),
        (
            ["algorithm.credit.policy_lambda={kind: fixed, value: 0.9}"],
            "algorithm.k=0.4 makes lambda one by share, and",
        ),
        (["algorithm.without=[length-adaptive-gae]"], "--without length-adaptive-gae takes away"),
        (["algorithm.preset=vapo2", "algorithm.without=[share-lambda]"], "--without share-lambda takes away"),
    ],
)
def test_k_beside_another_rule_is_refused_in_one_line(assignments: list[str], words: str):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        of("algorithm.k=0.4", *assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "alpha"),
    [
        ({"preset": "vapo"}, 0.5),  # the recipe's, for its length
        ({"preset": "sao"}, 1.5),  # its own holds at every length
        ({"preset": "bpco"}, 0.4),
        ({"preset": "sao", "alpha": 0.7}, 0.7),
        ({"preset": "vapo2", "without": ["share-lambda"]}, 0.5),
        ({"preset": "vapo2"}, None),
    ],
)
def test_a_recipes_alpha_is_for_methods_whose_own_belongs_to_long_responses(options, alpha):
    config = resolve([recipe_layer("maze"), file_layer("f.yaml", {"algorithm": options})])
    assert sizes_of(config.algorithm).alpha == alpha
