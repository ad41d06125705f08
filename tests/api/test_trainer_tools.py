"""TRL's `tools` and `environment_factory` through `VAPOTrainer`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import trainer_toys
from tool_files import Counter, add, wait

import toys
from chat_toys import CALL, TEMPLATE, chat_tokenizer
from vapo import VAPOConfig, VAPOTrainer
from vapo.errors import ConfigError
from vapo.session.inputs import read_inputs

ROWS = [{"prompt": [{"role": "user", "content": f"{i % 6} ready"}], "start": i % 3} for i in range(20)]


def config(folder: Path, **more) -> VAPOConfig:
    return trainer_toys.config(folder, **{"max_completion_length": 24, "max_tool_calling_iterations": 3, **more})


def trainer(folder: Path, **more) -> VAPOTrainer:
    given = {
        "model": toys.tiny_llama(max_position_embeddings=128), "args": config(folder),
        "train_dataset": ROWS, "processing_class": chat_tokenizer(),
    }  # fmt: skip
    return VAPOTrainer(**{**given, **more})


def rollouts(folder: Path) -> list[dict]:
    found = []
    for path in sorted((folder / "rollouts").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            found += [json.loads(line) for line in file]
    return found


@pytest.mark.slow
def test_an_environment_of_trl_trains_and_gives_the_reward(tmp_path: Path):
    seen = []

    def called(completions, environments, **kwargs):
        seen.extend(zip(completions, environments, strict=True))
        return [float(any("tool_calls" in message for message in messages)) for messages in completions]

    made = trainer(tmp_path / "run", reward_funcs=called, environment_factory=Counter)
    metrics = made.train()
    assert {"rewards/called/mean", "rewards/Counter/mean", "turns/mean"} <= metrics.keys()
    for messages, environment in seen:
        assert environment.get_reward() == float(environment.count >= 3)
        assert messages[0]["role"] == "assistant"
    assert any(message["role"] == "tool" for messages, _ in seen for message in messages)
    # the text of reset ends the user's message, and the schemas stand before it
    (first, *_) = rollouts(tmp_path / "run")
    assert first["prompt"][-1]["content"].endswith((" ready 0", " ready 1", " ready 2"))
    assert any("environment" in dict(line["turns"]) for line in rollouts(tmp_path / "run"))
    assert 0 <= made.evaluate()["eval_avg"] <= 1
    made.task.close()


@pytest.mark.slow
def test_tools_that_hang_do_not_stop_the_trainer(tmp_path: Path):
    def called(completions, **kwargs):
        return [float(len(messages) > 1) for messages in completions]

    args = config(tmp_path / "run", tool_timeout_s=0.2)
    made = trainer(tmp_path / "run", reward_funcs=called, tools=[add, wait], args=args)
    metrics = made.train()
    assert metrics["verdict/invalid_ratio"] == 0
    texts = ["".join(line["tokens"]) for line in rollouts(tmp_path / "run")]
    assert any(CALL in text for text in texts)
    made.task.close()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"environment_factory": {"a": Counter}}, "does not take environment_factory: one environment is taken"),
        ({"environment_factory": Counter()}, "environment_factory holds a Counter"),
        ({"tools": ["add"], "reward_funcs": len}, "tools holds a str"),
        ({"tools": [lambda x: x], "reward_funcs": len}, "cannot be described to the model"),
        ({"tools": [add]}, "reward_funcs is empty"),
    ],
)
def test_what_is_no_tool_is_refused_at_once(tmp_path: Path, more: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", **more)


@pytest.mark.parametrize(
    ("template", "rows", "message"),
    [
        (None, ROWS, "Tools are told to the model by its chat template"),
        (TEMPLATE, [{"prompt": "3 ready"}] * 20, "Tools are told to the model by its chat template"),
        (TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'tool'"), ROWS, "leaves out a message"),
    ],
)
def test_models_that_cannot_be_told_of_tools_are_refused_by_name(template, rows, message, tmp_path: Path):
    made = trainer(
        tmp_path / "run", tools=[add], reward_funcs=len, train_dataset=rows, processing_class=chat_tokenizer(template)
    )
    with pytest.raises(ConfigError, match=message):
        made.train()
    made.task.close()


@pytest.mark.parametrize(("template", "noted"), [(TEMPLATE, False), (TEMPLATE.replace("if tools", "if false"), True)])
def test_a_template_without_a_place_for_tools_is_noted_before_the_run(template, noted, tmp_path: Path):
    made = trainer(tmp_path / "run", tools=[add], reward_funcs=len, processing_class=chat_tokenizer(template))
    made._keep_start()
    try:
        notes = read_inputs(made.config, made.task).notes
    finally:
        made.task.close()
    assert any("no place for tools" in note for note in notes) == noted
