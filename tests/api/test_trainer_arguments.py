"""The arguments of `VAPOTrainer`: what each becomes, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
from ast import literal_eval
from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from trainer_toys import ROWS, config, short, trainer
from transformers import DefaultFlowCallback, EarlyStoppingCallback, HfArgumentParser, TrainerCallback
from transformers.integrations import WandbCallback

from vapo import VAPOConfig, VAPOTrainer
from vapo.algo.presets import PRESETS, Algorithm
from vapo.api import trainer_config
from vapo.api.trainer_config import ARGUMENTS, in_arguments
from vapo.errors import ConfigError, DataError, ModelError
from vapo.rollout.decoder import SLOWER
from vapo.rollout.engine_settings import GenerateEngineSettings
from vapo.session import lifecycle
from vapo.session.reference import all_settings, task_options
from vapo.tasks.records import RecordsTask
from vapo.tasks.verifiers.rewards import Rewards


class Stream:
    def take(self, count: int) -> list[dict]:
        return ROWS[:count]


class DataFrame(UserList):
    """By its name pandas' table of rows."""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"learning_rat": 1e-6}, "no argument learning_rat. Did you mean learning_rate?"),
        ({"loss_type": "dapo"}, "does not take loss_type: the loss follows from `method`"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type=cosine: the learning rate is constant"),
        ({"fp16": True}, "Set bf16=True"),
        ({"num_generations": 3}, "16 responses does not hold whole groups of num_generations=3"),
        ({"generation_batch_size": 12}, "must divide the 12 responses"),
        ({"steps_per_generation": 2}, "say the same thing"),
        ({"report_to": "neptune"}, "report_to: neptune is not known here"),
        ({"eval_strategy": "epoch"}, "eval_strategy=epoch: take 'steps'"),
        ({"top_p": 0.9}, "top_p must be 1 in training"),
        ({"num_generations": 0}, "num_generations must be a whole number from 1 on, got 0"),
        ({"num_generations": "4"}, "num_generations must be a whole number from 1 on, got '4'"),
        ({"push_to_hub": True}, "call trainer.push_to_hub() after train()"),
        ({"method": "vapoo"}, "vapoo"),
        ({"max_steps": "5"}, "max_steps must be a whole number, got '5'"),
        ({"learning_rate": "1e-6"}, "learning_rate must be a number, got '1e-6'"),
        ({"reward_weights": ["a", 1.0]}, "reward_weights must be a list of numbers"),
        ({"save_steps": 0}, "save_steps must be above 0, got 0; save_strategy='no' saves none"),
        ({"eval_strategy": "steps", "logging_steps": 0}, "needs eval_steps above 0, or else logging_steps"),
        ({"reward_weights": [1.0]}, "reward_weights has 1 weight for 2 reward functions"),
    ],
)
def test_an_argument_that_is_not_taken_is_named(argument, message, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        trainer(tmp_path / "run", args=config(tmp_path / "run", **argument))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"train_dataset": None}, ConfigError, "needs a train_dataset"),
        ({"train_dataset": [{"question": "x"}]}, DataError, "row 0 has the columns question; it needs a column named"),
        ({"train_dataset": [{"prompt": 3}]}, DataError, "the prompt of row 0 is a int; give a text or"),
        (
            {"train_dataset": (row for row in ROWS)},
            DataError,
            "a generator: it has no length. Give list(train_dataset)",
        ),
        ({"train_dataset": Stream()}, DataError, "Take a part of it, list(train_dataset.take(1000))"),
        ({"train_dataset": {"train": ROWS}}, DataError, "is a dict: give one of its parts, train_dataset['train']"),
        ({"eval_dataset": {"hard": ROWS}}, DataError, "is a dict: give one of its parts, eval_dataset['hard']"),
        ({"train_dataset": DataFrame(ROWS)}, DataError, 'a DataFrame: give its rows, train_dataset.to_dict("records")'),
        ({"train_dataset": "rows.jsonl"}, DataError, "train_dataset is a str: load it"),
        ({"train_dataset": [{"prompt": "x\ud800"}]}, DataError, "the prompt of row 0 holds half a surrogate pair"),
        ({"train_dataset": []}, DataError, "train_dataset is empty"),
        ({"reward_funcs": []}, ConfigError, "reward_funcs is empty"),
        ({"reward_funcs": 3}, ConfigError, "reward_funcs holds a int"),
        ({"reward_funcs": "no/such/model/here"}, ModelError, "does not exist"),
        ({"rollout_func": short}, ConfigError, "does not take rollout_func"),
        ({"optimizers": (object(), None)}, ConfigError, "does not take optimizers"),
        ({"args": object()}, ConfigError, "args is a object. Give a VAPOConfig"),
    ],
)
def test_a_wrong_argument_of_the_trainer_is_named(argument, error, message, tmp_path: Path):
    with pytest.raises(error) as raised:
        trainer(tmp_path / "run", **argument)
    assert message in str(raised.value)


