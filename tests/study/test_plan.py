"""A study's file becomes cells that differ in what is compared and in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapo.algo.presets import TECHNIQUES, Gae, Relative
from vapo.config import flatten
from vapo.errors import ConfigError
from vapo.study.plan import (
    critic_cells,
    method_called,
    only_methods,
    read_study,
    run_cells,
    studies,
    tuning_cells,
    with_seeds,
    within,
)
from vapo.study.runner import check_same

OUT = Path("somewhere")


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "study.yaml").write_text(text)
    return str(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", sorted(studies()))
@pytest.mark.parametrize("budget", ["smoke", "standard", "full"])
def test_every_shipped_study_resolves_at_every_budget(name: str, budget: str):
    study = within(read_study(name), budget)
    assert run_cells(study, OUT, {})
    assert study.about


def test_the_main_study_has_the_ladder_every_removal_and_enough_seeds():
    study = read_study("maze")
    assert {"ppo", "vc-ppo", "grpo", "dapo", "vapo", "vapo with dynamic-sampling"} <= study.methods.keys()
    assert {f"vapo without {technique}" for technique in TECHNIQUES} <= study.methods.keys()
    cells = run_cells(study, OUT, {})
    per_method = {name: sum(cell.method == name for cell in cells) for name in study.methods}
    assert all(per_method[name] >= (3 if " " in name else 5) for name in per_method)


def test_cells_of_one_seed_differ_only_in_the_method_and_its_critic():
    study = read_study("maze")
    cells = [cell for cell in run_cells(study, OUT, {}) if cell.seed == 0]
    for cell in cells:
        settings = dict(flatten(cell.config.sections.model_dump()))
        reference = dict(flatten(cells[0].config.sections.model_dump()))
        different = {key for key in settings if settings[key] != reference[key]}
        assert different <= {"model.critic", "trainer.pretraining_steps"}, cell.method
        algorithm = cell.config.algorithm
        assert algorithm.sampling.samples == 128
        assert algorithm.optimization.minibatch == 32
        assert algorithm.optimization == cells[0].config.algorithm.optimization


def test_tuning_tries_the_same_points_for_every_method_on_seeds_of_its_own():
    study = read_study("maze")
    assert study.tuning is not None
    trials = tuning_cells(study, OUT)
    assert {name for name, _ in trials} == {"ppo", "vc-ppo", "grpo", "dapo", "vapo"}
    assert not set(study.tuning.seeds) & set(study.seeds)
    for name in study.tuning.methods:
        rates = [trials[name, point][0].config.algorithm.optimization.actor_lr for point in range(4)]
        assert rates == [1.5e-4, 3e-4, 6e-4, 1.2e-3]


def test_what_tuning_chose_for_vapo_holds_for_its_ablations():
    tuned = {"vapo": {"trainer": {"actor_lr": 6e-4}}, "grpo": {"trainer": {"actor_lr": 1.5e-4}}}
    rates = {c.method: c.config.algorithm.optimization.actor_lr for c in run_cells(read_study("maze"), OUT, tuned)}
    assert rates["vapo"] == rates["vapo without clip-higher"] == rates["vapo with dynamic-sampling"] == 6e-4
    assert rates["grpo"] == 1.5e-4
    assert rates["dapo"] == 3e-4


def test_one_critic_per_base_serves_exactly_the_methods_that_pretrain():
    study = read_study("maze").model_copy(update={"bases": ["builtin", 1]})
    critics = critic_cells(study, OUT)
    assert [(c.base, c.config.sections.trainer.steps) for c in critics] == [("shipped", 0), ("seed 1", 0)]
    for cell in run_cells(study, OUT, {}):
        credit = cell.config.algorithm.credit
        expected = isinstance(credit, Gae) and cell.method not in {"ppo", "vapo without value-pretraining"}
        assert (cell.critic is not None) == expected, cell.method
        if expected:
            assert isinstance(credit, Gae)
            assert credit.pretraining_steps == 0
            folder = next(c.folder for c in critics if c.base == cell.base)
            assert cell.config.sections.model.critic == str(folder / "critic")


def test_a_critic_that_starts_from_another_stands_after_it():
    cells = critic_cells(read_study("critics"), OUT)
    assert [c.method for c in cells] == [
        "critic pretrained",
        "critic reward-model",
        "critic reward-model-pretrained",
    ]
    assert cells[1].config.sections.trainer.pretraining_at == "end"
    assert cells[2].config.sections.model.critic == str(cells[1].folder / "critic")
    unpretrained = [c for c in run_cells(read_study("critics"), OUT, {}) if "not pretrained" in c.method]
    assert {c.critic for c in unpretrained} == {cells[1].folder}


def test_studies_that_are_alike_share_their_runs():
    shared = {c.folder: c.config for c in run_cells(read_study("maze"), OUT, {})}
    common = [c for c in run_cells(read_study("alpha"), OUT, {}) if c.folder in shared]
    assert {c.method for c in common} == {"vapo"}
    assert all(c.config == shared[c.folder] for c in common)


def test_the_alpha_study_sweeps_the_rule():
    study = read_study("alpha")
    lambdas = {c.method: c.config.algorithm.credit for c in run_cells(study, OUT, {}) if c.seed == 0}
    alphas = {credit.policy_lambda.alpha for credit in lambdas.values() if hasattr(credit.policy_lambda, "alpha")}
    assert {0.05, 0.2, 0.4, 1.5} <= alphas
    assert any(isinstance(credit.policy_lambda, Relative) for credit in lambdas.values())


def test_a_name_says_which_method_it_is():
    assert method_called("vapo without clip-higher") == {"preset": "vapo", "without": ["clip-higher"]}
    assert method_called("vapo with dynamic-sampling")["settings"]["algorithm"]["sampling"]["refill_rounds"] == 9
    with pytest.raises(ConfigError, match="Cannot tell which method 'vapo without cliphigher' is"):
        method_called("vapo without cliphigher")


def test_budgets_and_options_choose_seeds_and_methods(tmp_path: Path):
    study = read_study("maze")
    assert within(study, "smoke").seeds == [0]
    assert within(study, "standard").seeds == [0, 1, 2]
    assert with_seeds(within(study, "smoke"), 3).seeds == [0, 1, 2]
    chosen = only_methods(study, ["vapo", "dapo"])
    assert list(chosen.methods) == ["vapo", "dapo"]
    assert chosen.tuning is not None
    assert chosen.tuning.methods == ["dapo", "vapo"]
    with pytest.raises(ConfigError, match="No budget is called 'huge'"):
        within(study, "huge")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: [vapo]\nsedes: [1]", "sedes.*Known here: about, recipe"),
        ("methods: {vapo: {critic: mine}}", "starts from the critic 'mine', which is not listed"),
        ("methods: []", "methods"),
        ("methods: [vapo]\nseeds: []", "seeds"),
        ("methods: [vapo]\ncritics: {pretrained: {start: pretrained}}", "not listed before"),
        ("methods: [vapo]\ntuning: {methods: [grpo], grid: [{}]}", "tuning names 'grpo'"),
    ],
)
def test_a_mistake_in_a_study_is_named(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        read_study(written(tmp_path, text))


def test_an_unknown_study_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"No study is called 'maza'; there are: .*maze"):
        read_study("maza")


def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path: Path):
    cell = next(iter(run_cells(read_study("maze"), tmp_path, {})))
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(cell.config.to_yaml())
    check_same(cell)
    other = run_cells(read_study("maze"), tmp_path, {"ppo": {"trainer": {"actor_lr": 1e-5}}})[0]
    with pytest.raises(ConfigError, match=r"other settings.*actor_lr"):
        check_same(other)
