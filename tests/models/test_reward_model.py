"""A reward model from a folder: all of its weights, and conversations that its chat template takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

import architectures
import toys
from vapo.algo.method import BoundedHead
from vapo.errors import ConfigError, ModelError
from vapo.models.critic_notes import PRIVILEGED, ValueAt, set_value_at, value_head
from vapo.models.loading import load_critic
from vapo.models.networks import Critic, Sequences
from vapo.models.reward_model import RewardModel
from vapo.models.saving import save_model


def saved(folder: Path, *, labels: int = 1, without: str = "") -> str:
    """A folder with a reward model, perhaps of several labels, perhaps without one of its tensors."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    model = LlamaForSequenceClassification(LlamaConfig(num_attention_heads=2, num_labels=labels, **sizes))
    save_model(model, toys.tokenizer(), folder)
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name != without}
    save_file(tensors, path, metadata={"format": "pt"})
    architectures.shift_data(path, 24)
    return str(folder)


def test_a_reward_model_whose_config_forgets_its_one_label_is_loaded(tmp_path: Path):
    folder = saved(tmp_path / "judge")
    path = tmp_path / "judge" / "config.json"
    told = {key: value for key, value in json.loads(path.read_text()).items() if "label" not in key}
    path.write_text(json.dumps(told))
    assert AutoConfig.from_pretrained(folder).num_labels == 2  # transformers' default
    assert RewardModel.load(folder)(["1 x"], ["3"])
    assert "head included" in load_critic(folder)[1]


@pytest.mark.parametrize("name", ["score.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_reward_model_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, name: str):
    with pytest.raises(ModelError, match=f"lacks tensors of LlamaForSequenceClassification, .* random: {name}"):
        RewardModel.load(saved(tmp_path / "judge", without=name))


def test_a_policy_and_a_classifier_of_two_labels_are_no_reward_models(tmp_path: Path):
    with pytest.raises(ModelError, match=r"would stay random: score\.weight"):
        RewardModel.load(str(toys.toy_base(tmp_path / "policy")))
    two = saved(tmp_path / "two", labels=2)
    for load in (RewardModel.load, load_critic):
        with pytest.raises(ModelError, match="holds a classifier of 2 labels, and a reward or a value is one number"):
            load(two)


def test_the_weights_are_in_memory_allocated_by_torch(tmp_path: Path):
    # as those of policy and critic: a mapped file's alignment would decide the last bit of a reward
    reward = RewardModel.load(saved(tmp_path / "judge"))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in reward.model.parameters())
    assert reward.__name__ == "judge"
    assert len(reward(["1 x", "2 x"], ["3", "4"])) == 2


def test_a_tokenizer_that_is_given_takes_the_place_of_the_one_in_the_folder(tmp_path: Path):
    given = toys.tokenizer()
    given.chat_template = "given"
    assert RewardModel.load(saved(tmp_path / "judge"), given).tokenizer.chat_template == "given"


def test_a_conversation_that_the_template_refuses_is_an_error_with_its_words(tmp_path: Path):
    reward = RewardModel.load(saved(tmp_path / "judge"))
    reward.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    talk = ([{"role": "user", "content": "1"}], [{"role": "assistant", "content": "2"}])
    with pytest.raises(ConfigError, match="refuses a conversation for judge: System role not supported"):
        reward([talk[0]], [talk[1]])


def saved_critic(folder: Path, at: ValueAt) -> tuple[str, PreTrainedModel]:
    model, _ = load_critic(toys.toy_base(folder / "base"), head=BoundedHead(low=0.0, high=1.0))
    torch.manual_seed(0)
    torch.nn.init.normal_(value_head(model).weight)
    set_value_at(model, at)
    save_model(model, toys.tokenizer(), folder / "critic")
    return str(folder / "critic"), model


def test_a_critic_that_was_trained_as_a_reward_model_gives_its_value_after_the_last_token(tmp_path: Path):
    folder, critic = saved_critic(tmp_path, "end")
    rewards = RewardModel.load(folder)(["1 x ", "2 x "], ["3", "4 5 6"])
    rows = tuple(torch.tensor(toys.tokenizer()(text)["input_ids"]) for text in ("1 x 3", "2 x 4 5 6"))
    values = Critic(critic, head=BoundedHead(low=0.0, high=1.0)).final_values(Sequences(rows, (1, 3)))
    assert rewards == pytest.approx(values.tolist(), abs=1e-5)


def test_a_critic_with_a_column_of_its_own_is_no_reward_model(tmp_path: Path):
    folder, _ = saved_critic(tmp_path, "end")
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), PRIVILEGED: "answer"}))
    with pytest.raises(ModelError, match="also reads the column 'answer', which a reward model is not given"):
        RewardModel.load(folder)


def test_a_critic_of_unfinished_responses_is_no_reward_model(tmp_path: Path):
    with pytest.raises(ModelError, match="holds a critic of unfinished responses"):
        RewardModel.load(saved_critic(tmp_path, "tokens")[0])


@pytest.mark.parametrize("own", [None, 1, 0])
def test_a_text_that_ends_with_the_end_token_is_read_to_its_end_without_a_token_for_padding(tmp_path: Path, own):
    folder = saved(tmp_path / "judge")
    reward, tokenizer = RewardModel.load(folder), toys.tokenizer()
    texts = ["1 x 3 <eos>", "2 x 4 5 6 <eos>"]
    expected = reward(texts, ["", ""])  # with a token for padding
    tokenizer.pad_token = None
    judge = LlamaForSequenceClassification.from_pretrained(folder)
    judge.config.pad_token_id = own
    assert RewardModel(judge, tokenizer, "judge")(texts, ["", ""]) == pytest.approx(expected, abs=1e-5)
