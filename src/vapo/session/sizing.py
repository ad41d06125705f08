"""Defaults for sizes that were not chosen, by model size and task length, and a warning for absurd rates.

A recipe's sizes were tuned for its own task and model. For another task, or a model of another size, they are left
out, and what was not chosen otherwise takes a default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from vapo.algo.sizes import NAMES, Sizes, with_batch
from vapo.errors import ConfigError
from vapo.json_text import dotted, flatten, leaves
from vapo.session.config import Config, alpha_follows_length, resolve
from vapo.session.layers import Layer, Source, nested, recipe_layer
from vapo.session.schema import ModelConfig

RATES = ((1e6, 6e-4), (1e7, 3e-4), (5e7, 1e-4), (2.5e8, 1e-5), (1e9, 3e-6))
"""(parameters below which, policy learning rate of full weights); larger models take the paper's 1e-6."""
PAPER_RATE = 1e-6
LORA_FACTOR = 10.0
"""Adapters take about ten times the rate of full weights ("LoRA Without Regret", Thinking Machines 2025)."""
CRITIC_FACTOR = 2.0
"""The critic's rate over the policy's (VAPO §5.1: 2e-6 and 1e-6)."""
ABSURD = 30.0
"""A rate so many times the default for the model's size is warned about."""
SAME_SIZE = 4.0
"""A recipe's sizes serve models of up to so many times more or fewer parameters than its own."""
ROUNDS = {"warmup_steps": 5, "pretraining_steps": 8}
"""Rollout steps of warm-up and of value pretraining; the paper's are not stated, and 50."""
OUTCOME_REACH = 100.0
"""α = this / (length limit in tokens) makes λ 0.99 at the limit; never below the paper's 0.05."""
PAPER_ALPHA = 0.05
BY_SIZE = "default for the model's size"


@dataclass(frozen=True)
class Fit:
    """What a method has to be fitted to."""

    task: str
    parameters: int
    """Of the policy; 0 where it is not known."""
    max_response_tokens: int
    recipe_parameters: int | None
    """Of the base model that the recipe was tuned for; None where no recipe is used."""


def usual_rate(parameters: int, lora: bool = False) -> float:
    """The default policy learning rate for a model of so many parameters."""
    rate = next((rate for below, rate in RATES if parameters < below), PAPER_RATE)
    return rate * (LORA_FACTOR if lora else 1.0)


def usual_critic_rate(parameters: int, model: ModelConfig) -> float:
    """The default critic learning rate beside a policy of so many parameters; a side critic takes that of its size."""
    if model.critic_kind == "side":
        parameters = int(parameters * model.side_share)
    return CRITIC_FACTOR * usual_rate(parameters, model.critic_lora > 0)


def fitted(config: Config, fit: Fit) -> tuple[Config, list[str]]:
    """The configuration with every size that nobody chose for this task and model filled in, and notes on it.

    Never changes a size that a file or an option gave. Raises ConfigError where a rate is needed and the model's size
    is not known.
    """
    notes = []
    foreign = _recipe_is_foreign(config, fit)
    chosen = config.as_dict()
    now = dict(flatten(chosen))
    unchosen = {}
    for key, value in _defaults(config, fit).items():
        from_recipe = config.origins[key].source is Source.RECIPE
        if _unchosen(config, key, fit) and (now[key] != value or from_recipe):
            unchosen[key] = value
    for key in ("trainer.pretraining_lr", "trainer.pretraining_passes"):
        if foreign and config.origins[key].source is Source.RECIPE:
            name = key.partition(".")[2]
            default = {f.name: f.default for f in dataclasses.fields(config.sections.trainer)}[name]
            unchosen[key] = default
    if not unchosen:
        return config, notes
    if fit.parameters == 0 and (rates := [key for key in unchosen if key.endswith("_lr") and unchosen[key]]):
        raise ConfigError(
            "The model's size cannot be read from its configuration, so there is no default for "
            f"{' and '.join(rates)}. Set them: about 1e-6 for billions of parameters, 1e-5 for a hundred million."
        )
    if foreign:
        notes.append(
            f"{config.recipe}'s sizes are for its own task and model, and are left out for {fit.task} with "
            f"{_count(fit.parameters)} parameters"
        )
    defaults = ", ".join(f"{key}={value:g}" for key, value in unchosen.items() if value is not None)
    notes.append(f"sizes for a model of {_count(fit.parameters)} parameters: {defaults} (set them to choose others)")
    layers = [Layer(Source.DEFAULT, "default", chosen)]
    layers += [
        Layer((origin := config.origins[key]).source, origin.place, nested(path, value))
        for path, value in leaves(chosen)
        if (key := dotted(path)) not in unchosen
    ]
    layers += [Layer(Source.DEFAULT, BY_SIZE, nested(key.split("."), value)) for key, value in unchosen.items()]
    return replace(resolve(layers), recipe=config.recipe, notes=config.notes), notes


