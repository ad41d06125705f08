"""A study's file becomes cells that differ only in method, seed, base model and critic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vapo.algo.method import Gae, GroupBaseline, Relative
from vapo.algo.presets import TECHNIQUES
from vapo.cli import app
from vapo.errors import ConfigError, ModelError
from vapo.json_text import flatten
from vapo.session.inputs import with_whole_paths
from vapo.study.cell_cards import ended, finished_methods, outcome_of
from vapo.study.cell_fit import check_same, check_same_critic
from vapo.study.cells import Cell, base_folder, check_name, check_settings, critic_cells, run_cells, tuning_cells
from vapo.study.study import method_from_name, only_methods, read_study, studies, with_seeds, within
from vapo.study.study_course import reference_among
from vapo.study.study_run import check_study, locked
from vapo.study.tuning_choice import choose_settings, chosen_before

OUT = Path("somewhere")


def write_study(tmp_path: Path, text: str) -> str:
    (tmp_path / "study.yaml").write_text(text)
    return str(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", sorted(studies()))
@pytest.mark.parametrize("budget", ["smoke", "standard", "full"])
def test_every_shipped_study_resolves_at_every_budget(name: str, budget: str):
    study = within(read_study(name), budget)
    check_settings(study)
    assert run_cells(study, OUT, {})
    trials = [cell for cells in tuning_cells(study, OUT).values() for cell in cells]
    cells = [*run_cells(study, OUT, {}), *trials, *critic_cells(study, OUT)]
    assert {cell.folder for cell in critic_cells(study, OUT)} == {c.critic for c in cells if c.critic is not None}
    tuning_cells(study, OUT)
    assert study.about


def test_the_maze_study_has_five_seeds_of_each_main_method_and_three_of_each_ablation():
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


def test_tuning_tries_the_same_points_for_every_method_on_separate_seeds():
    study = read_study("maze")
    assert study.tuning is not None
    trials = tuning_cells(study, OUT)
    assert {name for name, _ in trials} == {"ppo", "vc-ppo", "grpo", "dapo", "vapo"}
    assert not set(study.tuning.seeds) & set(study.seeds)
    for name in study.tuning.methods:
        rates = [trials[name, point][0].config.algorithm.optimization.actor_lr for point in range(4)]
        assert rates == [1.5e-4, 3e-4, 6e-4, 1.2e-3]


def test_ablations_use_the_settings_that_tuning_chose_for_vapo():
    tuned = {"vapo": {"trainer": {"actor_lr": 6e-4}}, "grpo": {"trainer": {"actor_lr": 1.5e-4}}}
    rates = {c.method: c.config.algorithm.optimization.actor_lr for c in run_cells(read_study("maze"), OUT, tuned)}
    assert rates["vapo"] == rates["vapo without clip-higher"] == rates["vapo with dynamic-sampling"] == 6e-4
    assert rates["grpo"] == 1.5e-4
    untuned = read_study("maze").settings["trainer"]["actor_lr"]
    assert rates["dapo"] == untuned


def test_each_base_has_one_critic_shared_by_the_methods_that_pretrain():
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


def test_a_critic_that_starts_from_another_follows_it():
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


def test_a_study_like_another_shares_its_runs():
    shared = {c.folder: c.config for c in run_cells(read_study("maze"), OUT, {})}
    common = [c for c in run_cells(read_study("alpha"), OUT, {}) if c.folder in shared]
    assert {c.method for c in common} == {"vapo"}
    assert all(c.config == shared[c.folder] for c in common)


def test_the_control_differs_from_vapo_in_the_baseline_only():
    study = read_study("control")
    methods = {c.method: c.config.algorithm for c in run_cells(study, OUT, {}) if c.seed == 0}
    vapo, control = methods["vapo"], methods["vapo with a group baseline"]
    assert isinstance(control.credit, GroupBaseline)
    assert replace(control, credit=vapo.credit) == vapo
    assert {name for name, _ in tuning_cells(study, OUT)} == {"grpo", "vapo", "vapo with a group baseline"}


def test_the_alpha_study_has_several_alphas_and_a_relative_rule():
    study = read_study("alpha")
    lambdas = {c.method: c.config.algorithm.credit for c in run_cells(study, OUT, {}) if c.seed == 0}
    alphas = {credit.policy_lambda.alpha for credit in lambdas.values() if hasattr(credit.policy_lambda, "alpha")}
    assert {0.05, 0.2, 0.4, 1.5} <= alphas
    assert any(isinstance(credit.policy_lambda, Relative) for credit in lambdas.values())


def test_method_names_are_parsed_and_unknown_names_raise():
    assert method_from_name("vapo without clip-higher") == {"preset": "vapo", "without": ["clip-higher"]}
    assert method_from_name("vapo with dynamic-sampling")["settings"]["algorithm"]["sampling"]["refill_rounds"] == 9
    with pytest.raises(ConfigError, match="Unknown method 'vapo without cliphigher'"):
        method_from_name("vapo without cliphigher")


def test_budgets_and_options_choose_seeds_and_methods(tmp_path: Path):
    study = read_study("maze")
    assert within(study, "smoke").seeds == [0]
    assert within(study, "standard").seeds == [0, 1, 2]
    assert with_seeds(within(study, "smoke"), 3).seeds == [0, 1, 2]
    chosen = only_methods(study, ["vapo", "dapo"])
    assert list(chosen.methods) == ["vapo", "dapo"]
    assert chosen.tuning is not None
    assert chosen.tuning.methods == ["dapo", "vapo"]
    more = with_seeds(study, 6)
    assert len([c for c in run_cells(more, OUT, {}) if c.method == "vapo without clip-higher"]) == 6
    with pytest.raises(ConfigError, match="No budget is called 'huge'"):
        within(study, "huge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [vapo]\nsedes: [1]", "sedes.*Known here: about, recipe"),
        ("methods: {vapo: {critic: mine}}", "starts from the critic 'mine', which is not listed"),
        ("methods: []", "methods"),
        ("methods: [vapo]\nseeds: []", "seeds"),
        ("methods: [vapo]\ncritics: {pretrained: {start: pretrained}}", "not listed before"),
        ("methods: [vapo]\nreference: grpo", "reference: 'grpo' is not among the methods"),
        ("methods: [vapo]\ntuning: {methods: [grpo], grid: [{}]}", "tuning names 'grpo'"),
        ("methods: [vapo]\ntuning: {methods: [vapo], grid: []}", "tuning.grid"),
        ("methods: [{vapo: {}}]", "methods: must be a list of names, or a mapping"),
        ("methods: [1]", "methods: must be a list of names, or a mapping"),
        ("methods: {vapo: text}", "methods: must be a list of names, or a mapping"),
        ("methods: [vapo]\nlike: maze\nsettings: 3", "settings: must hold sections"),
        ("methods: [vapo]\nlike: maze\ntuning: {grid: [{}]}", "tuning.methods"),
        ("methods: [vapo]\nseeds: [-1]", "seeds"),
        ("methods: {ppo: {setting: {}}}", r"methods.ppo.setting is no entry of a method. Known here: preset, without"),
        ("methods: [vapo]\ntuning: {methods: [vapo], grid: [{}], seed: 1}", r"of tuning. Known here: methods, grid"),
        ("methods: [vapo]\nrecipe: mine.yaml", "a study starts from a shipped recipe, not from 'mine.yaml'"),
        ("methods: [vapo]\nbases: [-1]", "bases.0 takes a number that is at least 0 or text, got -1"),
        ("methods: [vapo]\nseeds: [0, 100]\ntuning: {methods: [vapo], grid: [{}]}", r"seeds of final runs \(100\)"),
        ("methods: {ppo: {seeds: 9}}", "methods.ppo.seeds=9 is more than the study's 3 seeds"),
    ],
)
def test_a_mistake_in_a_study_raises_an_error_that_names_the_entry(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_study(write_study(tmp_path, text))


def test_the_smoke_budget_lowers_the_own_settings_of_methods_and_critics(tmp_path: Path):
    own = "settings: {trainer: {steps: 50, pretraining_steps: 0}, evaluation: {every: 9, prompts: 5}}"
    critic = "settings: {trainer: {pretraining_steps: 40, pretraining_passes: 8, critic_lr: 0.5}}"
    text = f"methods: {{vapo: {{{own}}}}}\ncritics: {{pretrained: {{{critic}}}}}"
    study = within(read_study(write_study(tmp_path, text)), "smoke")
    assert study.methods["vapo"].settings == {
        "trainer": {"steps": 3, "pretraining_steps": 0},
        "evaluation": {"every": 2, "prompts": 5},
    }
    lowered = {"trainer": {"pretraining_steps": 2, "pretraining_passes": 1, "critic_lr": 0.5}}
    assert study.critics["pretrained"].settings == lowered


def test_a_row_whose_settings_have_no_effect_raises(tmp_path: Path):
    text = """
