"""`VAPOTrainer`: a script for GRPOTrainer with the class name changed, on objects in memory."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
import math
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    HfArgumentParser,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerCallback,
)

import toys
from command_line import vapo
from vapo import VAPOConfig, VAPOTrainer
from vapo.api import trainer_config
from vapo.api.callbacks import CallbackObserver
from vapo.api.trainer_config import ARGUMENTS, in_arguments
from vapo.errors import ConfigError, DataError, DivergedError, ModelError
from vapo.models.reward_model import RewardModel
from vapo.session import lifecycle
from vapo.session.reference import all_settings, task_options

ROWS = [{"prompt": f"{i} x", "answer": str(i), "note": i} for i in range(10)]


def names_the_digit(completions, answer, **kwargs):
    return [float(a in c.split()) for c, a in zip(completions, answer, strict=True)]


def short(completions, **kwargs):
    return [-len(c.split()) / 8 for c in completions]


def config(folder: Path, **more) -> VAPOConfig:
    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "generation_batch_size": 16, "num_generations": 4, "max_completion_length": 8, "max_steps": 4,
        "learning_rate": 1e-3, "critic_learning_rate": 1e-2, "pretraining_steps": 1, "report_to": "none",
        "save_steps": 2, "logging_steps": 1,
        "settings": {"scale": {"threads": 1}, "evaluation": {"samples_per_prompt": 2},
                     "trainer": {"pretraining_heldout": 8, "pretraining_ready": -10.0}},
    }  # fmt: skip
    return VAPOConfig(**{**given, **more})


def trainer(folder: Path, **more) -> VAPOTrainer:
    given = {
        "model": toys.tiny_llama(), "reward_funcs": [names_the_digit, short], "args": config(folder),
        "train_dataset": ROWS, "processing_class": toys.tokenizer(),
    }  # fmt: skip
    return VAPOTrainer(**{**given, **more})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> VAPOTrainer:
    folder = tmp_path_factory.mktemp("trainer")
    made = trainer(folder / "run", args=config(folder / "run", reward_weights=[1.0, 0.5]), eval_dataset=ROWS[:4])
    made.train()
    return made


def test_a_script_for_grpo_trainer_trains_and_leaves_models_and_logs(trained: VAPOTrainer):
    steps = [line for line in trained.metrics if line["phase"] == "train"]
    assert [line["step"] for line in steps] == [1, 2]  # 4 gradient steps, 2 in each rollout step of 16
    for line in steps:
        parts = line["rewards/names_the_digit/mean"] + 0.5 * line["rewards/short/mean"]
        assert line["reward"] == pytest.approx(parts, abs=1e-6)
        assert line["rewards/short/std"] > 0
    assert isinstance(trained.model, torch.nn.Module)
    given = toys.tiny_llama().state_dict()
    assert any(not torch.equal(value, given[name]) for name, value in trained.model.state_dict().items())
    assert (trained.output_dir / "critic" / "config.json").exists()
    card = (trained.output_dir / "critic" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert 'AutoModelForTokenClassification.from_pretrained("run/critic")' in card
    assert "| learning rate | 0.01 |" in card
    assert {"reward", "step"} <= trained.log_history[-2].keys()
    assert "eval_avg" in trained.log_history[-1]


def test_evaluate_and_save_model(trained: VAPOTrainer, tmp_path: Path):
    metrics = trained.evaluate()
    assert 0 <= metrics["eval_avg"] <= 1
    assert trained.evaluate(ROWS[:3]).keys() == metrics.keys()
    trained.save_model(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.lm_head.weight, trained.model.lm_head.weight)


def test_push_to_hub_uploads_the_policy(trained: VAPOTrainer, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, name, **options):
            calls.append((name, options))
            return type("Repository", (), {"repo_id": f"me/{name}"})()

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, Path(folder_path).name, commit_message))
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})()

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert trained.push_to_hub() == "https://hub/commit/1"
    assert calls == [None, ("run", {"private": None, "exist_ok": True}), ("me/run", "policy", "End of training")]


class Stopper(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append("begin")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(f"log {state.global_step} {math.isfinite(logs['reward'])}")

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 1
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self.seen.append("end")


def test_rows_that_hold_objects_keep_their_name_in_another_process(tmp_path: Path):
    class Held:
        pass

    def named(value) -> str:
        return trainer(tmp_path / "run", train_dataset=[{"prompt": "1 x", "n": 1, "held": value}] * 4).task.name

    assert named(Held()) == named(Held()) == named({"a", "b"}) != named("text")
    # the names that runs of earlier versions have
    rows = [{"prompt": "1 x", "n": 1, "parts": [2.5, None]}] * 4
    assert trainer(tmp_path / "run", train_dataset=rows).task.name == "records-0f35dbcbfd6f"


def finite(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history as files can hold it."""
    return [{name: value for name, value in line.items() if math.isfinite(value)} for line in history]