class NeedsMore(TrainerCallback):
    def __init__(self, more: int) -> None: ...


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (WandbCallback, "WandbCallback, .* Set report_to='wandb' in place of it"),
        (DefaultFlowCallback(), "DefaultFlowCallback, .* save_steps, eval_steps and max_steps decide here"),
        (NeedsMore, "the class NeedsMore, and .* Give an object of it"),
        (print, "a builtin_function_or_method; give objects or classes of transformers.TrainerCallback"),
    ],
)
def test_a_callback_that_has_no_place_is_refused_at_once(callback, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", callbacks=[callback])


def test_a_class_of_callbacks_becomes_one(tmp_path: Path):
    (callback,) = trainer(tmp_path / "run", callbacks=[EarlyStoppingCallback])._observer._callbacks
    assert isinstance(callback, EarlyStoppingCallback)


def test_arguments_without_effect_are_taken(tmp_path: Path):
    made = config(
        tmp_path,
        run_name="x",
        remove_unused_columns=False,
        disable_tqdm=True,
        push_to_hub=False,
        top_k=0,
        eval_on_start=True,
    )
    assert not hasattr(made, "run_name")


def test_epochs_and_gradient_steps_become_rollout_steps(tmp_path: Path):
    made = config(tmp_path, max_steps=-1, num_train_epochs=2.0)
    assert made.steps(rows=10) == 5  # 2 x 10 rows x 4 responses / 16
    assert config(tmp_path, max_steps=5).steps(rows=10) == 3  # 2 gradient steps each
    settings = config(tmp_path, epsilon=0.1, warmup_steps=4).as_settings(rows=10)
    assert settings["algorithm"]["clip"] == {"low": 0.1, "high": 0.1}
    assert settings["trainer"]["warmup_steps"] == 2
    shares = config(tmp_path, max_steps=100, save_steps=0.1, eval_strategy="steps").as_settings(rows=10)
    assert (shares["checkpoint"]["every"], shares["evaluation"]["every"]) == (
        5,
        1,
    )  # 10 gradient steps; logging_steps=1
    assert json.dumps(settings)


@pytest.mark.parametrize("method", ["grpo", "easyppo", "vapo"])
def test_an_argument_goes_before_the_methods_own_also_where_it_is_off(method: str, tmp_path: Path):
    usual = PRESETS[method]

    def chosen(**arguments) -> Algorithm:
        return trainer(
            tmp_path, args=config(tmp_path, method=method, pretraining_steps=None, **arguments)
        ).config.algorithm

    own, off = chosen(), chosen(beta=0.0, mask_truncated_completions=False)
    assert (own.kl.coef, own.truncated) == (usual.kl.coef, usual.truncated)
    assert (off.kl.coef, off.truncated) == (0.0, "zero")
    assert chosen(mask_truncated_completions=True, beta=0.1).kl.coef == 0.1


def test_arguments_come_from_a_command_line_as_trls_do():
    words = ["--output_dir", "x", "--without", "clip-higher", "--reward_weights", "1", "0.5", "--report_to", "wandb"]
    (found,) = HfArgumentParser(VAPOConfig).parse_args_into_dataclasses(words)
    assert (found.without, found.reward_weights, found.report_to) == (["clip-higher"], [1.0, 0.5], "wandb")


def test_lora_config(tmp_path: Path):
    peft = pytest.importorskip("peft")
    made = trainer(tmp_path / "run", peft_config=peft.LoraConfig(r=4, lora_alpha=8))
    assert (made.config.sections.model.policy_lora, made.config.sections.model.lora_alpha) == (4, 8.0)
    for field, value in {"lora_dropout": 0.1, "rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj"]}.items():
        with pytest.raises(ConfigError, match=rf"peft_config: {field}=.* is not taken"):
            trainer(tmp_path / "run", peft_config=peft.LoraConfig(r=4, **{field: value}))


def test_a_model_that_cannot_be_had_is_one_error_without_the_chain_of_the_loader(tmp_path: Path):
    with pytest.raises(ConfigError, match="model='builtin' is the base model of a shipped task"):
        trainer(tmp_path / "run", model="builtin", processing_class=None)
    with pytest.raises(ModelError, match="Cannot load the tokenizer") as caught:
        trainer(tmp_path / "run", model=str(tmp_path / "nowhere"), processing_class=None)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_error_of_the_constructor_names_arguments(tmp_path: Path):
    with pytest.raises(ConfigError, match="Raise num_generations, or use a preset with a critic"):
        trainer(tmp_path / "run", args=config(tmp_path / "run", method="grpo", num_generations=1))