recipe: maze
methods:
  vapo2: {}
  vapo2, alpha .05: {preset: vapo2, settings: {algorithm: {alpha: 0.05, k: null}}}
"""
    with pytest.raises(ConfigError, match=r"'vapo2, alpha .05' of the study sets algorithm.alpha=0.05, which has no"):
        check_settings(read_study(write_study(tmp_path, text)))


def test_a_study_that_is_like_itself_raises(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(f"like: {path}\nmethods: [vapo]")
    with pytest.raises(ConfigError, match="leads back to the file itself"):
        read_study(str(path))


@pytest.mark.parametrize(
    "text", ["methods: [vapo]\nseeds: [0, 0]", "methods: {a b: {preset: ppo}, a-b: {preset: ppo}}"]
)
def test_two_cells_with_the_same_folder_raise(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match="Two cells of the study have the same folder"):
        run_cells(read_study(write_study(tmp_path, text)), OUT, {})


def test_the_folder_of_a_made_base_depends_on_task_and_options():
    near, far = read_study("other-base"), read_study("long")
    assert base_folder(near, OUT, 1) == "somewhere/bases/maze-seed1"
    assert base_folder(far, OUT, 1) != base_folder(near, OUT, 1)
    assert base_folder(near, OUT, "builtin") == "builtin"


def test_a_single_ablation_keeps_the_tuning_of_its_preset():
    study = only_methods(read_study("maze"), ["vapo without clip-higher"])
    assert {name for name, _ in tuning_cells(study, OUT)} == {"vapo"}
    assert [cell.method for cell in critic_cells(study, OUT)] == ["critic pretrained"]
    assert {cell.method for cell in run_cells(study, OUT, {})} == {"vapo without clip-higher"}


def test_a_method_added_by_name_raises_if_the_study_lacks_its_critic(tmp_path: Path):
    study = read_study(
        write_study(tmp_path, "methods: [grpo]\ncritics: {}\n".replace("[grpo]", "{grpo: {critic: null}}"))
    )
    with pytest.raises(ConfigError, match="starts from the critic 'pretrained', which is not listed"):
        only_methods(study, ["vapo"])


def test_studies_in_one_folder_keep_each_others_tuning_and_use_their_own(tmp_path: Path):
    (tmp_path / "tuning.json").write_text(json.dumps({"grpo": {"chosen": {"trainer": {"actor_lr": 1e-5}}}}))
    study = read_study("alpha")
    tuned = choose_settings(study, tuning_cells(study, tmp_path), tmp_path)  # no trial ended: all 0, the first is taken
    assert json.loads((tmp_path / "tuning.json").read_text()).keys() == {"grpo", "vapo"}
    assert chosen_before(study, tmp_path) == tuned
    assert tuned.keys() == {"vapo"}
    assert tuned["vapo"]["trainer"]["actor_lr"] == 1.5e-4
    fixed = read_study("residual")  # the same folder by default, and its rates are its own
    assert chosen_before(fixed, tmp_path) == choose_settings(fixed, {}, tmp_path) == {}


def test_a_study_like_another_tunes_what_its_rows_need(tmp_path: Path):
    def tuned(text: str) -> tuple[list[str], list[str]]:
        study = read_study(write_study(tmp_path, text))
        assert {name for name, _ in tuning_cells(study, OUT)} == set(study.tuning.methods if study.tuning else [])
        return (study.tuning.methods if study.tuning else []), list(study.untabled)

    control = "vapo with a group baseline: {preset: dapo}"
    assert tuned(f"like: evidence-far\nreference: grpo\nmethods: {{grpo: {{}}, {control}}}") == (
        ["grpo", "vapo with a group baseline"],
        [],
    )
    assert tuned("like: evidence-far\nreference: a\nmethods: {a: {preset: vapo}}") == (["vapo"], ["vapo"])
    assert tuned("like: critics\nreference: a\nmethods: {a: {preset: ppo}}") == (["ppo"], ["ppo"])
    rate = "{preset: vapo, settings: {trainer: {actor_lr: 1.0e-4, critic_lr: 1.0e-4}}}"
    assert tuned(f"like: evidence-far\nreference: a\nmethods: {{a: {rate}}}") == ([], [])
    assert tuned("like: maze\ntuning: null\nmethods: [vapo]") == ([], [])


@pytest.mark.parametrize("text", ["{", "[]", '{"vapo": 3}', '{"vapo": {"grid": []}}'])
def test_a_damaged_tuning_file_raises_an_error_with_its_name(tmp_path: Path, text: str):
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tuning.json cannot be read .* Delete it"):
        chosen_before(read_study("maze"), tmp_path)


def test_a_cell_with_a_damaged_card_has_not_ended(tmp_path: Path):
    cell = run_cells(read_study("maze"), tmp_path, {})[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text('{"outcome": "fin')
    assert not ended(cell)
    (cell.folder / "cell.json").write_text('{"outcome": "finished"}')
    assert ended(cell)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, "finished"),
        (3, "diverged"),
        (2, "failed"),
        (1, "failed"),
        (75, "unfinished"),
        (130, "unfinished"),
        (-9, "unfinished"),
    ],
)
def test_the_exit_code_determines_the_outcome_of_a_cell(code: int, outcome: str):
    assert outcome_of(code) == outcome


def test_a_second_study_in_the_same_folder_raises(tmp_path: Path):
    with locked(tmp_path), pytest.raises(ConfigError, match="Another `vapo ablate` uses"), locked(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"), locked(tmp_path / "file"):
        pass
    with pytest.raises(ConfigError, match=r": Not a directory. Choose another"), locked(tmp_path / "file" / "out"):
        pass


def test_a_study_whose_name_its_folder_needs_raises(tmp_path: Path):
    (tmp_path / "pause.yaml").write_text("recipe: chain\nmethods: [grpo]")
    done = CliRunner().invoke(app, ["ablate", str(tmp_path / "pause.yaml"), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigError)
    assert "A study cannot be called 'pause'" in str(done.exception)
    assert not (tmp_path / "out").exists()
    for name in studies():
        check_name(name)


def test_a_dry_run_lists_every_cell_and_whether_it_has_ended(tmp_path: Path):
    cell = next(c for c in run_cells(read_study("chain"), tmp_path, {}) if c.method == "grpo")
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text('{"outcome": "finished"}')
    done = CliRunner().invoke(
        app, ["ablate", "chain", "--budget", "full", "--out", str(tmp_path), "--dry-run", "--json"]
    )
    assert done.exit_code == 0
    cells = json.loads(done.stdout)
    assert len(cells) == 1 + 5 * 4 + 5 * 3
    assert [(c["method"], c["seed"]) for c in cells if c["ended"]] == [("grpo", 0)]


def test_a_dry_run_raises_for_a_base_made_for_other_task_options(tmp_path: Path):
    study = write_study(tmp_path, "methods: [grpo]\nsettings: {task: {min_distance: 9}}")
    done = CliRunner().invoke(app, ["ablate", study, "--out", str(tmp_path / "out"), "--dry-run"])
    assert isinstance(done.exception, ModelError)


def test_an_unknown_study_name_raises_an_error_with_the_known_names():
    with pytest.raises(ConfigError, match=r"No study is called 'maza'; there are: .*maze"):
        read_study("maza")


def test_a_folder_with_a_run_of_other_settings_raises(tmp_path: Path):
    cell = next(iter(run_cells(read_study("maze"), tmp_path, {})))
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(cell.config.to_yaml())
    check_same(cell)
    other = run_cells(read_study("maze"), tmp_path, {"ppo": {"trainer": {"actor_lr": 1e-5}}})[0]
    with pytest.raises(ConfigError, match=r"other settings.*actor_lr"):
        check_same(other)


def test_a_study_with_relative_paths_matches_its_runs_with_absolute_ones(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = run_cells(only_methods(with_seeds(read_study("maze"), 1), ["vapo"]), Path("out"), {})
    critic = Path(cell.config.sections.model.critic or "")
    critic.mkdir(parents=True)
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(with_whole_paths(cell.config).to_yaml())
    assert str(critic.resolve()) in (cell.folder / "config.yaml").read_text()
    check_same(cell)


def test_the_reference_is_a_method_with_a_finished_run_else_left_to_the_comparison(tmp_path: Path):
    for name, method, outcome in (("a", "grpo", "finished"), ("b", "mine", "failed")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(json.dumps({"method": method, "outcome": outcome}))
    finished = finished_methods([tmp_path / "a", tmp_path / "b"])
    assert finished == {"grpo"}
    assert reference_among(finished, "grpo") == "grpo"
    assert reference_among(finished, "mine") is None  # "mine" has no finished run


def test_a_dry_run_shows_names_with_brackets_as_they_are(tmp_path: Path):
    methods = "{'a [/k]': {preset: grpo}, 'a [k=.5]': {preset: grpo}}"
    study = write_study(tmp_path, f"recipe: chain\nreference: a [/k]\nmethods: {methods}")
    done = CliRunner().invoke(app, ["ablate", study, "--seeds", "1", "--out", str(tmp_path / "[/k]"), "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert "a [/k]," in done.stdout
    assert "a [k=.5]," in done.stdout


def start_run(cell: Cell, **card: object) -> None:
    """What a run of this cell leaves in its folder."""
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(with_whole_paths(cell.config).to_yaml())
    (cell.folder / "cell.json").write_text(json.dumps({**cell.card(), "settings": cell.settings, **card}))


def test_a_size_that_the_study_no_longer_sets_is_another_setting(tmp_path: Path):
    text = "recipe: chain\nseeds: [0]\nmethods: {vapo2: {settings: {algorithm: {alpha: null, k: 0.9}}}}"
    (chosen,) = run_cells(read_study(write_study(tmp_path, text)), tmp_path, {})
    start_run(chosen)
    check_same(chosen)
    (cell,) = run_cells(read_study(write_study(tmp_path, text.replace(", k: 0.9", ""))), tmp_path, {})
    with pytest.raises(ConfigError, match=r"other settings \(algorithm.k: 0.9 → 0.135\)"):
        check_same(cell)


def test_runs_that_started_from_a_critic_with_other_settings_are_named(tmp_path: Path):
    text = "recipe: chain\nseeds: [0, 1]\nmethods: [vapo, grpo]"
    for cell in run_cells(read_study(write_study(tmp_path, text)), tmp_path, {}):
        start_run(cell, outcome="finished")
    text += "\ncritics: {pretrained: {settings: {trainer: {critic_lr: 0.5}}}}"
    cells = run_cells(read_study(write_study(tmp_path, text)), tmp_path, {})
    for cell in cells:
        check_same(cell)
    with pytest.raises(ConfigError, match=r"2 runs started from a critic .*runs/vapo-.*-seed0, .*runs/vapo-.*-seed1\."):
        check_same_critic(cells)
    for cell in cells:  # an older version of vapo had other settings, and so other hashes
        settings = {key: value for key, value in cell.settings.items() if key != "guards.action"}
        (cell.folder / "cell.json").write_text(json.dumps({"settings": {**settings, "shared critic": "0"}}))
    check_same_critic(cells)


def test_a_run_without_a_card_is_known_by_the_settings_that_it_was_started_with(tmp_path: Path):
    text = "recipe: chain\nseeds: [0]\nmethods: [vapo]"
    (cell,) = run_cells(read_study(write_study(tmp_path, text)), tmp_path, {})
    start_run(cell)
    (cell.folder / "cell.json").unlink()  # the study was killed
    cell.started_file.parent.mkdir()
    cell.started_file.write_text(json.dumps(cell.settings))
    check_same_critic([cell])
    cell.started_file.write_text(json.dumps({**cell.settings, "shared critic": "0"}))
    with pytest.raises(ConfigError, match="1 run started from a critic with other settings"):
        check_same_critic([cell])


def test_runs_under_a_relative_folder_match_after_their_critic_was_deleted(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = run_cells(only_methods(with_seeds(read_study("maze"), 1), ["vapo"]), Path("out"), {})
    critic = Path(cell.config.sections.model.critic or "")
    critic.mkdir(parents=True)
    start_run(cell)
    critic.rmdir()
    check_same(cell)


def test_a_finished_run_is_checked_after_tuning_if_its_settings_are_not_known_yet(tmp_path: Path):
    text = "recipe: chain\nseeds: [0]\nmethods: [grpo]\ntuning: {methods: [grpo], grid: [{trainer: {actor_lr: 0.01}}]}"
    study = read_study(write_study(tmp_path, text))
    choose_settings(study, tuning_cells(study, tmp_path), tmp_path)
    (cell,) = run_cells(study, tmp_path, chosen_before(study, tmp_path))
    start_run(cell, outcome="finished")
    check_study(study, tmp_path)
    config = cell.folder / "config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("actor_lr: 0.01", "actor_lr: 0.02"))
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        check_study(study, tmp_path)
    config.write_text(whole)
    (tmp_path / "tuning.json").unlink()
    check_study(study, tmp_path)
