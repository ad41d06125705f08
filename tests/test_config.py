"""Configuration: precedence, origins, round trip, and errors that say what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vapo.algo.presets import PRESETS, TECHNIQUES, Fixed, LengthAdaptive, without
from vapo.config import Config, Layer, recipe_layer, recipes, resolve, set_layer, source_layers
from vapo.errors import ConfigError


def of(*assignments: str) -> Config:
    return resolve([recipe_layer("maze"), *map(set_layer, assignments)])


def test_later_layers_win_and_origins_say_who_set_what(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: maze\ntrainer: {steps: 7, actor_lr: 1e-4}\n")
    config = resolve([*source_layers(str(file)), set_layer("trainer.steps=9")])
    assert config.sections.trainer.steps == 9
    assert config.algorithm.optimization.actor_lr == 1e-4  # YAML 1.1 reads 1e-4 as text; we do not
    assert config.origins["trainer.steps"] == "--set"
    assert config.origins["trainer.actor_lr"] == "file mine.yaml"
    assert config.origins["trainer.group_size"] == "recipe maze"
    assert config.origins["trainer.weight_decay"] == "default"
    assert config.origins["algorithm.clip.high"] == "preset vapo"
    assert config.origins["algorithm.sampling.prompts"].startswith("scaled")


def test_a_file_without_a_recipe_starts_from_the_defaults(tmp_path: Path):
    file = tmp_path / "bare.yaml"
    file.write_text("algorithm: {preset: grpo}\n")
    assert resolve(source_layers(str(file))).algorithm == PRESETS["grpo"]


@pytest.mark.parametrize(
    ("preset", "removed"),
    [*((preset, []) for preset in PRESETS), ("vapo", ["clip-higher"]), ("dapo", ["token-level-loss", "clip-higher"])],
)
def test_the_written_configuration_reads_back_to_itself(preset: str, removed: list[str]):
    config = of(f"algorithm.preset={preset}", f"algorithm.without={removed}", "task.side=7")
    again = resolve([Layer("file", yaml.safe_load(config.to_yaml()))])
    assert again == config
    assert again.sections.task.options == {"side": 7}


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_are_valid(file: Path):
    assert resolve(source_layers(str(file))).preset == "vapo"


def test_a_text_of_many_lines_is_written_on_one():
    text = 'Problem: 3 + 5\n\nSolution: it\'s "8" # sure\n\nProblem: {problem}'
    config = resolve([Layer("file", {"task": {"name": "math", "template": text}})])
    assert sum("Solution" in line and line.endswith("# file") for line in config.to_yaml().splitlines()) == 1
    assert "  Solution" not in config.to_yaml()
    assert resolve([Layer("file", yaml.safe_load(config.to_yaml()))]) == config


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_without_a_technique_is_the_same_at_every_size(technique: str):
    config, plain = of(f"algorithm.without=[{technique}]"), of()
    assert config.algorithm != plain.algorithm
    if technique != "group-sampling":
        assert config.algorithm.sampling == plain.algorithm.sampling
    else:
        assert (config.algorithm.sampling.prompts, config.algorithm.sampling.per_prompt) == (128, 1)
    assert without(PRESETS["vapo"], technique) == resolve([set_layer(f"algorithm.without=[{technique}]")]).algorithm


def test_every_preset_gets_the_same_samples_minibatch_and_learning_rates():
    algorithms = [of(f"algorithm.preset={preset}").algorithm for preset in PRESETS]
    assert {a.sampling.samples for a in algorithms} == {128}
    assert {a.optimization.minibatch for a in algorithms} == {32}
    assert len({a.optimization.actor_lr for a in algorithms}) == 1


def test_a_rule_is_replaced_whole_and_a_number_in_place():
    fixed = of("algorithm.credit.policy_lambda={rule: fixed, value: 0.9}")
    assert fixed.algorithm.credit.policy_lambda == Fixed(0.9)
    assert of("algorithm.credit.policy_lambda.alpha=0.4").algorithm.credit.policy_lambda == LengthAdaptive(0.4)


def test_every_shipped_recipe_resolves_for_every_preset():
    for recipe in recipes():
        for preset in PRESETS:
            resolve([recipe_layer(recipe), set_layer(f"algorithm.preset={preset}")])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("trainer.stepz=3", "trainer.stepz; did you mean 'steps'"),
        ("sed=3", "did you mean 'seed'"),
        ("algorithm.clip.hgh=0.3", "did you mean 'high'"),
        ("algorithm.credit.policy_lambda.value=0.9", "algorithm.credit.policy_lambda.value. Known here: alpha, rule"),
        ("algorithm.preset=vappo", "did you mean 'vapo'"),
        ("algorithm.without=[clip-hiher]", "did you mean 'clip-higher'"),
        ("trainer.group_size=7", "must divide the 128 responses"),
        ("trainer.minibatch_size=48", "minibatch .48 responses. must divide"),
        ("algorithm.credit.critic_lambda.value=1.9", r"must lie in \[0, 1\], got 1.9"),
        ("algorithm.clip.low=1.5", r"clip.low must lie in \[0, 1\]"),
        ("algorithm.credit.gamma=2", r"gamma must lie in \[0, 1\]"),
        ("algorithm.alpha=-1", "alpha of a length-adaptive lambda must be positive and finite"),
        ("rollout.top_p=0.9", "evaluation.top_p"),
        ("rollout.temperature=0", "carry no gradient"),
        ("trainer.steps=abc", "trainer.steps: .*valid integer.*'abc'"),
        ("trainer.steps=-1", "trainer.steps must not be negative"),
        ("rollout=3", "rollout: "),
        ("algorithm=3", "algorithm: must be a mapping"),
        ("algorithm.alpha=abc", "algorithm.alpha: "),
        ("algorithm.without=5", "algorithm.without: "),
        ("algorithm={preset: ppo, without: [clip-higher]}", "does not use clip-higher"),
        ("trainer.pretraining_lr=-1", "pretraining_lr must not be negative"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("seed=-1", "seed: "),
    ],
)
def test_mistakes_are_named_with_their_place_and_the_fix(assignment: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        of(assignment)
    assert "\n" not in str(caught.value)


def test_group_methods_refuse_what_only_a_critic_has():
    with pytest.raises(ConfigError, match="methods with a critic"):
        of("algorithm.preset=grpo", "algorithm.without=[decoupled-gae]")
    with pytest.raises(ConfigError, match="every advantage is 0"):
        of("algorithm.preset=grpo", "trainer.group_size=1")
    with pytest.raises(ConfigError, match="bootstrap needs a critic"):
        of("algorithm.preset=dapo", "algorithm.truncated=bootstrap")


def test_unreadable_files_and_unknown_recipes_are_explained(tmp_path: Path):
    with pytest.raises(ConfigError, match="Check the path"):
        source_layers(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1,\nb: 2")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML.*line"):
        source_layers(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="found a list"):
        source_layers(str(tmp_path / "list.yaml"))
    with pytest.raises(ConfigError, match="did you mean 'maze'"):
        source_layers("mase")
    with pytest.raises(ConfigError, match="key=value"):
        set_layer("trainer.steps")
