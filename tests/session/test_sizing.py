"""Sizes that nobody chose follow from the model and the task; a recipe's are for its own."""

from __future__ import annotations

import pytest

from vapo.algo.sizes import sizes_of
from vapo.errors import ConfigError
from vapo.session.config import Config, resolve
from vapo.session.layers import Source, file_layer, recipe_layer, set_layer
from vapo.session.sizing import Fit, fitted, rate_warnings, usual_rate

OWN = Fit(task="maze", parameters=110_000, max_response_tokens=180, recipe_parameters=110_000)
HALF_BILLION = Fit(task="gsm8k", parameters=494_000_000, max_response_tokens=1000, recipe_parameters=110_000)


def maze(*assignments: str) -> Config:
    return resolve([recipe_layer("maze"), *map(set_layer, assignments)])


def test_a_recipes_sizes_stay_for_its_own_task_and_model_and_models_of_about_its_size():
    for parameters in (110_000, 300_000):
        config, notes = fitted(maze(), Fit("maze", parameters, 180, 110_000))
        assert config == maze()
        assert notes == []


@pytest.mark.parametrize(
    "fit", [HALF_BILLION, Fit("maze", 494_000_000, 180, 110_000), Fit("walk", 110_000, 180, 110_000)]
)
def test_a_recipes_sizes_are_left_out_for_another_task_or_a_model_of_another_size(fit: Fit):
    config, notes = fitted(maze(), fit)
    assert sizes_of(config.algorithm).actor_lr == usual_rate(fit.parameters)
    assert sizes_of(config.algorithm).critic_lr == 2 * usual_rate(fit.parameters)
    assert config.sections.trainer.pretraining_passes == 1
    assert config.sections.trainer.pretraining_lr is None
    assert "maze's sizes are for its own task and model" in notes[0]
    assert config.origins["trainer.actor_lr"].source is Source.DEFAULT


def test_what_was_chosen_stays_whatever_the_model():
    config, _ = fitted(maze("trainer.actor_lr=3e-5", "trainer.group_size=4"), HALF_BILLION)
    assert sizes_of(config.algorithm).actor_lr == 3e-5
    assert sizes_of(config.algorithm).group_size == 4
    assert config.origins["trainer.actor_lr"].source is Source.OPTION
    assert fitted(config, HALF_BILLION) == (config, [])  # fitted once, nothing is left to fill in


def test_a_file_without_sizes_gets_numbers_that_one_machine_can_do():
    config, notes = fitted(resolve([file_layer("f", {"algorithm": {"preset": "vapo"}})]), HALF_BILLION)
    sizes = sizes_of(config.algorithm)
    assert (sizes.samples_per_step, sizes.group_size, sizes.minibatch_size) == (128, 8, 32)
    assert (sizes.actor_lr, sizes.critic_lr, sizes.alpha) == (3e-6, 6e-6, 0.1)
    assert "494M" in notes[0]
    assert "trainer.actor_lr=3e-06" in notes[0]


def test_a_model_of_unknown_size_needs_its_rates_from_the_user():
    unknown = Fit("x", 0, 100, None)
    with pytest.raises(ConfigError, match=r"no default for trainer.actor_lr and trainer.critic_lr. Set them"):
        fitted(resolve([]), unknown)
    config, _ = fitted(resolve([set_layer("trainer.actor_lr=1e-6"), set_layer("trainer.critic_lr=1e-6")]), unknown)
    assert rate_warnings(config, 0) == []


def test_alpha_puts_lambda_at_99_percent_at_the_length_limit_and_never_below_the_papers():
    for limit, alpha in ((100, 1.0), (1000, 0.1), (20_000, 0.05)):
        config, _ = fitted(resolve([]), Fit("x", 10**9, limit, None))
        assert sizes_of(config.algorithm).alpha == pytest.approx(alpha)


def test_sizes_that_the_method_has_not_are_not_filled_in():
    config, notes = fitted(resolve([file_layer("f", {"algorithm": {"preset": "grpo"}})]), HALF_BILLION)
    trainer = config.sections.trainer
    assert (trainer.critic_lr, trainer.pretraining_steps, config.choice.alpha) == (None, None, None)
    assert "critic" not in notes[0]


def test_the_rate_falls_with_the_models_size_and_adapters_take_ten_times_as_much():
    rates = [usual_rate(n) for n in (10**5, 5 * 10**6, 2 * 10**7, 135 * 10**6, 5 * 10**8, 7 * 10**9)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (6e-4, 1e-6)
    assert usual_rate(7 * 10**9, lora=True) == pytest.approx(1e-5)


def test_a_rate_that_would_destroy_the_model_is_warned_about():
    told = rate_warnings(maze(), 135_000_000)  # 6e-4 destroyed a model of this size in four gradient steps
    assert "trainer.actor_lr=0.0006 is 60 times" in told[0]
    assert "trainer.critic_lr=0.002 is 100 times" in told[1]
    assert rate_warnings(maze(), 110_000) == []
    assert rate_warnings(maze("trainer.actor_lr=2e-5", "trainer.critic_lr=5e-5"), 135_000_000) == []
