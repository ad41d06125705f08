"""Settings: one name for each number, who chose it, what runs, and errors that say what to type instead."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vapo.algo.method import DualClip, Fixed, LengthAdaptive, Share
from vapo.algo.presets import PRESETS, TECHNIQUES, without
from vapo.algo.sizes import NAMES, sizes_of
from vapo.errors import ConfigError
from vapo.session.config import Config, resolve
from vapo.session.layers import (
    Source,
    file_layer,
    flatten,
    recipe_layer,
    recipes,
    set_layer,
    source_layers,
    with_sources,
)
from vapo.session.old_files import todays
from vapo.session.reference import all_settings, page
from vapo.session.suggest import SYNONYMS
from vapo.trainer.snapshot import changes

ROOT = Path(__file__).parents[2]


def of(*assignments: str) -> Config:
    return resolve([recipe_layer("maze"), *map(set_layer, assignments)])


def reread(config: Config, *assignments: str) -> Config:
    """The configuration of a run's config.yaml, with options on top."""
    return resolve([file_layer("file", yaml.safe_load(config.to_yaml())), *map(set_layer, assignments)])


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


@pytest.mark.parametrize("path", NAMES)
def test_the_second_name_of_a_number_is_refused_with_the_first(path: str):
    with pytest.raises(ConfigError, match=f"has one name: set {NAMES[path]}"):
        of(f"algorithm.{path}=3")


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


def test_a_critic_that_the_method_does_not_use_is_refused_and_a_files_is_noted():
    with pytest.raises(ConfigError, match=r"model.critic=x has no effect: the method is grpo, and it has no critic"):
        of("algorithm.preset=grpo", "model.critic=x")
    config = resolve([file_layer("file x", {"algorithm": {"preset": "grpo"}, "model": {"critic": "x"}})])
    assert "model.critic=x (file x) has no effect on grpo" in config.notes[0]


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


# --------------------------------------------------------------------------- files that 0.1 wrote


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


# --------------------------------------------------------------------------- the list of settings


def test_every_setting_has_a_meaning_and_the_page_is_printed_from_the_code():
    assert [s.key for s in all_settings().values() if not s.meaning] == []
    assert (ROOT / "docs" / "settings.md").read_text() == page()  # python -m vapo.session.reference > docs/settings.md


def test_every_synonym_names_a_setting_that_exists():
    known = all_settings()
    named = {word: key for word, key in SYNONYMS.items() if not key.startswith(("--", "task."))}
    wrong = {word: key for word, key in named.items() if not any(k == key or k.startswith(f"{key}.") for k in known)}
    assert wrong == {}


