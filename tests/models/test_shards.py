"""Tensors in shards: what is written is read back exactly, by any number of processes and as any class that fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import architectures
import toys
from architectures import ARCHITECTURES
from vapo.errors import CheckpointError, ModelError
from vapo.models.critic_notes import value_head
from vapo.models.loading import load_critic, load_policy, load_side_critic
from vapo.models.networks import Policy
from vapo.models.saving import load_trained, save_frame
from vapo.models.shards import INDEX, StoredTensors, load_parts, save_part, shard_name, stored_tensors
from vapo.models.side import SideModel, side_config


def write_shards(tensors: dict[str, Tensor], folder: Path, size: int) -> None:
    """A folder as `size` processes would write it: equal numbers of rows, the last process fewer or none."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, tensor in tensors.items():
        each = -(-len(tensor) // size) if tensor.ndim else 1
        bounds = [min(each * rank, len(tensor) if tensor.ndim else 1) for rank in range(size + 1)]
        entries[name] = {"dtype": "float32", "shape": list(tensor.shape), "rows": bounds}
    for rank in range(size):
        own = {
            name: tensor[low:high].clone() if tensor.ndim else tensor
            for name, tensor in tensors.items()
            if (low := entries[name]["rows"][rank]) < (high := entries[name]["rows"][rank + 1])
        }
        save_file(own, folder / shard_name(rank, size))
    files = [shard_name(rank, size) for rank in range(size)]
    (folder / INDEX).write_text(json.dumps({"format": 1, "files": files, "tensors": entries}))


def test_rows_are_found_wherever_the_shards_end(tmp_path: Path):
    tensors = {"a": torch.arange(14.0).view(7, 2), "b": torch.tensor(3.0), "few": torch.ones(2, 3)}
    write_shards(tensors, tmp_path, 3)  # a: rows 0-2, 3-5, 6; few: the third has none
    with StoredTensors(tmp_path) as stored:
        assert set(stored) == tensors.keys()
        assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())
        for start in range(8):
            for stop in range(start, 8):
                assert torch.equal(stored.read("a", start, stop), tensors["a"][start:stop])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_folder_of_shards_is_a_model(tmp_path: Path, size: int):
    model = toys.tiny_llama(seed=3)
    save_frame(model, toys.tokenizer(), tmp_path)
    write_shards(stored_tensors(model), tmp_path, size)
    own = model.state_dict()
    for read in (load_policy(tmp_path), toys.tiny_llama(seed=4)):
        load_trained(read, tmp_path)
        assert all(torch.equal(tensor, own[name]) for name, tensor in read.state_dict().items())
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shards_hold_every_architecture_as_policy_and_as_critic(tmp_path: Path, name: str):
    base = architectures.folder_of(architectures.tiny(name), tmp_path / "base")
    critic = load_critic(base)[0]
    with torch.no_grad():
        value_head(critic).weight.fill_(0.5)
    for model, load in ((load_policy(base), load_policy), (critic, lambda folder: load_critic(folder)[0])):
        folder = tmp_path / type(model).__name__
        save_frame(model, None, folder)
        save_part(stored_tensors(model), folder, rank=0, size=1)
        again = load(folder)
        own, read = model.state_dict(), again.state_dict()
        assert type(again).__name__ == type(model).__name__
        assert own.keys() == read.keys()
        assert all(torch.equal(tensor, read[key]) for key, tensor in own.items())
        assert again.generation_config.to_dict() == model.generation_config.to_dict() if model.can_generate() else True


def test_a_side_critic_is_read_from_shards(tmp_path: Path):
    policy = toys.tiny_llama()
    model = SideModel(side_config(policy.config, policy.num_parameters())).eval()
    save_frame(model, None, tmp_path)
    save_part(stored_tensors(model), tmp_path, rank=0, size=1)
    again, _ = load_side_critic(tmp_path, Policy(policy).model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_shards_of_another_model_are_refused_by_name(tmp_path: Path):
    model = toys.tiny_llama()
    save_frame(model, None, tmp_path)
    save_part(stored_tensors(model), tmp_path, rank=0, size=1)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight is \(16, 32\) instead of \(16, 64\)"):
        load_parts(toys.tiny_llama(hidden_size=64), tmp_path)
    with pytest.raises(CheckpointError, match=r"only one of them has model.layers.2"):
        load_parts(toys.tiny_llama(num_hidden_layers=3), tmp_path)
    with pytest.raises(
        ModelError, match=r"shards of a LlamaForCausalLM, which cannot be read as LlamaForToken.*export"
    ):
        load_critic(tmp_path)


def test_a_torn_shard_and_an_index_from_the_future_are_errors(tmp_path: Path):
    model = toys.tiny_llama()
    save_part(stored_tensors(model), tmp_path, rank=0, size=1)
    path = tmp_path / shard_name(0, 1)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_parts(model, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this version of vapo reads up to 1"):
        load_parts(model, tmp_path)
