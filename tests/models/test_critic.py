"""Critics of architectures without a classifier in transformers, and of other vocabularies than the policy's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedModel

import toys
from vapo.errors import ConfigError, ModelError
from vapo.models.backbone import backbone_of, hidden_states
from vapo.models.critic import known_ids
from vapo.models.critic_notes import value_head
from vapo.models.loading import load_critic, load_policy
from vapo.models.lora import adapter_parameters, add_lora, plain_weights, save_adapters
from vapo.models.networks import Critic, Policy, Sequences, choose_layout, logits_head
from vapo.models.saving import load_trained, save_model, save_trained
from vapo.session.inputs import check_vocabularies

SIZES = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.2}
GROUPED = {**SIZES, **SPECIAL, "num_key_value_heads": 1, "head_dim": 16}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 2}
UNCLASSIFIED = {
    "Granite": ("GraniteConfig", {**GROUPED, "logits_scaling": 8.0}),
    "Cohere2": ("Cohere2Config", {**GROUPED, "logit_scale": 0.25, "sliding_window": 4}),
    "Cohere": ("CohereConfig", {**GROUPED, "logit_scale": 0.25}),
    "XGLM": ("XGLMConfig", {"vocab_size": 16, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 2}),
    "CodeGen": ("CodeGenConfig", {"vocab_size": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "Mamba": ("MambaConfig", {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "Lfm2": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "Olmoe": ("OlmoeConfig", {**GROUPED, **ROUTED}),
    "Llama4": (
        "Llama4TextConfig",
        {**GROUPED, **ROUTED, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    ),
}
SEQUENCES = Sequences((torch.arange(3, 15), torch.tensor([7, 8, 9, 15])), (6, 2))


def policy_of(name: str) -> PreTrainedModel:
    config, settings = UNCLASSIFIED[name]
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config)(**{**SPECIAL, **settings})).eval()


def values(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return Critic(model, choose_layout(model)).values(SEQUENCES, 6)


@pytest.mark.parametrize("name", UNCLASSIFIED)
def test_a_critic_of_an_architecture_without_a_classifier_is_saved_and_loaded_bit_for_bit(tmp_path: Path, name: str):
    policy = policy_of(name)
    save_model(policy, None, tmp_path / "base")
    critic, origin = load_critic(tmp_path / "base")
    assert "value head set to 0" in origin
    assert (values(critic) == 0).all()
    whole = hidden_states(policy, SEQUENCES.tokens, "padded")
    assert torch.equal(hidden_states(critic, SEQUENCES.tokens, "padded"), whole)

    torch.nn.init.normal_(value_head(critic).weight)
    save_model(critic, toys.tokenizer(), tmp_path / "critic")
    again, origin = load_critic(tmp_path / "critic")
    assert origin.startswith(f"saved critic {name}")
    assert torch.equal(values(again), values(critic))
    assert values(again).abs().max() > 0.1


def test_transformers_loads_the_backbone_of_such_a_critic(tmp_path: Path):
    save_model(policy_of("Granite"), None, tmp_path / "base")
    critic, _ = load_critic(tmp_path / "base")
    torch.nn.init.normal_(value_head(critic).weight)
    save_model(critic, toys.tokenizer(), tmp_path / "critic")

    backbone = AutoModel.from_pretrained(tmp_path / "critic")
    head = load_file(tmp_path / "critic" / "model.safetensors")
    with torch.no_grad():
        states = backbone(input_ids=SEQUENCES.tokens[0][None]).last_hidden_state[0]
        own = states @ head["score.weight"][0] + head["score.bias"]
    torch.testing.assert_close(values(critic)[0], own[-7:-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Granite", "Llama4"])
def test_adapters_on_such_a_critic_are_trained_with_its_head_and_loaded_again(tmp_path: Path, name: str):
    save_model(policy_of(name), None, tmp_path / "base")
    critics = []
    for _ in range(2):
        critic, _ = load_critic(tmp_path / "base")
        add_lora(critic, 2, None, keep=value_head(critic))
        critics.append(critic)
    trained = {n for n, p in critics[0].named_parameters() if p.requires_grad and ".lora_" not in n}
    assert trained == {"score.weight", "score.bias"}
    with torch.no_grad():
        for parameter in critics[0].parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    save_trained(critics[0], None, tmp_path / "critic")
    load_trained(critics[1], tmp_path / "critic")
    assert torch.equal(values(critics[1]), values(critics[0]))
    merged, _ = load_critic(tmp_path / "critic")
    torch.testing.assert_close(values(merged), values(critics[0]), atol=1e-4, rtol=1e-4)


def test_the_classifier_of_transformers_is_used_if_there_is_one(tmp_path: Path):
    toys.toy_base(tmp_path)
    critic, _ = load_critic(tmp_path)
    assert type(critic) is transformers.LlamaForTokenClassification


def test_the_backbone_is_found_with_a_wrong_prefix_and_without_a_head():
    model = policy_of("Llama4")
    assert model.base_model is model
    assert backbone_of(model) is model.model
    bare = transformers.LlamaModel(toys.tiny_llama().config)
    assert backbone_of(bare) is bare


@pytest.mark.parametrize("name", UNCLASSIFIED)
def test_padding_does_not_change_log_probabilities(name: str):
    model = policy_of(name)
    with torch.no_grad():
        together, _ = Policy(model, choose_layout(model)).logp(SEQUENCES, 6)
        own = model(input_ids=SEQUENCES.tokens[1][None], use_cache=False).logits[0].log_softmax(-1)
    expected = own[1:3].gather(-1, SEQUENCES.tokens[1][2:, None])[:, 0]
    torch.testing.assert_close(together[1, :2], expected, atol=1e-5, rtol=1e-5)


def test_layers_that_would_mix_packed_sequences_are_not_packed():
    assert choose_layout(policy_of("Lfm2")) == "padded"  # a convolution
    assert choose_layout(policy_of("Mamba")) == "padded"  # a recurrence
    wide = policy_of("Llama4")
    wide.config.attention_chunk_size = 10_000  # no short probe could see it
    assert choose_layout(wide) == "padded"


@pytest.mark.parametrize(
    ("name", "settings"),
    [("Qwen2Moe", {**ROUTED, "shared_expert_intermediate_size": 16}), ("Phimoe", ROUTED), ("Doge", {})],
)
def test_a_window_that_only_the_mask_applies_is_not_packed(name: str, settings: dict):
    for window in (24, None):  # longer than a short probe
        sliding = {"sliding_window": window, "max_position_embeddings": 64}
        if name == "Qwen2Moe":
            sliding = {**sliding, "use_sliding_window": window is not None}
        config = getattr(transformers, f"{name}Config")(**GROUPED, **settings, **sliding)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        assert choose_layout(model) == ("packed" if window is None else "padded")


def test_an_exception_of_an_architecture_becomes_a_model_error():
    model = toys.tiny_llama()

    def broken(*args, **how):
        raise AttributeError("'Output' has no 'states'")

    model.model.forward = broken
    with pytest.raises(ModelError, match=r"LlamaForCausalLM \(llama\) cannot be trained here: .* no 'states'"):
        choose_layout(model)


def test_a_model_whose_outputs_change_with_padding_raises():
    model = toys.tiny_llama()
    forward = model.model.forward

    def leaky(*args, **how):
        output = forward(*args, **how)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.shape[1]
        return output

    model.model.forward = leaky
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="with padding on its right than alone"):
        choose_layout(model)


def test_logits_have_the_models_caps_and_factors():
    model = toys.tiny_llama()
    hidden = torch.randn(3, 32)
    plain = logits_head(model)(hidden)
    model.config.lm_head_multiplier = 0.5
    torch.testing.assert_close(logits_head(model)(hidden), plain * 0.5)
    model.config.lm_head_multiplier, model.config.logits_soft_cap = 1.0, 2.0
    torch.testing.assert_close(logits_head(model)(hidden), torch.tanh(plain / 2.0) * 2.0)


# --------------------------------------------------------------------------- the policy's tokens


def folder(path: Path, *, extra: tuple[str, ...] = (), size: int = 16, words: list[str] | None = None) -> str:
    known = toys.tokenizer()
    if words:
        known = _tokenizer(words)
    known.add_tokens(list(extra))
    save_model(toys.tiny_llama(vocab_size=size), known, path)
    return str(path)


def _tokenizer(words: list[str]):
    before, toys.WORDS[:] = list(toys.WORDS), words
    try:
        return toys.tokenizer()
    finally:
        toys.WORDS[:] = before


def test_policy_and_critic_may_have_different_vocabulary_padding(tmp_path: Path):
    small, wide = folder(tmp_path / "small"), folder(tmp_path / "wide", size=40)
    assert check_vocabularies(wide, small, toys.tokenizer()) == []
    assert check_vocabularies(small, wide, toys.tokenizer()) == []
    critic, _ = load_critic(small, num_ids=known_ids(load_policy(wide)))
    again, _ = load_critic(small, num_ids=40)
    assert known_ids(critic) == critic.config.vocab_size == 40
    table = critic.get_input_embeddings().weight
    assert torch.equal(table, again.get_input_embeddings().weight)
    torch.testing.assert_close(table[39], load_policy(small).get_input_embeddings().weight.mean(dim=0))
    torch.nn.init.normal_(value_head(critic).weight)
    rare = Sequences((torch.tensor([3, 4, 39, 38]),), (3,))
    with torch.no_grad():
        assert torch.isfinite(Critic(critic).values(rare, 3)).all()
    save_model(critic, toys.tokenizer(), tmp_path / "critic")
    assert known_ids(load_critic(tmp_path / "critic")[0]) == 40
    assert known_ids(load_critic(wide, num_ids=16)[0]) == 40


def test_adapters_of_a_critic_with_more_ids_than_its_base_load_from_their_folder_alone(tmp_path: Path):
    critic, _ = load_critic(folder(tmp_path / "small"), num_ids=40)
    add_lora(critic, 2, None, keep=value_head(critic))
    with torch.no_grad():
        for parameter in adapter_parameters(critic).values():
            parameter.normal_()
    save_adapters(critic, tmp_path / "adapter")
    weights = dict(plain_weights(critic))
    for ids in (0, 40):
        again, _ = load_critic(tmp_path / "adapter", num_ids=ids)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert known_ids(load_critic(tmp_path / "adapter", num_ids=48)[0]) == 48


def test_a_critic_with_another_tokenizer_raises_an_error_with_the_first_different_token(tmp_path: Path):
    swapped = [*toys.WORDS]
    swapped[4], swapped[7] = swapped[7], swapped[4]
    critic = folder(tmp_path / "critic", words=swapped)
    message = re.escape("id 4 is '2' for the policy, and for the critic '5' ('2' is 7 there)")
    with pytest.raises(ConfigError, match=message):
        check_vocabularies("policy", critic, toys.tokenizer())


def test_tokens_missing_in_the_critic_are_reported(tmp_path: Path):
    critic = folder(tmp_path / "critic")
    policy = toys.tokenizer()
    policy.add_tokens(["<think>"])
    (note,) = check_vocabularies("policy", critic, policy)
    assert "lacks 1 of the policy's tokens, such as '<think>'" in note


def test_a_critic_without_a_tokenizer_must_have_the_policys_vocabulary_size(tmp_path: Path):
    policy = folder(tmp_path / "policy")
    save_model(toys.tiny_llama(), None, tmp_path / "same")
    save_model(toys.tiny_llama(vocab_size=17), None, tmp_path / "other")
    (note,) = check_vocabularies(policy, str(tmp_path / "same"), toys.tokenizer())
    assert "no tokenizer" in note
    with pytest.raises(ConfigError, match="vocabulary of 17 where the policy has 16"):
        check_vocabularies(policy, str(tmp_path / "other"), toys.tokenizer())


def test_adapters_of_a_mixture_with_shared_experts_go_to_linear_layers_only():
    torch.manual_seed(0)
    heads = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
    routing = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    sizes = {**SIZES, **SPECIAL, "num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**sizes, **heads, **routing)).eval()
    own = model.state_dict().keys()
    add_lora(model, 2, None)
    assert dict(plain_weights(model)).keys() == own
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert "model.layers.0.mlp.gate_proj" in adapted
    assert "model.layers.1.mlp.shared_experts.down_proj" in adapted
    assert not any(name.endswith("mlp.experts") for name in adapted)


def test_layers_whose_weight_is_used_without_forward_get_no_adapter():
    model = policy_of("Mamba")
    add_lora(model, 2, None)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"in_proj", "x_proj"}


def test_a_subclass_of_linear_gets_an_adapter_if_it_is_linear():
    falcon = transformers.FalconForCausalLM(
        transformers.FalconConfig(vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    add_lora(falcon, 2, None)
    assert any("query_key_value.lora_A" in name for name, _ in falcon.named_parameters())
    router = policy_of("Llama4")
    add_lora(router, 2, None)
    assert not any("router" in name and ".lora_" in name for name, _ in router.named_parameters())
