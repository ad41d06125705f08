"""The methods as data: the papers' numbers, and the algebra of taking techniques away."""

from dataclasses import fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from vapo.algo.method import Algorithm, Clip, DualClip, Fixed, Gae, GroupBaseline, LengthAdaptive, Relative, Sampling
from vapo.algo.methods_page import SOURCES, page
from vapo.algo.presets import DAPO, GRPO, PPO, PRESETS, TECHNIQUES, VAPO, VC_PPO, without, without_all
from vapo.algo.sizes import Sizes, scaled, with_batch
from vapo.errors import ConfigError


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Every number of a method under its dotted name."""
    if not is_dataclass(node):
        return {path: node}
    found = {f"{path}:": type(node)}
    for f in fields(node):
        found |= leaves(getattr(node, f.name), f"{path}.{f.name}" if path else f.name)
    return found


def differences(one: Algorithm, other: Algorithm) -> set[str]:
    a, b = leaves(one), leaves(other)
    return {path for path in a.keys() | b.keys() if a.get(path) != b.get(path)}


def critic_of(algorithm: Algorithm) -> Gae:
    assert isinstance(algorithm.credit, Gae)
    return algorithm.credit


def test_vapo_without_all_its_techniques_is_ppo():
    assert reduce(without, TECHNIQUES, VAPO) == PPO
    assert without_all(VAPO, list(TECHNIQUES)) == PPO


def test_removing_techniques_gives_the_same_method_in_any_order():
    assert reduce(without, reversed(TECHNIQUES), VAPO) == PPO


def test_there_are_seven_techniques_with_their_public_names():
    assert list(TECHNIQUES) == [
        "value-pretraining",
        "decoupled-gae",
        "length-adaptive-gae",
        "token-level-loss",
        "clip-higher",
        "positive-lm",
        "group-sampling",
    ]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_removing_a_technique_changes_its_field_only(technique):
    changed = differences(VAPO, without(VAPO, technique))
    field = TECHNIQUES[technique]
    assert changed
    assert all(path == field or path.startswith((f"{field}.", f"{field}:")) for path in changed)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_removing_a_technique_twice_equals_removing_it_once(technique):
    once = without(VAPO, technique)
    assert without(once, technique) == once
    assert without(PPO, technique) == PPO


def test_vapo_has_the_numbers_of_its_paper():
    # VAPO §5.1
    credit = critic_of(VAPO)
    assert (VAPO.sampling.prompts, VAPO.sampling.per_prompt) == (512, 16)
    assert (credit.policy_lambda, credit.critic_lambda) == (LengthAdaptive(alpha=0.05), Fixed(1.0))
    assert (credit.gamma, credit.pretraining_steps) == (1.0, 50)
    assert VAPO.clip == Clip(low=0.2, high=0.28)
    assert (VAPO.reduction, VAPO.positive_lm) == ("token", 0.1)
    optimization = VAPO.optimization
    assert (optimization.actor_lr, optimization.critic_lr, optimization.minibatch) == (1e-6, 2e-6, 512)


def test_ppo_has_the_numbers_of_vapos_baseline():
    # VAPO §5.1; 8192 / 512 = 16 updates per rollout
    credit = critic_of(PPO)
    assert (PPO.sampling.prompts, PPO.sampling.per_prompt) == (8192, 1)
    assert (credit.policy_lambda, credit.critic_lambda) == (Fixed(0.95), Fixed(0.95))
    assert (credit.gamma, credit.pretraining_steps) == (1.0, 0)
    assert (PPO.clip.low, PPO.clip.high, PPO.reduction, PPO.positive_lm) == (0.2, 0.2, "sequence", 0.0)
    assert PPO.sampling.samples // PPO.optimization.minibatch == 16
    assert PPO.sampling.samples == VAPO.sampling.samples


def test_options_that_vapo_does_not_mention_are_off():
    for preset in (PPO, VC_PPO, VAPO):
        credit = critic_of(preset)
        assert not credit.whiten
        assert credit.value_clip is None
        assert preset.kl.coef == 0
        assert preset.reward.overlong_cache == 0
        assert preset.sampling.refill_rounds == 0
        assert preset.optimization.epochs == 1


def test_vc_ppo_is_ppo_with_decoupled_gae_and_value_pretraining():
    credit = critic_of(VC_PPO)
    assert (credit.policy_lambda, credit.critic_lambda, credit.pretraining_steps) == (
        Fixed(0.95),
        Fixed(1.0),
        100,
    )
    plain = without_all(VC_PPO, ["decoupled-gae", "value-pretraining"])
    assert (VC_PPO.reward.right, VC_PPO.reward.wrong) == (1.0, -1.0)  # by a rule, [VCPPO-n1]
    assert replace(plain, reward=PPO.reward) == PPO


def test_dapo_has_the_numbers_of_its_paper():
    # DAPO §4.1, eq. 7, 9, 13
    assert DAPO.credit == GroupBaseline(std="population")
    assert (DAPO.sampling.prompts, DAPO.sampling.per_prompt) == (512, 16)
    assert DAPO.sampling.refill_rounds > 0
    assert (DAPO.clip.low, DAPO.clip.high, DAPO.reduction, DAPO.kl.coef) == (0.2, 0.28, "token", 0.0)
    assert (DAPO.reward.right, DAPO.reward.wrong) == (1.0, -1.0)
    assert round(DAPO.reward.overlong_cache * 20480) == 4096
    assert (DAPO.optimization.actor_lr, DAPO.optimization.minibatch) == (1e-6, 512)
    assert DAPO.optimization.warmup_steps == 20


def test_grpo_has_the_numbers_of_r1_zero():
    assert GRPO.credit == GroupBaseline(std="population")
    assert (GRPO.sampling.samples, GRPO.sampling.per_prompt) == (8192, 16)
    assert (GRPO.kl.coef, GRPO.kl.estimator, GRPO.kl.refresh_every) == (0.001, "k3", 400)
    assert (GRPO.reduction, GRPO.optimization.actor_lr) == ("sequence", 3e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_the_kl_penalty_is_one_field(name):
    # pitfall 12: counted in the reward and in the loss
    assert [path for path in leaves(PRESETS[name]) if path.endswith(".coef")] == ["kl.coef"]


# --------------------------------------------------------------------------- refusals


def test_an_unknown_technique_raises_an_error_with_the_known_names():
    with pytest.raises(ConfigError, match=r"dual-clip.*value-pretraining.*group-sampling"):
        without(VAPO, "dual-clip")


@pytest.mark.parametrize("technique", ["value-pretraining", "decoupled-gae", "length-adaptive-gae"])
@pytest.mark.parametrize("preset", [GRPO, DAPO])
def test_removing_a_critic_technique_from_a_group_method_raises(preset, technique):
    with pytest.raises(ConfigError, match="critic"):
        without(preset, technique)


@pytest.mark.parametrize("preset", [GRPO, DAPO])
def test_removing_group_sampling_from_a_group_method_raises(preset):
    with pytest.raises(ConfigError, match="group"):
        without(preset, "group-sampling")


def test_other_techniques_can_be_removed_from_group_methods():
    assert without(DAPO, "clip-higher").clip == PPO.clip
    assert without(DAPO, "token-level-loss").reduction == "sequence"


@pytest.mark.parametrize(
    ("impossible", "advice"),
    [
        (lambda: Fixed(1.5), r"\[0, 1\]"),
        (lambda: LengthAdaptive(0.0), "above 0"),
        (lambda: Relative(0.0), r"\(0, 1\]"),
        (lambda: Clip(low=1.2, high=0.2), "low"),
        (lambda: DualClip(low=0.2, high=0.2, c=1.0), "clip.c"),
        (lambda: Sampling(prompts=4, per_prompt=1, refill_rounds=3), "at least 2"),
        (lambda: replace(GRPO, sampling=Sampling(prompts=8192, per_prompt=1)), "with a critic"),
        (lambda: replace(GRPO, truncated="bootstrap"), "critic"),
        (lambda: replace(VAPO, sampling=Sampling(prompts=100, per_prompt=3)), "divide"),
    ],
)
def test_impossible_methods_raise(impossible, advice):
    with pytest.raises(ConfigError, match=advice):
        impossible()


# --------------------------------------------------------------------------- other sizes


def test_scaling_changes_sizes_only():
    small = scaled(
        VAPO,
        Sizes(samples_per_step=256, group_size=8, alpha=0.4, pretraining_steps=10, minibatch_size=64, actor_lr=1e-4),
    )
    assert (small.sampling.prompts, small.sampling.per_prompt) == (32, 8)
    assert critic_of(small).policy_lambda == LengthAdaptive(0.4)
    assert critic_of(small).pretraining_steps == 10
    assert (small.optimization.minibatch, small.optimization.actor_lr) == (64, 1e-4)
    assert (small.clip, small.reduction, small.positive_lm) == (VAPO.clip, VAPO.reduction, VAPO.positive_lm)
    assert small.optimization.critic_lr == VAPO.optimization.critic_lr


def test_scaling_ignores_sizes_that_a_method_does_not_use():
    small = scaled(PPO, Sizes(samples_per_step=256, group_size=8, alpha=0.4, pretraining_steps=10, minibatch_size=64))
    assert (small.sampling.prompts, small.sampling.per_prompt) == (256, 1)
    assert critic_of(small).policy_lambda == Fixed(0.95)
    assert critic_of(small).pretraining_steps == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_scales_and_none_keeps_the_papers_numbers(name):
    assert scaled(PRESETS[name], Sizes()) == PRESETS[name]
    small = scaled(PRESETS[name], Sizes(samples_per_step=64, group_size=4, minibatch_size=32))
    assert small.sampling.samples == 64
    assert small.sampling.refill_rounds == PRESETS[name].sampling.refill_rounds


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_removed_technique_stays_removed_after_scaling(technique):
    sizes = Sizes(samples_per_step=64, group_size=4, alpha=0.4, pretraining_steps=10, minibatch_size=32)
    small, ppo = scaled(without(VAPO, technique), sizes), scaled(PPO, sizes)
    field = TECHNIQUES[technique]
    for path, value in leaves(small).items():
        if path == field or path.startswith((f"{field}.", f"{field}:")):
            assert value == leaves(ppo)[path]


def test_scaling_raises_if_the_group_size_does_not_divide_the_samples():
    with pytest.raises(ConfigError, match="must divide"):
        scaled(VAPO, Sizes(samples_per_step=100, group_size=16))
    with pytest.raises(ConfigError, match="must divide"):
        scaled(VAPO, Sizes(group_size=0))


@pytest.mark.parametrize(
    ("chosen", "samples", "group", "minibatch"),
    [
        ({}, 128, 8, 32),
        ({"samples_per_step": 1000}, 1000, 8, 40),
        ({"samples_per_step": 100}, 100, 10, 25),
        ({"samples_per_step": 4}, 4, 4, 4),
        ({"group_size": 10}, 130, 10, 26),
        ({"group_size": 3}, 129, 3, 43),
        ({"minibatch_size": 25}, 125, 5, 25),
        ({"minibatch_size": 43}, 172, 4, 43),
        ({"minibatch_size": 67}, 268, 4, 67),
    ],
)
def test_sizes_that_are_not_set_stay_near_the_defaults(chosen, samples, group, minibatch):
    # the greatest common divisor with the default would be 8, 4, 2 or 1: up to 129 gradient steps a rollout
    filled = with_batch(Sizes(**chosen))
    assert (filled.samples_per_step, filled.group_size, filled.minibatch_size) == (samples, group, minibatch)
    scaled(VAPO, filled)


def test_sizes_without_a_divisor_near_the_defaults_are_refused():
    with pytest.raises(ConfigError, match="must divide"):
        scaled(VAPO, with_batch(Sizes(samples_per_step=127)))


def test_scaling_raises_if_the_minibatch_does_not_divide_the_samples():
    with pytest.raises(ConfigError, match="minibatch"):
        scaled(VAPO, Sizes(samples_per_step=64, group_size=4, minibatch_size=48))


def test_scaling_a_group_method_to_single_responses_raises():
    with pytest.raises(ConfigError, match="at least 2"):
        scaled(GRPO, Sizes(group_size=1))


def test_the_page_of_methods_is_printed_from_the_presets():
    printed = Path(__file__).parents[2] / "docs" / "methods.md"
    assert printed.read_text(encoding="utf-8") == page(), "Print it again: python -m vapo.algo.methods_page"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source(name):
    assert SOURCES[name]
