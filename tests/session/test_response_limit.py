"""The response limit where the model's context is short: lowered in an evaluation if nobody chose it, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Phi3Config

import toys
from vapo.errors import ConfigError
from vapo.rollout.engine_settings import TorchEngineSettings
from vapo.session.inputs import Inputs, read_inputs
from vapo.session.lifecycle import with_task
from vapo.session.rendered_prompts import RenderedPrompts
from vapo.session.sampling_room import sampling_room
from vapo.types import Prompt

CONTEXT = 64  # of the tiny model; each prompt of the echo task has 2 tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


class LongTask(toys.EchoTask):
    max_response_tokens = 500


def inputs_of(base: Path, task: Any, *layers: dict[str, Any], to_train: bool) -> Inputs:
    config = with_task(toys.toy_config(base, *layers), task)
    return read_inputs(config, task, to_train=to_train)


def test_an_evaluation_lowers_a_limit_that_nobody_chose_and_says_so(base: Path):
    inputs = inputs_of(base, LongTask(), to_train=False)
    assert inputs.decoding.max_tokens == CONTEXT - 2
    assert len(inputs.heldout_prompts) == 8
    (note,) = inputs.notes
    assert note == (
        "responses are limited to 62 tokens: with the 500 of the task echo they would exceed the model's context of 64"
    )


def test_an_evaluation_keeps_a_limit_that_fits(base: Path):
    inputs = inputs_of(base, toys.EchoTask(), to_train=False)
    assert (inputs.decoding.max_tokens, inputs.notes) == (8, ())
    chosen = {"rollout": {"max_response_tokens": CONTEXT - 2}}
    assert inputs_of(base, LongTask(), chosen, to_train=False).decoding.max_tokens == CONTEXT - 2


@pytest.mark.parametrize("to_train", [True, False])
def test_a_limit_that_was_chosen_and_is_too_large_is_blamed_with_its_place(base: Path, to_train: bool):
    with pytest.raises(
        ConfigError,
        match=r"With rollout.max_response_tokens=63 \(test\), prompts of up to 2 tokens .* exceed the model's context "
        r"of 64. Set rollout.max_response_tokens to 62 or less",
    ):
        inputs_of(base, LongTask(), {"rollout": {"max_response_tokens": 63}}, to_train=to_train)


def test_the_context_of_the_engine_is_the_limit_where_it_is_less(base: Path):
    engine = {"rollout": {"engine": {"kind": "vllm", "context": 40}}}
    (note,) = inputs_of(base, LongTask(), engine, to_train=False).notes
    assert note.endswith(
        "limited to 38 tokens: with the 500 of the task echo they would exceed rollout.engine.context of 40"
    )
    task = toys.EchoTask()
    task.heldout = [Prompt("long", " ".join("x" * 41), 1)]
    with pytest.raises(ConfigError, match=r"rollout.engine.context is 40 tokens.*or raise rollout.engine.context"):
        _ = inputs_of(base, task, engine, to_train=False).heldout_prompts[0]


def test_a_model_with_long_rope_is_sampled_within_its_original_context():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    shape = {"hidden_size": 64, "num_attention_heads": 4, "original_max_position_embeddings": 32, "pad_token_id": 0}
    config = Phi3Config(max_position_embeddings=64, rope_parameters=rope, **shape)
    room = sampling_room(config, TorchEngineSettings())
    assert room is not None
    assert (room.tokens, room.name) == (32, "the model's original_max_position_embeddings")


def test_training_never_lowers_the_limit_of_a_task(base: Path):
    with pytest.raises(ConfigError, match=r"With the response limit of the task echo, 500 tokens, .* to 62 or less"):
        inputs_of(base, LongTask(), to_train=True)


def test_prompts_that_alone_fill_the_context_are_blamed_themselves(base: Path):
    task = toys.EchoTask()
    task.heldout = [Prompt("long", " ".join("x" * 70), 1)]
    with pytest.raises(
        ConfigError, match=r"1 of 1 prompt is too long, first long with 70 tokens: .*Shorten the prompts"
    ):
        _ = inputs_of(base, task, to_train=False).heldout_prompts[0]


def prompts(*lengths: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"p{i}", "x", token_ids=(2,) * n) for i, n in enumerate(lengths))


def fitting_limit(prompts: Any, limit: int) -> int | None:
    return RenderedPrompts(prompts, lambda prompt: prompt).fitting_limit(limit, context=20)


def test_the_limit_that_fits_leaves_room_for_99_of_100_prompts():
    assert fitting_limit(prompts(*[3] * 99, 9), 17) is None  # the one of 9 is left out
    assert fitting_limit(prompts(*[3] * 98, 9, 9), 17) == 11
    assert fitting_limit(prompts(*[3] * 98, 9, 9), 11) is None


def test_a_set_that_makes_prompts_on_access_needs_room_for_one_of_them():
    assert fitting_limit(list(prompts(3, 9)), 17) is None  # the next that fits takes the place of the longer one
    assert fitting_limit(list(prompts(3, 9)), 18) == 11