def test_a_callback_stops_training_and_a_resume_ends_as_an_undisturbed_run(trained: VAPOTrainer, tmp_path: Path):
    stopper = Stopper()
    args = config(tmp_path / "run", reward_weights=[1.0, 0.5])
    first = trainer(tmp_path / "run", args=args, callbacks=[stopper], eval_dataset=ROWS[:4])
    first.train()
    assert stopper.seen == ["begin", "log 0 True", "log 1 True", "end"]
    assert [line["step"] for line in first.metrics if line["phase"] == "train"] == [1]
    assert first.model.config.vocab_size == 16  # of the newest checkpoint
    again = trainer(tmp_path / "run", args=args, eval_dataset=ROWS[:4])
    again.train(resume_from_checkpoint=True)
    ours, theirs = (t.model.state_dict() for t in (again, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.log_history[:3] == finite(first.log_history)
    assert [line["step"] for line in again.log_history] == [0, 0, 1, 2, 2]
    faster = trainer(tmp_path / "run", args=config(tmp_path / "run", learning_rate=1.0), eval_dataset=ROWS[:4])
    with pytest.raises(ConfigError, match=r"learning_rate: 0.001 -> 1.0"):
        faster.train(resume_from_checkpoint=True)
    other = trainer(tmp_path / "run", args=args, train_dataset=[{"prompt": "9 x"}] * 4)
    with pytest.raises(ConfigError, match=r"was trained on the task 'records-"):
        other.train(resume_from_checkpoint=True)


def test_the_same_trainer_goes_on_after_a_callback_stopped_it(tmp_path: Path):
    stopper = Stopper()
    made = trainer(tmp_path / "run", callbacks=[stopper])
    made.train()
    made.train(resume_from_checkpoint=made.output_dir)
    assert [line["step"] for line in made.metrics if line["phase"] == "train"] == [1, 2]
    with pytest.raises(ConfigError, match="holds a run already"):
        made.train()
    with pytest.raises(ConfigError, match="a run goes on in its own folder from its newest checkpoint"):
        made.train(resume_from_checkpoint=tmp_path)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "run-start").mkdir()
    (tmp_path / "run-start" / "thesis.txt").write_text("3 years")
    with pytest.raises(ConfigError, match="run-start is there and not ours"):
        trainer(tmp_path / "run").train()
    assert (tmp_path / "run-start" / "thesis.txt").exists()


def test_a_reward_model_pads_with_its_tokenizers_token_and_leaves_that_tokenizer_alone():
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    judge = LlamaForSequenceClassification(LlamaConfig(num_attention_heads=2, num_labels=1, pad_token_id=None, **sizes))
    own = toys.tokenizer()
    own.pad_token = None
    reward = RewardModel(judge, own, "judge")
    together = reward(["1 x", "2 x"], [" 3", " 4 5 6"])
    alone = [reward([p], [c])[0] for p, c in (("1 x", " 3"), ("2 x", " 4 5 6"))]
    assert together == pytest.approx(alone, abs=1e-5)
    assert own.pad_token is None


def test_a_reward_model_a_coroutine_and_none(tmp_path: Path):
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    judge = LlamaForSequenceClassification(LlamaConfig(num_attention_heads=2, num_labels=1, **sizes))

    async def sometimes(completions, note, **kwargs):
        return [None if n % 2 else 1 for n in note]

    made = trainer(tmp_path / "run", reward_funcs=[judge, sometimes], args=config(tmp_path / "run", max_steps=2))
    made.train()
    line = made.metrics[-1]
    assert line["rewards/sometimes/mean"] == 1.0
    assert "rewards/LlamaForSequenceClassification/mean" in line
    assert line["verdict/invalid_ratio"] == 0


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
        ({"train_dataset": (row for row in ROWS)}, DataError, "train_dataset has no length"),
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


def test_arguments_without_effect_are_taken(tmp_path: Path):
    made = config(tmp_path, run_name="x", remove_unused_columns=False, disable_tqdm=True, push_to_hub=False, top_k=0)
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


def raises(completions, colour, **kwargs):
    return [0.0] * len(completions)


def gives_one(completions, **kwargs):
    return [1.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, r"raises raised TypeError: .*'colour'.* \(on the response '0' to the first row\)"),
        (gives_one, "gives_one gave 1 reward for 2 completions"),
        (lambda completions, **kwargs: [math.nan] * len(completions), "lambda gave nan, not a finite number"),
    ],
)
def test_a_broken_reward_function_is_noticed_before_weights_load(reward, message, tmp_path: Path):
    rows = [ROWS[0]] * 10
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", reward_funcs=reward, train_dataset=rows).train()
    assert not list(tmp_path.iterdir())


