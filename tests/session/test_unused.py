"""A setting that the run does not use is noted or refused, whichever setting it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapo.errors import ConfigError
from vapo.session.config import Config, resolve
from vapo.session.evaluated_run import evaluation_config, find_model
from vapo.session.layers import file_layer, recipe_layer, set_layer
from vapo.session.reference import all_settings, task_options
from vapo.session.unused import RULES, unused

MATH = ["task.name=math", "task.data=data.jsonl"]
CASES = {
    # setting: (what else is set where it has no effect, what else is set where it has one)
    "trainer.group_size=4": (["algorithm.preset=ppo"], []),
    "trainer.critic_lr=0.5": (["algorithm.preset=grpo"], []),
    "guards.explained_variance_below=0.3": (["algorithm.preset=grpo"], []),
    "guards.variance_ratio_above=3": (["algorithm.preset=ppo"], []),
    "model.critic_kind=side": (["algorithm.preset=grpo"], []),
    "trainer.pretraining_steps=4": (["algorithm.preset=ppo"], []),
    "trainer.pretraining_lr=0.5": (["algorithm.without=[value-pretraining]"], []),
    "algorithm.alpha=3": (["algorithm.preset=vc-ppo"], []),
    "algorithm.alpha=4": (["algorithm.preset=vapo2"], []),
    "algorithm.k=0.4": (["algorithm.preset=grpo"], []),
    "algorithm.kl.estimator=k1": ([], ["algorithm.kl.coef=0.1"]),
    "algorithm.kl.refresh_every=9": ([], ["algorithm.kl.coef=0.1"]),
    "model.side_share=0.1": ([], ["model.critic_kind=side"]),
    "model.lora_alpha=4": ([], ["model.policy_lora=2"]),
    "trainer.actor_lr=0.5": (["trainer.steps=0"], []),
    "algorithm.clip.high=0.5": (["trainer.steps=0"], []),
    "algorithm.positive_lm=0.3": (["trainer.steps=0"], []),
    "evaluation.prompts=7": (["trainer.steps=0"], []),
    "guards.max_rollbacks=9": ([], ["guards.action=rollback"]),
    "guards.stuck_factor=7": (["guards.watchdog=false"], []),
    "evaluation.top_p=0.5": (["evaluation.temperature=0"], []),
    "model.prompt_format=plain": ([], MATH),
    "task.heldout=30": ([*MATH, "task.eval_data=data.jsonl"], MATH),
    "task.eval_split=train": (MATH, [*MATH, "task.eval_data=some/data"]),
    "task.eval_subset=main": ([*MATH, "task.eval_data=data.jsonl"], [*MATH, "task.eval_data=some/data"]),
    "task.split=test": (MATH, ["task.name=math", "task.data=some/data"]),
    "scale.rollout_workers=2": ([], ["scale.backend=ray"]),
    "scale.placement=split": (["scale.backend=ray"], ["scale.backend=ray", "scale.gpus_per_node=2"]),
    "task.right_at=0.5": (MATH, [*MATH, "task.verifier=exact"]),
    "task.max_response_tokens=9": ([*MATH, "rollout.max_response_tokens=8"], MATH),
}


def of(*assignments: str) -> Config:
    return resolve([recipe_layer("maze"), *map(set_layer, assignments)])


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").touch()


@pytest.mark.parametrize("setting", CASES)
def test_a_setting_without_effect_is_noted_and_one_with_an_effect_is_not(setting: str):
    without_effect, with_effect = CASES[setting]
    noted = [note for note in of(*without_effect, setting).notes if note.startswith(setting)]
    assert len(noted) == 1
    assert "(--set) has no effect on" in noted[0]
    assert [note for note in of(*with_effect, setting).notes if note.startswith(setting)] == []


def test_passes_of_the_critic_count_in_value_pretraining_alone():
    assert not any(
        "critic_updates" in note for note in of("trainer.steps=0", "algorithm.credit.critic_updates=2").notes
    )


def test_the_cases_try_every_rule():
    tried = set()
    for setting, (others, _) in CASES.items():
        config = of(*others, setting)
        tried |= {why for _, why in unused([setting.partition("=")[0]], config.sections, config.algorithm)}
    assert {rule.why for rule in RULES} == tried


def test_every_rule_names_settings_that_exist():
    known = {*all_settings(), *(option.key for option in task_options())}
    lost = [name for rule in RULES for name in rule.keys if not any(rule.names(key) for key in known)]
    assert lost == []


def test_a_value_that_is_the_default_is_noted_on_the_command_line_and_not_in_a_file():
    chosen = {"algorithm": {"preset": "vapo"}, "guards": {"max_rollbacks": 3}}
    assert resolve([file_layer("file x", chosen)]).notes == ()
    assert len(of("guards.max_rollbacks=3").notes) == 1


@pytest.mark.parametrize("field", ["credit", "clip", "reduction", "kl", "truncated"])
def test_null_for_a_field_of_the_method_is_refused(field: str):
    with pytest.raises(ConfigError, match=rf"algorithm\.{field} takes .*, got null\. Leave it out"):
        of(f"algorithm.{field}=null")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("trainer.steps=3", r"--set trainer\.steps has no effect on an evaluation\. Leave it out"),
        ("rollout.temperature=0.5", "rollout.temperature has no effect on an evaluation. Use --temperature"),
        ("evaluation.prompts=5", "Use --prompts"),
        ("algorithm.clip.high=0.5", "no effect on an evaluation"),
        ("model.policy_lora=4", "no effect on an evaluation"),
    ],
)
def test_a_setting_of_training_is_refused_in_an_evaluation(assignment: str, words: str):
    with pytest.raises(ConfigError, match=words):
        evaluation_config(find_model("builtin"), "maze", {}, [set_layer(assignment)])


@pytest.mark.parametrize(
    "assignment",
    [
        "rollout.max_response_tokens=9",
        "task.side=8",
        "model.dtype=bfloat16",
        "scale.threads=1",
        "trainer.layout=packed",
    ],
)
def test_a_setting_that_an_evaluation_uses_is_taken(assignment: str):
    config = evaluation_config(find_model("builtin"), "maze", {}, [set_layer(assignment)])
    assert config == evaluation_config(find_model("builtin"), "maze", set_layer(assignment).values)
