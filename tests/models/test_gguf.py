"""A .gguf file is converted once, by transformers' own loader, and then is a model folder like any other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from vapo.errors import ModelError
from vapo.models.gguf import cache_folder
from vapo.models.loading import load_critic, load_policy
from vapo.models.networks import output_embeddings
from vapo.models.saving import save_model
from vapo.models.tokens import load_tokenizer, stop_token_ids

TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab"]


def write_tiny_llama(path: Path) -> None:
    hidden, layers, inner = 32, 1, 64
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 2)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 5)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def tensor(name: str, *shape: int, quantized: bool = False) -> None:
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        if quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    tensor("token_embd.weight", len(TOKENS), hidden, quantized=True)
    tensor("output_norm.weight", hidden)
    for i in range(layers):
        tensor(f"blk.{i}.attn_norm.weight", hidden)
        tensor(f"blk.{i}.ffn_norm.weight", hidden)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{i}.{name}.weight", hidden, hidden, quantized=True)
        tensor(f"blk.{i}.ffn_gate.weight", inner, hidden, quantized=True)
        tensor(f"blk.{i}.ffn_up.weight", inner, hidden, quantized=True)
        tensor(f"blk.{i}.ffn_down.weight", hidden, inner, quantized=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VAPO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path)
    return path


def test_policy_critic_and_tokenizer_load_from_one_gguf_file_and_can_be_saved(tiny, tmp_path, capfd):
    tokenizer, policy, (critic, origin) = load_tokenizer(tiny), load_policy(tiny), load_critic(tiny)
    assert tokenizer("ab")["input_ids"] == [7]
    assert stop_token_ids(tokenizer, tiny) == (2,)
    assert policy.num_parameters() == len(TOKENS) * 32 + 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32
    assert all(p.dtype == torch.float32 and p.requires_grad for p in policy.parameters())
    assert "value head set to 0" in origin
    torch.testing.assert_close(critic.base_model.state_dict(), policy.base_model.state_dict())
    assert output_embeddings(policy).weight.data_ptr() == policy.get_input_embeddings().weight.data_ptr()  # tied
    save_model(policy, tokenizer, tmp_path / "saved")
    torch.testing.assert_close(load_policy(tmp_path / "saved").state_dict(), policy.state_dict())
    assert "Converting" not in capfd.readouterr().err


def test_a_gguf_file_is_converted_once_and_again_after_it_changes(tiny):
    load_policy(tiny)
    marker = cache_folder(tiny) / "marker"
    marker.touch()
    load_policy(tiny)
    assert marker.exists()
    before = cache_folder(tiny)
    tiny.write_bytes(tiny.read_bytes() + b"\0")
    assert cache_folder(tiny) != before


def test_a_conversion_that_another_process_finished_first_is_taken(tiny, monkeypatch):
    folder = cache_folder(tiny)
    real = Path.rename

    def rename(self, target):
        if target == folder and not folder.exists():
            shutil.copytree(self, folder)
            (folder / "first").touch()
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    load_policy(tiny)
    assert (folder / "first").exists()
    assert not list(folder.parent.glob("*.tmp"))


def test_what_a_killed_conversion_left_is_removed_after_a_day(tiny):
    left = [cache_folder(tiny).with_name(f"{name}.tmp") for name in ("old", "new")]
    for folder in left:
        folder.mkdir(parents=True)
    os.utime(left[0], (0, 0))
    load_policy(tiny)
    assert [folder.exists() for folder in left] == [False, True]
    assert cache_folder(tiny).stat().st_mode == left[1].stat().st_mode  # others who share the cache can read it


def test_a_missing_or_invalid_gguf_file_raises(tiny, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="Cannot load"):
        load_policy(tmp_path / "bad.gguf")
    assert not list((tmp_path / "cache").rglob("*.tmp"))
