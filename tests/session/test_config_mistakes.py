"""Mistakes in settings: errors that name the place and say what to type instead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configured import of

from vapo.algo.sizes import NAMES
from vapo.errors import ConfigError
from vapo.session.config import resolve
from vapo.session.layers import file_layer, set_layer, source_layers
from vapo.session.reference import all_settings
from vapo.session.suggest import SYNONYMS
from vapo.session.turn_taking import refuse_bootstrap


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
        ("seed=true", r"seed takes a whole number, in \[0, 2\^64\), got true"),
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
        ("rollout.engine={kind: vllm, context: 2}", "rollout.engine.context must be at least 3, got 2"),
        ("seed=-1", r"seed takes a whole number, in \[0, 2\^64\), got -1"),
        ("seed=18446744073709551616", r"seed takes a whole number, in .*, got 18446744073709551616"),
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


@pytest.mark.parametrize("path", NAMES)
def test_the_second_name_of_a_number_is_refused_with_the_first(path: str):
    with pytest.raises(ConfigError, match=f"has one name: set {NAMES[path]}"):
        of(f"algorithm.{path}=3")


def test_a_critic_that_the_method_does_not_use_is_refused_and_a_files_is_noted():
    with pytest.raises(ConfigError, match=r"model.critic=x has no effect: the method is grpo, and it has no critic"):
        of("algorithm.preset=grpo", "model.critic=x")
    config = resolve([file_layer("file x", {"algorithm": {"preset": "grpo"}, "model": {"critic": "x"}})])
    assert "model.critic=x (file x) has no effect on grpo" in config.notes[0]


def test_group_methods_refuse_what_only_a_critic_has():
    with pytest.raises(ConfigError, match="this method has a group baseline"):
        of("algorithm.preset=grpo", "algorithm.without=[decoupled-gae]")
    with pytest.raises(ConfigError, match="every advantage is 0"):
        of("algorithm.preset=grpo", "trainer.group_size=1")
    with pytest.raises(ConfigError, match="bootstrap needs a critic"):
        of("algorithm.preset=dapo", "algorithm.truncated=bootstrap")


def test_a_score_that_a_cut_off_response_earned_is_not_thrown_away():
    task: Any = SimpleNamespace(name="maze", environment=None)
    refuse_bootstrap(task, of("algorithm.truncated=bootstrap").algorithm)
    with pytest.raises(ConfigError, match=r"earned a score .*Set algorithm\.truncated to zero"):
        refuse_bootstrap(task, of("algorithm.truncated=bootstrap", "algorithm.reward.by=score").algorithm)


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


def test_a_wrong_setting_is_found_before_torch_loads():
    script = (
        "import sys; sys.argv = ['vapo', 'train', '--set', 'trainer.stepz=3']\n"
        "try:\n    from vapo.cli import main; main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"


def test_every_synonym_names_a_setting_that_exists():
    known = all_settings()
    named = {word: key for word, key in SYNONYMS.items() if not key.startswith(("--", "task."))}
    wrong = {word: key for word, key in named.items() if not any(k == key or k.startswith(f"{key}.") for k in known)}
    assert wrong == {}