def test_the_trial_of_reward_functions_has_what_a_real_call_has(tmp_path: Path):
    seen = []

    def looks(prompts, completions, completion_ids, answer, **kwargs):
        seen.append((prompts, completions, completion_ids, answer))
        return [None] * len(prompts)

    made = trainer(tmp_path / "run", reward_funcs=looks, train_dataset=[ROWS[3]] * 10)
    made._try_rewards()
    ((prompts, completions, ids, answers),) = seen
    assert (prompts, completions, answers) == (["3 x"] * 2, ["3"] * 2, ["3"] * 2)
    assert ids == [[*toys.tokenizer()("3")["input_ids"], toys.tokenizer().eos_token_id]] * 2


class Told(TrainerCallback):
    """What callbacks are told, and with which model."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.models: set[int] = set()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.events.append("begin")
        self.models.add(id(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert isinstance(model, torch.nn.Module)
        self.models.add(id(model))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")


def test_callbacks_get_the_model_that_learns_and_no_word_of_training_that_could_not_begin(tmp_path: Path):
    told = Told()
    made = trainer(tmp_path / "run", callbacks=[told])
    made.train()
    assert told.events == ["begin", "end"]
    assert len(told.models) == 1
    with pytest.raises(ConfigError, match="holds a run already"):
        made.train()
    assert told.events == ["begin", "end"]


class Order(TrainerCallback):
    """The events in order, each with `state.global_step`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        for name in ("step_begin", "step_end", "log", "save", "evaluate"):
            setattr(self, f"on_{name}", partial(self._see, name))

    def _see(self, name, args, state, control, **kwargs):
        self.seen.append(f"{name} {state.global_step}")


def test_callbacks_are_called_in_the_order_of_a_step(tmp_path: Path):
    order = Order()
    trainer(tmp_path / "run", callbacks=[order], eval_dataset=ROWS[:4]).train()
    begin = order.seen.index("step_begin 0")
    assert "save 0" in order.seen[:begin]
    assert not [event for event in order.seen[:begin] if event.startswith("step")]
    assert order.seen[begin:] == [
        "step_begin 0", "step_end 1", "log 1", "save 1",
        "step_begin 1", "step_end 2", "log 2", "save 2", "evaluate 2", "save 2",
    ]  # fmt: skip


