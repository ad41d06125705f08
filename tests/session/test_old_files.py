"""Files that earlier versions wrote are read as what ran then."""

from __future__ import annotations

from typing import Any

import pytest
from configured import of, reread

from vapo.algo.method import DualClip, Fixed
from vapo.algo.sizes import sizes_of
from vapo.errors import ConfigError
from vapo.session.config import resolve
from vapo.session.layers import file_layer, set_layer
from vapo.session.old_files import todays
from vapo.trainer.snapshot import changes


def old_file(**algorithm: Any) -> dict[str, Any]:
    """A config.yaml as 0.1 wrote it: the method spelled out beside the sizes it came from."""
    return {
        "seed": 3,
        "algorithm": {
            "preset": "vapo",
            "without": ["clip-higher"],
            "sampling": {"prompts": 8, "per_prompt": 4, "refill_rounds": 0},
            "credit": {
                "policy_lambda": {"alpha": 0.5, "rule": "length_adaptive"},
                "critic_lambda": {"value": 1.0, "rule": "fixed"},
                "gamma": 1.0, "pretraining_steps": 5, "critic_updates": 2, "value_clip": None,
                "critic_reduction": "token", "whiten": False, "kind": "gae",
            },
            "clip": {"low": 0.2, "high": 0.2, "dual": None},
            "reduction": "token",
            "positive_lm": 0.1,
            "reward": {"right": 1.0, "wrong": 0.0, "overlong_cache": 0.0},
            "kl": {"coef": 0.0, "estimator": "k3", "refresh_every": 0},
            "truncated": "zero",
            "optimization": {"minibatch": 16, "actor_lr": 1e-3, "critic_lr": 2e-3, "warmup_steps": 2, "epochs": 1},
            **algorithm,
        },
        "rollout": {"engine": "torch", "temperature": 1.0, "top_p": 1.0, "max_response_tokens": None, "slots": 64},
        "trainer": {"steps": 9, "samples_per_step": 999, "actor_lr": 9.0},  # the spelled-out numbers are what ran
    }  # fmt: skip


def test_a_file_of_the_first_version_is_read_as_what_ran():
    config = resolve([file_layer("old", old_file())])
    assert (config.preset, config.without, config.changed) == ("vapo", ("clip-higher",), ("credit.critic_updates",))
    sizes = sizes_of(config.algorithm)
    assert (sizes.samples_per_step, sizes.group_size, sizes.minibatch_size, sizes.alpha) == (32, 4, 16, 0.5)
    assert (sizes.actor_lr, sizes.critic_lr, sizes.warmup_steps, sizes.pretraining_steps) == (1e-3, 2e-3, 2, 5)
    assert config.sections.rollout.engine.slots == 64
    assert config.sections.trainer.steps == 9
    assert reread(config) == config
    dual = old_file(clip={"low": 0.2, "high": 0.28, "dual": 3.0})
    assert resolve([file_layer("old", dual)]).algorithm.clip == DualClip(0.2, 0.28, 3.0)
    lam = {**old_file()["algorithm"]["credit"], "policy_lambda": {"value": 0.9, "rule": "fixed"}}
    assert resolve([file_layer("old", old_file(credit=lam))]).algorithm.credit.policy_lambda == Fixed(0.9)


def test_options_on_a_file_of_the_first_version_take_effect():
    credit = {**old_file()["algorithm"]["credit"], "critic_updates": 1}
    old = file_layer("old", old_file(credit=credit))
    assert resolve([old, set_layer("trainer.actor_lr=0.5")]).algorithm.optimization.actor_lr == 0.5
    grpo = resolve([old, set_layer("algorithm.preset=grpo"), set_layer("algorithm.without=[]")])
    assert grpo.label.startswith("grpo")
    assert grpo.algorithm.credit.kind == "group"
    with pytest.raises(ConfigError, match="critic_updates goes with kind gae"):
        resolve([file_layer("old", old_file()), set_layer("algorithm={preset: grpo, without: []}")])


def test_a_checkpoint_that_kept_k_as_a_field_of_the_method_has_the_same_settings():
    config = of("algorithm.preset=vapo2", "algorithm.k=0.4")
    before = config.effective()
    del before["algorithm"]["k"]
    before["algorithm"]["credit"]["policy_lambda"]["k"] = 0.4
    assert changes(config.effective(), todays(before)) == []
    assert changes(of("algorithm.preset=vapo2").effective(), todays(before)) == ["algorithm.k: 0.4 -> 0.135"]


def test_a_checkpoint_from_before_the_setting_scored_every_token():
    before = of().effective()
    del before["trainer"]["scoring"]
    assert changes(of().effective(), todays(before)) == ["trainer.scoring: all -> needed"]
    assert changes(of("trainer.scoring=all").effective(), todays(before)) == []