def test_a_wrong_setting_is_found_before_torch_loads():
    script = (
        "import sys; sys.argv = ['vapo', 'train', '--set', 'trainer.stepz=3']\n"
        "try:\n    from vapo.cli import main; main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("trainer.stepz=3", "trainer.stepz; did you mean 'steps'"),
        ("sed=3", "did you mean 'seed'"),
        ("algorithm.clip.hgh=0.3", "did you mean 'high'"),
        ("algorithm.credit.policy_lambda.value=0.9", "goes with kind fixed"),
        ("algorithm.preset=vappo", "did you mean 'vapo'"),
        ("algorithm.without=[clip-hiher]", "did you mean 'clip-higher'"),
        ("rollout.slots=3", "did you mean 'rollout.engine.slots'"),
        ("rollout.engine=vlm", "rollout.engine.kind takes one of torch, generate, vllm, got 'vlm'"),
        ("algorithm.credit.kind=abc", "algorithm.credit.kind takes one of gae, group, got 'abc'"),
        (
            "algorithm.credit.policy_lambda.kind=3",
            "policy_lambda.kind takes one of fixed, .*, got 3",
        ),
        ("algorithm.credit.std={a: 1}", "algorithm.credit.std goes with kind group"),
        ("actor_rollout_ref.rollout.n=8", "did you mean 'trainer.group_size'"),
        ("learning_rate=3", "did you mean 'trainer.actor_lr'"),
        ("trainer.num_generations=3", "did you mean 'trainer.group_size'"),
        ("algorithm.beta=3", "did you mean 'algorithm.kl.coef'"),
        ("algorithm.epsilon_high=3", "did you mean 'algorithm.clip.high'"),
        ("trainer.group_size=7", "must divide the 128 responses"),
        ("trainer.minibatch_size=48", "minibatch .48 responses. must divide"),
        ("algorithm.credit.critic_lambda.value=1.9", r"must be in \[0, 1\], got 1.9"),
        ("algorithm.clip.low=1.5", r"algorithm.clip.low must be in \[0, 1\]"),
        ("algorithm.credit.gamma=2", r"gamma must be in \[0, 1\]"),
        ("algorithm.alpha=-1", "algorithm.alpha must be above 0, got -1"),
        ("algorithm.k=1.5", r"algorithm.k must be in \(0, 1\], got 1.5"),
        ("algorithm.k=true", "algorithm.k takes a number or null, in .*, got true"),
        ("algorithm.alpha=.inf", "algorithm.alpha must be finite and above 0"),
        ("rollout.top_p=0.9", "evaluation.top_p"),
        ("rollout.temperature=0", "carry no gradient"),
        ("trainer.steps=abc", "trainer.steps takes a whole number, at least 0, got 'abc'"),
        ("trainer.steps=-1", "trainer.steps must be at least 0"),
        ("trainer.steps=true", "trainer.steps takes a whole number, at least 0, got true"),
        ("seed=true", "seed takes a whole number, at least 0, got true"),
        ("trainer.actor_lr=.inf", "trainer.actor_lr must be finite"),
        ("trainer.actor_lr=.nan", "trainer.actor_lr must be finite"),
        ("algorithm.positive_lm=-1", "algorithm.positive_lm must be at least 0"),
        ("rollout=3", "rollout takes settings of its own, {name: value}, got 3"),
        ("algorithm=3", "algorithm: must be a mapping"),
        ("algorithm.alpha=abc", "algorithm.alpha takes a number or null, above 0, got 'abc'"),
        ("algorithm.without=5", r"algorithm.without takes a list of names, \[a, b\], got 5"),
        ("algorithm.without=[5]", r"algorithm.without takes a list of names, \[a, b\], got 5 in it"),
        ("algorithm={preset: ppo, without: [clip-higher]}", "does not use clip-higher"),
        ("trainer.pretraining_lr=-1", "pretraining_lr must be at least 0"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("seed=-1", "seed takes a whole number, at least 0, got -1"),
    ],
)
def test_mistakes_are_named_with_their_place_and_the_fix(assignment: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        of(assignment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "some words", "1.5", "true", "2020-01-01"])
def test_a_value_of_another_type_is_explained_in_our_own_words(value: str):
    for key in all_settings():
        try:
            of(f"{key}={value}")
        except ConfigError as error:
            said = str(error)
            last = key.rpartition(".")[2]
            assert last in said or key.partition(".")[0] in said or "There is no" in said, said
            assert not re.search(r"Input should|valid (?:integer|number|string|dict|list)|missing|validation", said), (
                said
            )
            assert "\n" not in said


def test_null_is_the_default():
    assert of("algorithm.alpha=null").algorithm.credit.policy_lambda == LengthAdaptive(0.05)
    assert of("algorithm={preset: null}").preset == "vapo"


def test_group_methods_refuse_what_only_a_critic_has():
    with pytest.raises(ConfigError, match="this method has a group baseline"):
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


def test_a_checkpoint_that_kept_k_as_a_field_of_the_method_has_the_same_settings():
    config = of("algorithm.preset=vapo2", "algorithm.k=0.4")
    before = config.effective()
    del before["algorithm"]["k"]
    before["algorithm"]["credit"]["policy_lambda"]["k"] = 0.4
    assert changes(config.effective(), todays(before)) == []
    assert changes(of("algorithm.preset=vapo2").effective(), todays(before)) == ["algorithm.k: 0.4 -> 0.135"]


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


def test_a_checkpoint_from_before_the_setting_scored_every_token():
    before = of().effective()
    del before["trainer"]["scoring"]
    assert changes(of().effective(), todays(before)) == ["trainer.scoring: all -> needed"]
    assert changes(of("trainer.scoring=all").effective(), todays(before)) == []