def test_early_stopping_ends_the_run_where_the_metric_does_not_improve(tmp_path: Path):
    def hopeless(completions, **kwargs):
        return [0.0] * len(completions)

    watched = {"metric_for_best_model": "avg", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 20}
    made = trainer(
        tmp_path / "run",
        args=config(tmp_path / "run", **watched),
        reward_funcs=[hopeless],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_dataset=ROWS[:4],
    )
    made.train()
    assert [line["step"] for line in made.metrics if line["phase"] == "train"] == [1, 2]  # of 10
    assert made.state.best_metric == 0.0
    resumed = CallbackObserver([], made.args, 10)
    resumed.begin(2, None, lambda: None)
    assert resumed.state.best_metric == 0.0
    assert resumed.state.log_history == finite(made.log_history)
    assert config(tmp_path, **watched).greater_is_better
    with pytest.raises(ConfigError, match="set eval_strategy='steps'"):
        config(tmp_path, metric_for_best_model="avg")
    with pytest.raises(ConfigError, match="does not take load_best_model_at_end: the last policy is the result"):
        config(tmp_path, load_best_model_at_end=True)


def test_alarms_and_errors_name_arguments(tmp_path: Path, capsys):
    def hopeless(completions, **kwargs):
        return [0.0] * len(completions)

    made = trainer(
        tmp_path / "run",
        reward_funcs=[hopeless],
        args=config(tmp_path / "run", settings={"guards": {"same_outcome_steps": 1, "action": "stop"}}),
    )
    with pytest.raises(DivergedError) as error:
        made.train()
    assert "settings['guards']['action']=stop" in str(error.value)
    assert "Look in the rollouts at what the reward functions (reward_funcs) are given" in str(error.value)
    assert "trainer.steps" not in capsys.readouterr().out


def test_the_doctor_speaks_of_a_trainers_run_in_arguments(tmp_path: Path, monkeypatch, capsys):
    # the verdicts of a run whose figures show that the policy moved too far and the critic explains nothing
    made = trainer(tmp_path / "run", args=config(tmp_path / "run", max_steps=12))
    made.train()
    log = tmp_path / "run" / "metrics.jsonl"
    bad = {"kl/update": 9.0, "value/explained_variance": 0.01}
    lines = [{**line, **bad} for line in made.metrics]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert vapo(monkeypatch, "doctor", str(tmp_path / "run")) == 0
    said = capsys.readouterr().out
    assert "a step too far" in said
    assert "lower learning_rate, or raise warmup_steps" in said
    assert "pretrain it longer (pretraining_steps), or raise critic_learning_rate" in said
    assert "trainer." not in said
    assert "vapo critic" not in said


def test_every_argument_of_the_table_is_one_and_every_setting_is_there():
    known = {f.name for f in dataclasses.fields(VAPOConfig)} | set(inspect.signature(VAPOTrainer).parameters)
    assert set(ARGUMENTS.values()) <= known
    of_tasks = {option.key.replace("task.NAME", "task") for option in task_options()}
    assert {name for name in ARGUMENTS if name not in all_settings()} <= {*of_tasks, "task.right_at", "task.verifier"}
    assert doctest.testmod(trainer_config).failed == 0
    resumed = in_arguments("Saved. Go on with: vapo resume 'my runs/one' --set trainer.steps=N")
    assert resumed == "Saved. Go on with: trainer.train(resume_from_checkpoint=True) with a larger max_steps"


def test_the_page_names_every_argument():
    page = (Path(__file__).parents[2] / "docs/trainer.md").read_text()
    names = [f.name for f in dataclasses.fields(VAPOConfig)]
    names += list(inspect.signature(VAPOTrainer).parameters)
    assert [name for name in names if f"`{name}" not in page] == []