def test_rows_of_one_prompt_are_held_out_together(tmp_path: Path):
    rows = [{"prompt": f"{i % 20} x", "answer": str(i)} for i in range(60)]
    task = trainer(tmp_path / "run", train_dataset=rows).task
    assert (len(task.train), len(task.heldout)) == (54, 6)  # 20 prompts of 3 rows, a tenth of them held out
    assert not {prompt.text for prompt in task.train} & {prompt.text for prompt in task.heldout}


@pytest.mark.parametrize(("stateless", "shared"), [(True, False), (False, True)])
def test_tools_cannot_tell_rows_of_one_prompt_apart_and_an_environment_can(stateless: bool, shared: bool):
    rows = [{"prompt": f"{i % 20} x", "id": i} for i in range(60)]
    environment: Any = SimpleNamespace(stateless=stateless, server=SimpleNamespace(tools=()))
    task = RecordsTask(rows, None, Rewards([lambda completions, **more: [0.0] * len(completions)]), 8, environment)
    texts = [{prompt.text for prompt in prompts} for prompts in (task.train, task.heldout)]
    assert bool(texts[0] & texts[1]) is shared


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("--set algorithm.sampler.kind=none leaves", "settings={'algorithm': {'sampler': {'kind': 'none'}}} leaves"),
        ("(--set checkpoint.every=6)", "(settings={'checkpoint': {'every': 6}})"),
        ("--set model.critic=some/model.", "critic='some/model'."),
        ("--set key=value", "--set key=value"),
        ("--set model.policy='my model'.", "--set settings['model']['policy']='my model'."),
        ("vapo resume x --set trainer.steps=40", "trainer.train(resume_from_checkpoint=True) with max_steps=40"),
    ],
)
def test_an_option_of_a_command_becomes_an_argument(option: str, argument: str):
    assert in_arguments(option) == argument


def test_the_advice_to_sample_slower_works_as_it_is_written(tmp_path: Path):
    advice = in_arguments(SLOWER).partition("settings=")[2].rstrip(".")
    made = trainer(tmp_path / "run", args=config(tmp_path / "run", settings=literal_eval(advice)))
    assert isinstance(made.config.sections.rollout.engine, GenerateEngineSettings)


def test_a_default_number_of_evaluation_prompts_is_not_noted(tmp_path: Path):
    def notes(**settings) -> list[str]:
        args = config(tmp_path / "run", settings=settings)
        made = trainer(tmp_path / "run", args=args, eval_dataset=ROWS[:4])
        made._keep_start()
        made._observer.view = view = Mock()
        lifecycle.prepare(made.config, made._observer, made.task)
        return [call.args[0] for call in view.note.call_args_list]

    assert not any("are used" in note for note in notes())
    said = "settings['evaluation']['prompts'] is 9, and the data set holds out 4: all are used"
    assert said in notes(evaluation={"prompts": 9})


def test_every_argument_of_the_table_is_one_and_every_setting_is_there():
    known = {f.name for f in dataclasses.fields(VAPOConfig)} | set(inspect.signature(VAPOTrainer).parameters)
    assert set(ARGUMENTS.values()) <= known
    of_tasks = {option.key.replace("task.NAME", "task") for option in task_options()}
    assert {name for name in ARGUMENTS if name not in all_settings()} <= {*of_tasks, "task.right_at", "task.verifier"}
    assert all(in_arguments(f"Set {name}.") == f"Set {argument}." for name, argument in ARGUMENTS.items())
    for words in ("policy/model.safetensors has changed", "model.safetensors is missing", "Mend my/task.data/x.json"):
        assert in_arguments(words) == words
    assert in_arguments("set algorithm.sampler=none") == "set settings['algorithm']['sampler']=none"
    assert doctest.testmod(trainer_config).failed == 0
    resumed = in_arguments("Saved. Go on with: vapo resume 'my runs/one' --set trainer.steps=N")
    assert resumed == "Saved. Go on with: trainer.train(resume_from_checkpoint=True) with a larger max_steps"


def test_the_metrics_of_a_killed_run_leave_out_the_torn_last_line(tmp_path: Path):
    made = trainer(tmp_path / "run")
    assert made.metrics == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "rew')
    assert made.metrics == [{"step": 1}]


def test_the_page_names_every_argument():
    page = (Path(__file__).parents[2] / "docs/trainer.md").read_text()
    names = [f.name for f in dataclasses.fields(VAPOConfig)]
    names += list(inspect.signature(VAPOTrainer).parameters)
    assert [name for name in names if f"`{name}" not in page] == []
