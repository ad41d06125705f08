"""Low-rank adapters: what is trained, what the sampler and the saved model get, and that they start as the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForTokenClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)

import architectures
import toys
from vapo.errors import CheckpointError, ConfigError, ModelError
from vapo.models.backbone import checkpoint_gradients
from vapo.models.critic_notes import value_head
from vapo.models.loading import load_critic, load_policy
from vapo.models.lora import (
    adapter_parameters,
    add_lora,
    has_lora,
    load_adapters,
    peft_opens,
    plain_weights,
    save_adapters,
    share_frozen,
)
from vapo.models.networks import Policy, Sequences
from vapo.models.saving import load_trained, save_model, save_trained
from vapo.models.tokens import load_tokenizer

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


def test_new_adapters_do_not_change_outputs_and_only_they_are_trained():
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


def test_the_critics_head_is_trained_with_the_adapters():
    config = toys.tiny_llama().config
    config.num_labels = 1
    model = LlamaForTokenClassification(config)
    add_lora(model, 2, 8.0, keep=value_head(model))
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n} == {
        "score.weight",
        "score.bias",
    }


def test_plain_weights_give_the_same_model_with_its_original_names(tmp_path: Path):
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


def test_adapters_load_onto_their_base_and_raise_for_another(tmp_path: Path):
    model = adapted()
    save_adapters(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    again = toys.tiny_llama()
    add_lora(again, 2, None)
    load_adapters(again, file)
    torch.testing.assert_close(logp(again), logp(model), rtol=0, atol=0)
    narrow = toys.tiny_llama()
    add_lora(narrow, 1, None)
    with pytest.raises(CheckpointError, match="another shape"):
        load_adapters(narrow, file)
    other = toys.tiny_llama(seed=1)
    add_lora(other, 2, None)
    with pytest.raises(CheckpointError, match="other base weights"):
        load_adapters(other, file)


def trained_network(base: Path, critic: bool, seed: int = 0) -> PreTrainedModel:
    """A policy, or a critic, on the base in a folder, with adapters (and a head) that have learned something."""
    torch.manual_seed(seed)
    model = load_critic(base)[0] if critic else load_policy(base)
    add_lora(model, 2, 3.0, keep=value_head(model) if critic else None)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.normal_(std=0.3)
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 12)[None]).logits


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_peft_loads_the_folder_with_the_merged_models_outputs(tmp_path: Path, critic: bool):
    base = toys.toy_base(tmp_path / "base")
    model = trained_network(base, critic)
    save_adapters(model, tmp_path / "adapter")
    assert peft_opens(model, tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    save_model(model, None, tmp_path / "merged")
    kind, labels = (AutoModelForTokenClassification, {"num_labels": 1}) if critic else (AutoModelForCausalLM, {})
    plain = kind.from_pretrained(base, dtype=torch.float32, **labels).eval()
    before = outputs(plain)
    merged = outputs(kind.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval())
    opened = outputs(PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval())
    torch.testing.assert_close(opened, merged, atol=1e-5, rtol=0)
    assert (opened - before).abs().max() > 1e-2


def test_peft_opens_is_false_if_peft_would_adapt_other_layers(tmp_path: Path):
    # told that this is DeepSeek-V3, peft puts the adapters of dense blocks onto the experts
    base = architectures.folder_of(architectures.tiny("deepseek_v3"), tmp_path / "base")
    model = trained_network(base, critic=False)
    save_adapters(model, tmp_path / "adapter")
    assert not peft_opens(model, tmp_path / "adapter")
    assert same_weights(load_policy(tmp_path / "adapter"), dict(plain_weights(model)))


def same_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("critic", [False, True])
def test_a_folder_of_adapters_loads_as_the_merged_model(tmp_path: Path, critic: bool):
    base = toys.toy_base(tmp_path / "base")
    model = trained_network(base, critic)
    save_adapters(model, tmp_path / "adapter")
    loaded = load_critic(tmp_path / "adapter")[0] if critic else load_policy(tmp_path / "adapter")
    assert same_weights(loaded, dict(plain_weights(model)))
    assert load_tokenizer(tmp_path / "adapter").get_vocab() == toys.tokenizer().get_vocab()
    wrong = load_policy if critic else load_critic
    with pytest.raises(ModelError, match="Give the other network's folder"):
        wrong(tmp_path / "adapter")
    save_model(toys.tiny_llama(seed=1), toys.tokenizer(), base)
    with pytest.raises(ModelError, match="other weights than those of its base"):
        load_critic(tmp_path / "adapter") if critic else load_policy(tmp_path / "adapter")


def test_unreadable_adapters_raise_an_error_with_the_reason(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    save_adapters(trained_network(base, critic=False), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"use_dora": True}, "not plain LoRA .*use_dora"),
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "holds adapters only, and their base model .*gone"),
        ({"base_model_name_or_path": ""}, "not named"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ModelError, match=message):
            load_policy(tmp_path / "adapter")
    path.write_text("{")
    with pytest.raises(ModelError, match="Cannot read"):
        load_policy(tmp_path / "adapter")
    path.write_text(json.dumps(content))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks adapter_model\.safetensors"):
        load_policy(tmp_path / "adapter")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("critic", [False, True])
def test_a_folder_that_lacks_the_adapter_of_a_layer_is_refused_by_name(tmp_path: Path, critic: bool, ends: bool):
    base = toys.toy_base(tmp_path / "base")
    save_adapters(trained_network(base, critic), folder := tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    if ends:  # as peft itself writes them
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in config["target_modules"]})
        (folder / "adapter_config.json").write_text(json.dumps(config))
    load = load_critic if critic else load_policy
    load(folder)
    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata, kept = file.metadata(), {name: file.get_tensor(name) for name in file.keys() if "up_proj" not in name}  # noqa: SIM118
    save_file(kept, path, metadata=metadata)
    with pytest.raises(ModelError, match=r"lacks the adapter of model\.layers\.0\.mlp\.up_proj.* damaged"):
        load(folder)


def test_adapters_saved_in_formats_1_and_2_can_be_loaded(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    model = trained_network(base, critic=False)
    save_adapters(model, tmp_path / "new")
    with safe_open(tmp_path / "new" / "adapter_model.safetensors", "pt") as file:
        digest = file.metadata()
    save_model(model, None, tmp_path / "policy")
    own = {name: p.detach() for name, p in adapter_parameters(model).items()}
    save_file(own, tmp_path / "policy_adapters.safetensors", metadata=digest)
    again = trained_network(base, critic=False, seed=1)
    load_trained(again, tmp_path / "policy")
    assert all(torch.equal(p, own[name]) for name, p in adapter_parameters(again).items())


def test_loading_adapters_as_whole_weights_or_the_reverse_raises(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    model = trained_network(base, critic=False)
    save_trained(model, None, tmp_path / "policy")
    with pytest.raises(CheckpointError, match="holds adapters, but this run trains all weights"):
        load_trained(toys.tiny_llama(), tmp_path / "policy")
    with pytest.raises(CheckpointError, match="holds no adapters"):
        load_trained(model, base)


def test_adapters_on_a_model_without_linear_layers_raise():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16))
    with pytest.raises(ConfigError, match="no linear layers"):
        add_lora(model, 2, None)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_gradients_are_equal_and_dropout_is_off(lora):
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = toys.tiny_llama(attention_dropout=0.5)
        torch.manual_seed(0)
        if lora:
            add_lora(model, 2, None)
        if checkpointed:
            checkpoint_gradients(model)
            assert all(layer.training for layer in model.model.layers)
        Policy(model).logp(SEQUENCES, 3)[0].sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name])


EXPERTS = {"num_local_experts": 4, "intermediate_size": 32, "num_key_value_heads": 2, "router_jitter_noise": 0.5}
NOISY = {
    "a router's noise": (MixtralForCausalLM, MixtralConfig, EXPERTS),
    "a router that samples": (PhimoeForCausalLM, PhimoeConfig, EXPERTS),
    "dropout in the configuration": (FalconForCausalLM, FalconConfig, {"hidden_dropout": 0.5}),
}


@pytest.mark.parametrize("noise", NOISY)
def test_checkpointed_passes_have_no_noise_of_training_mode(noise: str):
    kind, config, special = NOISY[noise]
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = kind(config(**sizes, **special)).eval()
    policy, saved = Policy(model, "padded"), model.config.to_dict()
    plain = policy.logp(SEQUENCES, 3)[0].detach()
    checkpoint_gradients(model)
    torch.testing.assert_close(policy.logp(SEQUENCES, 3)[0], plain)
    policy.logp(SEQUENCES, 3)[0].sum().backward()
    assert model.config.to_dict() == saved


# --------------------------------------------------------------------------- one base for two networks


def two_on_one_base(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    base = toys.toy_base(folder)
    policy, (critic, _) = load_policy(base), load_critic(base)
    add_lora(policy, 2, None)
    add_lora(critic, 3, None, keep=value_head(critic))
    return policy, critic


def test_two_networks_with_adapters_keep_the_base_once(tmp_path: Path):
    policy, critic = two_on_one_base(tmp_path)
    values = critic(SEQUENCES.tokens[0][None]).logits
    freed = share_frozen(critic, policy)
    theirs = {name: p for name, p in policy.model.named_parameters() if ".lora_" not in name}
    ours = {name: p for name, p in critic.model.named_parameters() if ".lora_" not in name}
    assert ours.keys() == theirs.keys()
    assert all(p.data_ptr() == theirs[name].data_ptr() for name, p in ours.items())
    assert freed == 4 * sum(p.numel() for p in theirs.values())
    assert torch.equal(critic(SEQUENCES.tokens[0][None]).logits, values)
    own = {name: p for name, p in critic.named_parameters() if p.requires_grad}
    assert not {p.data_ptr() for p in own.values()} & {p.data_ptr() for p in policy.parameters()}


def test_a_weight_that_differs_or_is_trained_is_not_shared(tmp_path: Path):
    policy, critic = two_on_one_base(tmp_path)
    with torch.no_grad():
        critic.model.norm.weight[0] += 1
    policy.model.embed_tokens.weight.requires_grad_(True)
    assert share_frozen(critic, policy) > 0
    for name in ("norm", "embed_tokens"):
        one, other = (getattr(model.model, name).weight for model in (critic, policy))
        assert one.data_ptr() != other.data_ptr(), name
    plain = load_policy(tmp_path)
    assert share_frozen(critic, plain) == 0
    assert share_frozen(plain, policy) == 0
