"""`VAPOTrainer`: a script for GRPOTrainer with the class name changed, on objects in memory."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import torch
from trainer_toys import ROWS, config, trainer
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerCallback,
)

import toys
from command_line import vapo
from vapo import VAPOTrainer
from vapo.api.callbacks import CallbackObserver
from vapo.errors import ConfigError, DivergedError
from vapo.models.reward_model import RewardModel
from vapo.models.saving import save_model


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

        def upload_folder(self, *, repo_id, folder_path, commit_message, **options):
            calls.append((repo_id, Path(folder_path).name, commit_message, options))
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})()

        def run_as_future(self, work):
            done = Future()
            done.set_result(work())
            return done

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert trained.push_to_hub() == "https://hub/commit/1"
    assert calls == [None, ("run", {"private": None, "exist_ok": True}), ("me/run", "policy", "End of training", {})]
    calls.clear()
    pushed = trained.push_to_hub(
        "More", blocking=False, token="mine", revision="next", private=True, dataset_name="digits", tags=["vapo"]
    )
    assert isinstance(pushed, Future)
    assert pushed.result() == "https://hub/commit/1"
    created, uploaded = ("run", {"private": True, "exist_ok": True}), ("me/run", "policy", "More", {"revision": "next"})
    assert calls == ["mine", created, uploaded]
    calls.clear()
    with pytest.raises(ConfigError, match="push_to_hub has no argument comit_message"):
        trained.push_to_hub(comit_message="?")
    assert not calls


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


def test_a_reward_model_reads_with_the_tokenizer_given_then_its_own_then_the_policys(tmp_path: Path):
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    judge = LlamaForSequenceClassification(LlamaConfig(num_attention_heads=2, num_labels=1, **sizes))
    own, given = toys.tokenizer(), toys.tokenizer()
    own.chat_template, given.chat_template = "own", "given"
    save_model(judge, own, tmp_path / "judge")
    beside = LlamaForSequenceClassification.from_pretrained(tmp_path / "judge")
    path = str(tmp_path / "judge")
    made = trainer(
        tmp_path / "run", reward_funcs=[path, path, beside, judge], reward_processing_classes=[given, *[None] * 3]
    )
    templates = [reward.tokenizer.chat_template for reward in made.task.rewards.functions]
    assert templates == ["given", "own", "own", toys.tokenizer().chat_template]
    (note,) = [note for note in made.task.notes if "reads with the policy's tokenizer" in note]
    assert "LlamaForSequenceClassification" in note


def test_code_of_a_model_is_trusted_where_its_tokenizer_is_read(tmp_path: Path, monkeypatch):
    trusted = []

    def read(source, *, trust_remote_code=False):
        trusted.append(trust_remote_code)
        return toys.tokenizer()

    for where in ("load_tokenizer", "read_tokenizer"):
        monkeypatch.setattr(f"vapo.api.trainer_arguments.{where}", read)
    folder = str(toys.toy_base(tmp_path / "base"))
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    judge = LlamaForSequenceClassification(LlamaConfig(num_attention_heads=2, num_labels=1, **sizes))
    judge.config.name_or_path = folder
    for trust in (True, False):
        args = config(tmp_path / "run", trust_remote_code=trust)
        trainer(tmp_path / "run", model=folder, processing_class=None, args=args, reward_funcs=judge)
    assert trusted == [True, True, False, False]


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
        (lambda completions, **kwargs: [10**400] * len(completions), "lambda gave nan, not a finite number"),
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
