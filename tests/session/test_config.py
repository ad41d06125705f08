"""Settings: one name for each number, who chose it, and what runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from configured import of, reread

from vapo.algo.method import DualClip, Fixed, LengthAdaptive
from vapo.algo.presets import PRESETS, TECHNIQUES, without
from vapo.algo.sizes import NAMES, sizes_of
from vapo.json_text import flatten
from vapo.session.config import resolve
from vapo.session.layers import (
    Source,
    file_layer,
    recipe_layer,
    recipes,
    set_layer,
    source_layers,
    with_sources,
)
from vapo.session.reference import all_settings, page
from vapo.session.sizing import Fit, fitted
from vapo.trainer.snapshot import changes

ROOT = Path(__file__).parents[2]


# --------------------------------------------------------------------------- who chose what


def test_later_layers_win_and_origins_say_who_set_what(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: maze\ntrainer: {steps: 7, actor_lr: 1e-4}\n")
    config = resolve([*source_layers(str(file)), set_layer("trainer.steps=9")])
    assert config.sections.trainer.steps == 9
    assert config.algorithm.optimization.actor_lr == 1e-4  # YAML 1.1 reads 1e-4 as text; we do not
    sources = {key: (origin.source, origin.place) for key, origin in config.origins.items()}
    assert sources["trainer.steps"] == (Source.OPTION, "--set")
    assert sources["trainer.actor_lr"] == (Source.FILE, "file mine.yaml")
    assert sources["trainer.group_size"] == (Source.RECIPE, "recipe maze")
    assert sources["trainer.weight_decay"] == (Source.DEFAULT, "default")


def test_sources_are_kept_where_a_run_is_read_again():
    config = of("trainer.steps=9", "algorithm.clip.high=0.3")
    again = resolve(with_sources(file_layer("run", yaml.safe_load(config.to_yaml())), config.sources()))
    assert again == config
    assert again.origins == config.origins


def test_a_mapping_of_a_task_stays_what_it_is_through_sizing_saving_and_loading():
    mine = {"gpt-4.1": 0.5, 1: 0.5, "on": 0.5, "a: b": 1, None: 3, 0.5: 1, "x\ny": 1, "": 2, "n": {"k.j": {"a": 1}}}
    layer = file_layer("mine", {"task": {"name": "gsm8k", "judges": mine}})
    sized, _ = fitted(resolve([recipe_layer("maze"), layer]), Fit("gsm8k", 494_000_000, 1000, 110_000))
    kept = file_layer("run", yaml.safe_load(sized.to_yaml()))
    again = resolve(with_sources(kept, sized.sources()))
    assert sized.sections.task.options["judges"] == again.sections.task.options["judges"] == mine
    assert again == sized
    assert again.origins["task.judges.n.k.j.a"].place == "mine"
    # as a checkpoint keeps them, which has texts for keys
    assert changes(sized.effective(), json.loads(json.dumps(sized.effective()))) == []


def test_a_file_without_a_recipe_starts_from_the_defaults(tmp_path: Path):
    file = tmp_path / "bare.yaml"
    file.write_text("algorithm: {preset: grpo}\n")
    assert resolve(source_layers(str(file))).algorithm == PRESETS["grpo"]


# --------------------------------------------------------------------------- one name for each number


@pytest.mark.parametrize(
    ("preset", "removed"),
    [*((preset, []) for preset in PRESETS), ("vapo", ["clip-higher"]), ("dapo", ["token-level-loss", "clip-higher"])],
)
def test_the_written_configuration_reads_back_to_itself(preset: str, removed: list[str]):
    config = of(
        f"algorithm.preset={preset}", f"algorithm.without={removed}", "task.side=7", "algorithm.reward.wrong=-1"
    )
    again = reread(config)
    assert again == config
    assert again.sections.task.options == {"side": 7}


def test_no_number_has_two_names():
    keys = list(all_settings())
    assert len(keys) == len(set(keys))
    assert not [path for path in NAMES if f"algorithm.{path}" in keys]
    whole = dict(flatten(of().effective()))
    assert not [path for path in NAMES if f"algorithm.{path}" in whole]
    assert {name for name in NAMES.values() if name not in whole} == set()


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ("trainer.actor_lr=1e-5", lambda c: c.algorithm.optimization.actor_lr == 1e-5),
        ("algorithm.alpha=3", lambda c: c.algorithm.credit.policy_lambda == LengthAdaptive(3.0)),
        ("algorithm.preset=grpo", lambda c: c.algorithm == of("algorithm.preset=grpo").algorithm and c.label == "grpo"),
        ("algorithm.without=[clip-higher]", lambda c: c.algorithm.clip.high == 0.2),
        ("model.critic=elsewhere", lambda c: c.sections.model.critic == "elsewhere"),
        ("trainer.samples_per_step=64", lambda c: c.algorithm.sampling.samples == 64),
    ],
)
def test_options_on_a_runs_own_file_take_effect(option: str, seen: Any):
    assert not seen(of())
    assert seen(reread(of(), option))


def test_the_label_is_that_of_the_method_that_runs():
    assert of().label == "vapo"
    assert of("trainer.actor_lr=1e-5", "algorithm.alpha=2", "trainer.group_size=4").label == "vapo"  # sizes
    assert of("algorithm.clip.high=0.3").label == "vapo, changed: clip.high"
    assert of("algorithm.clip.high=0.28").label == "vapo"
    assert of("algorithm.without=[clip-higher]", "algorithm.kl.coef=0.1").label == (
        "vapo without clip-higher, changed: kl.coef"
    )
    fixed = of("algorithm.credit.policy_lambda={kind: fixed, value: 0.9}")
    assert fixed.label == "vapo, changed: credit.policy_lambda"
    # a fixed lambda of .95 is exactly what taking the technique away gives, by another name
    assert of("algorithm.credit.policy_lambda={kind: fixed, value: 0.95}").algorithm == (
        of("algorithm.without=[length-adaptive-gae]").algorithm
    )


@pytest.mark.parametrize(
    ("assignments", "why"),
    [
        (
            ["algorithm.preset=grpo", "trainer.critic_lr=1e-3"],
            "critic_lr=0.001 .* has no effect on grpo: .* no critic",
        ),
        (["algorithm.preset=ppo", "trainer.group_size=4"], "one response to each prompt"),
        (["algorithm.preset=ppo", "trainer.pretraining_steps=4"], "no value pretraining"),
        (["algorithm.preset=vc-ppo", "algorithm.alpha=1"], "not length-adaptive"),
        (["algorithm.preset=vapo2", "algorithm.alpha=1"], "by share: set algorithm.k"),
        (["algorithm.preset=grpo", "algorithm.k=0.4"], "no critic, and so no lambda"),
        (["algorithm.without=[value-pretraining]", "trainer.pretraining_lr=1e-3"], "no value pretraining"),
    ],
)
def test_a_size_that_the_method_does_not_use_is_noted_with_its_place(assignments: list[str], why: str):
    (note,) = of(*assignments).notes
    assert re.search(why, note)
    assert "(--set)" in note
    values = [set_layer(text).values for text in assignments]
    config = resolve([recipe_layer("maze"), *(file_layer("file x", v) for v in values)])
    assert config.notes == (note.replace("--set", "file x"),)


def test_a_recipes_sizes_are_for_every_preset_without_a_word():
    for preset in PRESETS:
        assert of(f"algorithm.preset={preset}").notes == ()


# --------------------------------------------------------------------------- sizes and fields


def test_some_sizes_alone_get_others_that_fit_them():
    for given in ("samples_per_step=64", "minibatch_size=96", "group_size=6", "samples_per_step=20"):
        name, value = given.split("=")
        sizes = sizes_of(resolve([set_layer(f"trainer.{given}")]).algorithm)
        assert getattr(sizes, name) == int(value)
        assert sizes.samples_per_step % sizes.group_size == sizes.samples_per_step % sizes.minibatch_size == 0


def test_a_size_that_takes_a_technique_away_shows_in_the_label():
    assert of("trainer.pretraining_steps=0").label == "vapo, changed: trainer.pretraining_steps"
    assert of("trainer.group_size=1").label == "vapo, changed: trainer.group_size"
    assert of("trainer.pretraining_steps=0", "model.critic=x").label == "vapo"  # it was pretrained elsewhere
    assert of("algorithm.without=[value-pretraining]", "trainer.pretraining_steps=0").label == (
        "vapo without value-pretraining"
    )
    assert of("algorithm.credit={kind: group}").label == "vapo, changed: credit"


def test_a_method_that_is_written_out_without_its_sizes_is_no_old_file():
    method = yaml.safe_load(of().method_yaml())["algorithm"]
    assert resolve([file_layer("mine", {"algorithm": method})]).label == "vapo"


def test_a_runs_own_file_keeps_who_chose_its_settings(tmp_path: Path):
    config = of("trainer.actor_lr=1e-5")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "sources.json").write_text(json.dumps(config.sources()))
    again = resolve(source_layers(str(tmp_path / "config.yaml")))
    assert again == config
    assert again.recipe == "maze"
    sources = {key: origin.source for key, origin in again.origins.items()}
    assert sources["trainer.actor_lr"] is Source.FILE
    assert sources["trainer.critic_lr"] is Source.RECIPE  # no choice of the user: another model takes another
    assert sources["trainer.layout"] is Source.DEFAULT


def test_a_text_of_many_lines_is_written_on_one():
    text = 'Problem: 3 + 5\n\nSolution: it\'s "8" # sure\n\nProblem: {problem}'
    config = resolve([file_layer("file", {"task": {"name": "math", "template": text}})])
    assert sum("Solution" in line and line.endswith("# file") for line in config.to_yaml().splitlines()) == 1
    assert "  Solution" not in config.to_yaml()
    assert reread(config) == config


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
    sizes = [sizes_of(of(f"algorithm.preset={preset}").algorithm) for preset in PRESETS]
    assert {s.samples_per_step for s in sizes} == {128}
    assert {s.minibatch_size for s in sizes} == {32}
    assert len({s.actor_lr for s in sizes}) == 1


def test_a_variant_is_replaced_whole_and_a_number_in_place():
    fixed = of("algorithm.credit.policy_lambda={kind: fixed, value: 0.9}")
    assert fixed.algorithm.credit.policy_lambda == Fixed(0.9)
    assert of("algorithm.clip={kind: dual, c: 2}").algorithm.clip == DualClip(0.2, 0.2, 2.0)
    assert of("algorithm.clip.high=0.5").algorithm.clip.low == 0.2
    # another method's lambda, made length-adaptive, takes the chosen alpha
    adaptive = of("algorithm.preset=ppo", "algorithm.credit.policy_lambda={kind: length_adaptive}", "algorithm.alpha=2")
    assert adaptive.algorithm.credit.policy_lambda == LengthAdaptive(2.0)


def test_the_engine_may_be_named_alone_or_with_its_settings():
    assert of("rollout.engine=torch") == of()
    assert of("rollout.engine.slots=64").sections.rollout.engine.slots == 64
    assert of("rollout.engine=torch", "rollout.engine.slots=64").sections.rollout.engine.slots == 64


def test_every_shipped_recipe_resolves_for_every_preset_and_sets_every_size():
    for recipe in recipes():
        for preset in PRESETS:
            resolve([recipe_layer(recipe), set_layer(f"algorithm.preset={preset}")])
        given = dict(flatten(recipe_layer(recipe).values))
        reach = {"algorithm.k", "algorithm.alpha"}  # how far outcomes reach: one of the two
        assert set(NAMES.values()) - reach <= set(given), recipe
        assert reach & set(given), recipe


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_are_valid(file: Path):
    assert resolve(source_layers(str(file))).preset == "vapo"


def test_null_is_the_default():
    assert of("algorithm.alpha=null").algorithm.credit.policy_lambda == LengthAdaptive(0.05)
    assert of("algorithm={preset: null}").preset == "vapo"


# --------------------------------------------------------------------------- the list of settings


def test_every_setting_has_a_meaning_and_the_page_is_printed_from_the_code():
    assert [s.key for s in all_settings().values() if not s.meaning] == []
    assert (ROOT / "docs" / "settings.md").read_text() == page()  # python -m vapo.session.reference > docs/settings.md
