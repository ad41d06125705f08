"""What is read from files: all of it, bit for bit, and in memory of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification, LlamaForTokenClassification, PreTrainedModel

import architectures
import toys
from architectures import ARCHITECTURES
from vapo import cli
from vapo.errors import CheckpointError, ModelError
from vapo.models.gguf import cache_folder
from vapo.models.loaded import own_memory, read_tensors
from vapo.models.loading import load_critic, load_policy
from vapo.models.networks import choose_layout
from vapo.models.saving import load_optimizer, load_weights, save_model, save_moments, whole_moments

# --------------------------------------------------------------------------- memory


def homes(model: PreTrainedModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def is_at_home(tensor: torch.Tensor) -> bool:
    """At an address torch gives, alone in its memory, without gaps."""
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.data_ptr() % 64 == 0 and alone and tensor.is_contiguous()


@pytest.mark.parametrize("shift", [0, 8, 24, 56])
def test_a_loaded_model_is_in_memory_allocated_by_torch(tmp_path: Path, shift: int):
    base = architectures.folder_of(architectures.tiny("llama"), tmp_path / "base", shift)
    for model in (load_policy(base), load_critic(base)[0]):
        assert all(is_at_home(tensor) for tensor in homes(model))
    mapped = load_file(base / "model.safetensors")  # what is done about: it is elsewhere for most headers
    starts = {tensor.data_ptr() % 64 for tensor in mapped.values()}
    assert starts == {architectures.data_start(base / "model.safetensors") % 64}


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "deepseek_v3"])
def test_buffers_and_converted_tensors_are_in_memory_allocated_by_torch(tmp_path: Path, name: str):
    base = architectures.folder_of(architectures.tiny(name), tmp_path / "base", 24)
    model = load_policy(base)
    assert list(model.buffers()) or name == "gpt2"
    assert all(is_at_home(tensor) for tensor in homes(model))


def test_own_memory_keeps_numbers_ties_and_requires_grad():
    model = architectures.tiny("llama, tied")
    layer = model.model.layers[0].mlp
    layer.up_proj.weight = torch.nn.Parameter(layer.up_proj.weight.data.T.contiguous().T)  # as after a transposition
    layer.gate_proj.weight = torch.nn.Parameter(layer.up_proj.weight.data)  # the same memory, another parameter
    model.model.norm.requires_grad_(False)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    assert own_memory(model) is model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() != before[name][1]
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())  # optimizers go on
    assert all(is_at_home(tensor) for tensor in homes(model))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert layer.gate_proj.weight.data_ptr() == layer.up_proj.weight.data_ptr()
    assert not model.model.norm.weight.requires_grad
    assert model.lm_head.weight.requires_grad


def test_loaded_moments_are_in_memory_allocated_by_torch(tmp_path: Path):
    model = toys.tiny_llama()
    optimizer, again = (torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for _ in range(2))
    model(torch.tensor([[2, 3]])).logits.sum().backward()
    optimizer.step()
    save_moments(whole_moments(optimizer), tmp_path / "o.safetensors")
    architectures.shift_data(tmp_path / "o.safetensors", 24)
    load_optimizer(again, tmp_path / "o.safetensors")
    moments = [value for entry in again.state_dict()["state"].values() for value in entry.values()]
    assert len(moments) == 3 * len(list(model.parameters()))
    assert all(is_at_home(moment) for moment in moments)
    assert all(is_at_home(tensor) for tensor in read_tensors(tmp_path / "o.safetensors").values())


# --------------------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_weights_load_into_an_existing_model_bit_for_bit(tmp_path: Path, name: str):
    policy, other = architectures.tiny(name), architectures.tiny(name, seed=1)
    save_model(policy, None, tmp_path / "saved")
    places = {key: tensor.data_ptr() for key, tensor in other.state_dict().items()}
    assert not all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
    load_weights(other, tmp_path / "saved")
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[key]), key
        assert tensor.data_ptr() == places[key]  # in place: optimizers and samplers hold them
    for key, tensor in load_policy(tmp_path / "saved").state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[key]), key


@pytest.mark.parametrize("name", ["llama", *architectures.RENAMED])
def test_saved_critic_weights_load_into_an_existing_critic_bit_for_bit(tmp_path: Path, name: str):
    base = architectures.folder_of(architectures.tiny(name), tmp_path / "base")
    critic, other = load_critic(base)[0], load_critic(base)[0]
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_()
    save_model(critic, None, tmp_path / "saved")
    load_weights(other, tmp_path / "saved")
    again = load_critic(tmp_path / "saved")[0]
    for key, tensor in critic.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_weights_of_another_model_raise_and_change_nothing(tmp_path: Path, name: str):
    save_model(architectures.tiny(name, num_hidden_layers=1), None, tmp_path / "short")
    save_model(architectures.tiny(name, hidden_size=64), None, tmp_path / "wide")
    model = architectures.tiny(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for folder, fault in (("short", r"lacks .*model\.layers\.1\."), ("wide", r"another shape .*\(.*64.*\) instead of")):
        with pytest.raises(CheckpointError, match=fault):
            load_weights(model, tmp_path / folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(model, tmp_path / "none")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


# --------------------------------------------------------------------------- all of it

Tensors = dict[str, torch.Tensor]


def renamed(tensors: Tensors) -> Tensors:
    return {f"policy.{name}": tensor for name, tensor in tensors.items()}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_more(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


def same(tensors: Tensors) -> Tensors:
    return tensors


def changed(
    model: PreTrainedModel, folder: Path, change: Callable[[Tensors], Tensors] = same, **config: object
) -> Path:
    """The model's folder with other tensors, or another config, than belong together."""
    architectures.folder_of(model, folder)
    path = folder / "model.safetensors"
    save_file(change({k: v.clone() for k, v in load_file(path).items()}), path, metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return folder


DAMAGES = {
    "a tensor less": (without("model.layers.1.mlp.up_proj.weight"), {}, r"lacks .*model\.layers\.1\.mlp\.up_proj"),
    "other names": (renamed, {}, r"lacks .*model\.embed_tokens\.weight"),
    "another shape": (with_more("model.norm.weight", 7), {}, r"model\.norm\.weight \(7,\) instead of \(32,\)"),
    "a bias more": (with_more("model.layers.0.self_attn.q_proj.bias", 32), {}, r"no place for: .*q_proj\.bias"),
    "a norm more": (with_more("model.layers.0.self_attn.q_norm.weight", 8), {}, r"no place for: .*q_norm\.weight"),
    "a config with more layers": (same, {"num_hidden_layers": 3}, r"lacks .*model\.layers\.2\..* and 6 more"),
    "a config with fewer layers": (same, {"num_hidden_layers": 1}, r"no place for: model\.layers\.1\."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_model_folder_raises_an_error_with_the_tensor_names(tmp_path: Path, damage: str):
    change, config, message = DAMAGES[damage]
    folder = changed(architectures.tiny("llama"), tmp_path / "base", change, **config)
    for load, what in ((load_policy, "policy"), (load_critic, "critic")):
        with pytest.raises(ModelError, match=message) as error:
            load(folder)
        assert f"Cannot load the {what} from {folder}" in str(error.value)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_a_missing_expert_raises(tmp_path: Path, name: str):
    def without_last_expert(tensors: Tensors) -> Tensors:
        return {key: tensor for key, tensor in tensors.items() if ".experts.3." not in key}

    folder = changed(architectures.tiny(name), tmp_path / "base", without_last_expert)
    for load in (load_policy, load_critic):
        with pytest.raises(ModelError, match=r"experts\.down_proj \(3, .*\) instead of \(4, "):
            load(folder)


def test_a_policy_without_its_head_raises_and_a_critic_loads(tmp_path: Path):
    folder = changed(architectures.tiny("llama"), tmp_path / "base", without("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lacks .*lm_head\.weight"):
        load_policy(folder)
    assert "value head set to 0" in load_critic(folder)[1]


def test_a_tied_head_may_be_missing_but_not_both_tied_tensors(tmp_path: Path):
    tied = architectures.tiny("llama, tied")
    folder = architectures.folder_of(tied, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert torch.equal(load_policy(folder).lm_head.weight, tied.lm_head.weight)
    damaged = changed(tied, tmp_path / "damaged", without("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"lacks .*lm_head\.weight, model\.embed_tokens\.weight"):
        load_policy(damaged)


def test_extra_parts_are_ignored_only_if_the_source_has_another_class(tmp_path: Path):
    eyes = with_more("vision_tower.patches.weight", 3)
    class_with_eyes = {"architectures": ["LlavaForConditionalGeneration"]}
    load_policy(changed(architectures.tiny("llama"), tmp_path / "multimodal", eyes, **class_with_eyes))
    load_critic(changed(architectures.tiny("llama"), tmp_path / "with-values", with_more("v_head.weight", 3)))
    with pytest.raises(ModelError, match=r"no place for: vision_tower\.patches\.weight"):
        load_policy(changed(architectures.tiny("llama"), tmp_path / "text", eyes))
    biased = with_more("model.layers.0.self_attn.q_proj.bias", 32)
    with pytest.raises(ModelError, match=r"no place for: .*q_proj\.bias"):
        load_policy(changed(architectures.tiny("llama"), tmp_path / "inside", biased, **class_with_eyes))


def test_a_config_that_names_no_class_is_that_of_a_language_model(tmp_path: Path):
    folder = changed(architectures.tiny("llama"), tmp_path / "base", architectures=None)
    assert load_policy(folder).get_output_embeddings() is not None
    assert load_critic(folder)[1].startswith("backbone of llama in ")
    damaged = changed(architectures.tiny("llama"), tmp_path / "less", without("model.norm.weight"), architectures=None)
    for load in (load_policy, load_critic):
        with pytest.raises(ModelError, match=r"would stay random: model\.norm\.weight"):
            load(damaged)


def in_float8(tensors: Tensors) -> Tensors:
    """As DeepSeek-V3's folders: products in float8 with a scale for each block, all else in bfloat16."""
    packed = {}
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            scale = tensor.abs().max() / 448
            packed[name], packed[f"{name}_scale_inv"] = (tensor / scale).to(torch.float8_e4m3fn), scale.view(1, 1)
        else:
            packed[name] = tensor.bfloat16()
    return packed


def test_weights_in_float8_are_unpacked_to_float32(tmp_path: Path):
    packing = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    model = architectures.tiny("llama")
    folder = changed(model, tmp_path / "base", in_float8, quantization_config=packing)
    for loaded in (load_policy(folder), load_critic(folder)[0]):
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        found, wanted = (m.model.layers[0].mlp.up_proj.weight for m in (loaded, model))
        torch.testing.assert_close(found, wanted, atol=0.03, rtol=0.07)  # three bits of mantissa
        assert all(is_at_home(tensor) for tensor in homes(loaded))


def test_weights_that_are_not_finite_are_called_so():
    model = architectures.tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match="numbers that are not finite"):
        choose_layout(model)


def test_tensors_that_transformers_ignores_are_accepted(tmp_path: Path):
    old = with_more("transformer.h.0.attn.bias", 1, 1, 8, 8)  # masks that GPT-2 files of old hold
    load_policy(changed(architectures.tiny("gpt2"), tmp_path / "gpt2", old))


@pytest.mark.parametrize("kind", [LlamaForTokenClassification, LlamaForSequenceClassification])
def test_a_critic_or_reward_model_without_its_head_raises(tmp_path: Path, kind: type[PreTrainedModel]):
    config = architectures.tiny("llama").config
    config.num_labels = 1
    folder = changed(kind(config), tmp_path / "critic", without("score.weight"))
    with pytest.raises(ModelError, match=r"lacks .*score\.weight"):
        load_critic(folder)


def test_the_command_line_names_missing_tensors_and_returns_2(tmp_path: Path, monkeypatch, capsys):
    folder = changed(architectures.tiny("llama"), tmp_path / "base", without("lm_head.weight"))
    words = ["vapo", "eval", str(folder), "--task", "maze", "-k", "1", "--prompts", "1"]
    words += ["--set", "rollout.max_response_tokens=24"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2
    assert "which would stay random: lm_head.weight" in said
    assert "Traceback" not in said


def test_an_incomplete_gguf_file_raises_and_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from test_gguf import write_tiny_llama  # beside this file

    monkeypatch.setenv("VAPO_CACHE", str(tmp_path / "cache"))
    real = gguf.GGUFWriter.add_tensor

    def add_tensor(self, name, *arguments, **options):
        if name != "blk.0.ffn_up.weight":
            real(self, name, *arguments, **options)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    write_tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=r"lacks .*model\.layers\.0\.mlp\.up_proj\.weight"):
        load_policy(tmp_path / "tiny.gguf")
    assert not cache_folder(tmp_path / "tiny.gguf").exists()