def rate_warnings(config: Config, parameters: int) -> list[str]:
    """Warnings for learning rates that would destroy a model of this size."""
    model, optimization = config.sections.model, config.algorithm.optimization
    rates = [("trainer.actor_lr", optimization.actor_lr, usual_rate(parameters, model.policy_lora > 0))]
    if config.algorithm.has_critic:
        usual = usual_critic_rate(parameters, model)
        rates.append(("trainer.critic_lr", optimization.critic_lr, usual))
    return [
        f"{key}={rate:g} is {rate / usual:.0f} times what a model of {_count(parameters)} parameters usually takes "
        f"({usual:g}): a few steps may destroy it. Lower it."
        for key, rate, usual in rates
        if parameters > 0 and rate > ABSURD * usual
    ]


def recipe_task(config: Config) -> str | None:
    """The task of the recipe that the configuration started from; None where it did not."""
    if config.recipe is None:
        return None
    return str(recipe_layer(config.recipe).values["task"]["name"])


def _unchosen(config: Config, key: str, fit: Fit) -> bool:
    """Whether nobody chose the size for this task and model: a default, or a recipe's for another one."""
    source = config.origins[key].source
    return source is Source.DEFAULT or (source is Source.RECIPE and _recipe_is_foreign(config, fit))


def _recipe_is_foreign(config: Config, fit: Fit) -> bool:
    if config.recipe is None:
        return False
    if recipe_task(config) != fit.task or fit.recipe_parameters is None:
        return True
    return not 1 / SAME_SIZE <= fit.parameters / fit.recipe_parameters <= SAME_SIZE


def _defaults(config: Config, fit: Fit) -> dict[str, float | int]:
    """The default of every size that the method uses."""
    algorithm, model = config.algorithm, config.sections.model
    actor = usual_rate(fit.parameters, model.policy_lora > 0)
    critic = usual_critic_rate(fit.parameters, model)
    sections = config.sections
    chosen = Sizes(
        **{
            name: getattr(sections.trainer, name)
            for name in ("samples_per_step", "group_size", "minibatch_size")
            if not _unchosen(config, f"trainer.{name}", fit)
        }
    )
    batch = with_batch(chosen)
    defaults: dict[str, float | int] = {f"trainer.{name}": value for name, value in ROUNDS.items()}
    for name in ("samples_per_step", "group_size", "minibatch_size"):
        defaults[f"trainer.{name}"] = getattr(batch, name)
    defaults |= {"trainer.actor_lr": actor, "trainer.critic_lr": critic}
    defaults["algorithm.alpha"] = max(PAPER_ALPHA, OUTCOME_REACH / fit.max_response_tokens)
    unused = {
        "trainer.group_size": algorithm.sampling.per_prompt == 1,
        "trainer.critic_lr": not algorithm.has_critic,
        "trainer.pretraining_steps": not algorithm.pretrains,
        "algorithm.alpha": not alpha_follows_length(config.choice, sections),
    }
    assert set(defaults) == set(NAMES.values()) - {"algorithm.k"}  # a share holds at every length and size
    return {key: value for key, value in defaults.items() if not unused.get(key)}


def _count(parameters: int) -> str:
    """1.2B, 135M, 1.5M, 110K."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 1e6:
        return f"{parameters / 1e6:.{0 if parameters >= 1e7 else 1}f}M"
    return f"{parameters / 1e3:.0f}K"
