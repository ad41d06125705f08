"""Low-rank adapters: what is trained, what the sampler and the saved model get, and that they start as the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForTokenClassification, PreTrainedModel

import toys
from vapo.errors import CheckpointError, ConfigError
from vapo.models.backbone import checkpoint_gradients
from vapo.models.loading import load_policy, value_head
from vapo.models.lora import add_lora, has_lora, load_adapters, plain_weights, save_adapters
from vapo.models.networks import Policy, Sequences
from vapo.models.saving import save_model

SEQUENCES = Sequences((torch.tensor([2, 3, 4, 5, 6]), torch.tensor([7, 8, 9])), (3, 2))


def logp(model: PreTrainedModel) -> torch.Tensor:
    return Policy(model).logp(SEQUENCES, 3)[0].detach()


def adapted(seed: int = 0) -> PreTrainedModel:
    """A tiny model with adapters that have learned something."""
    model = toys.tiny_llama()
    torch.manual_seed(seed)
    add_lora(model, 2, None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def test_fresh_adapters_are_the_base_and_only_they_are_trained():
    base, model = toys.tiny_llama(), toys.tiny_llama()
    assert not has_lora(model)
    add_lora(model, 2, None)
    assert has_lora(model)
    torch.testing.assert_close(logp(model), logp(base))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # A and B of seven linear layers, in two blocks
    assert all(".lora_" in name for name in trained)
    policy = Policy(model)
    policy.logp(SEQUENCES, 3)[0].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_the_critics_head_is_trained_beside_them():
    config = toys.tiny_llama().config
    config.num_labels = 1
    model = LlamaForTokenClassification(config)
    add_lora(model, 2, 8.0, keep=value_head(model))
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n} == {
        "score.weight",
        "score.bias",
    }


def test_plain_weights_are_the_same_model_under_its_own_names(tmp_path: Path):
    model, plain = adapted(), toys.tiny_llama()
    before = logp(plain)
    weights = dict(plain_weights(model))
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    torch.testing.assert_close(logp(plain), logp(model), atol=1e-5, rtol=1e-5)
    assert (logp(plain) - before).abs().max() > 1e-3
    save_model(model, toys.tokenizer(), tmp_path)
    torch.testing.assert_close(logp(load_policy(tmp_path)), logp(plain))
    unadapted = toys.tiny_llama()
    assert {name for name, _ in plain_weights(unadapted)} == unadapted.state_dict().keys()


def test_adapters_go_back_onto_the_base_they_were_trained_on_and_no_other(tmp_path: Path):
    model = adapted()
    save_adapters(model, tmp_path / "a.safetensors")
    again = toys.tiny_llama()
    add_lora(again, 2, None)
    load_adapters(again, tmp_path / "a.safetensors")
    torch.testing.assert_close(logp(again), logp(model), rtol=0, atol=0)
    narrow = toys.tiny_llama()
    add_lora(narrow, 1, None)
    with pytest.raises(CheckpointError, match="another shape"):
        load_adapters(narrow, tmp_path / "a.safetensors")
    other = toys.tiny_llama(seed=1)
    add_lora(other, 2, None)
    with pytest.raises(CheckpointError, match="other base weights"):
        load_adapters(other, tmp_path / "a.safetensors")


def test_a_model_without_linear_layers_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16))
    with pytest.raises(ConfigError, match="no linear layers"):
        add_lora(model, 2, None)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_gradients_are_the_same_and_dropout_stays_off(lora):
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = toys.tiny_llama(attention_dropout=0.5)
        torch.manual_seed(0)
        if lora:
            add_lora(model, 2, None)
        if checkpointed:
            checkpoint_gradients(model)
            assert model.training
        Policy(model).logp(SEQUENCES, 3)[0].sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name])
