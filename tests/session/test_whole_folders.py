"""`vapo export`: networks of checkpoints as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toys
from command_line import vapo
from vapo.errors import ConfigError
from vapo.models.critic_notes import value_head
from vapo.models.loading import load_critic, load_policy
from vapo.models.lora import add_lora, save_adapters
from vapo.models.saving import save_frame
from vapo.models.shards import save_part, stored_tensors
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.whole_folders import whole_folder

ADAPTERS = {"model": {"policy_lora": 4, "critic_lora": 4}}


def same(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def in_shards(source: Path, folder: Path) -> Path:
    """A copy of a network's folder as training ranks write it."""
    model = load_critic(source)[0] if source.name == "critic" else load_policy(source)
    save_frame(model, toys.tokenizer(), folder)
    save_part(stored_tensors(model), folder, rank=0, size=1)
    return folder


@pytest.mark.parametrize("layer", [{}, ADAPTERS, {"model": {"critic_kind": "side"}}], ids=["whole", "adapters", "side"])
def test_a_last_checkpoint_exports_what_the_run_published(tmp_path: Path, layer: dict, monkeypatch):
    base = toys.toy_base(tmp_path / "base")
    run = runs.finish(toys.toy_run(base, tmp_path / "run", layer), report=False)
    last = tmp_path / "run" / "checkpoints" / f"step_{run.state.step:06d}"
    for name in ("policy", "critic"):
        words = ["--dtype", "float32", *(["--critic"] if name == "critic" else [])]
        assert vapo(monkeypatch, "export", str(last), *words, "--out", str(tmp_path / "out" / name)) == 0
        assert same(tmp_path / "out" / name, tmp_path / "run" / name)


def test_shards_become_the_folder_they_were_made_of(tmp_path: Path, monkeypatch):
    base = toys.toy_base(tmp_path / "base")
    runs.finish(toys.toy_run(base, tmp_path / "run"), report=False)
    for name in ("policy", "critic"):
        shards = in_shards(tmp_path / "run" / name, tmp_path / "checkpoint" / name)
        words = ["--dtype", "float32", "--out", str(tmp_path / "out" / name)]
        assert vapo(monkeypatch, "export", str(shards), *words) == 0
        ours, theirs = (sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "out" / name, shards))
        assert {*ours} - {"model.safetensors"} == {*theirs} - {"shards.json", "shard-00000-of-00001.safetensors"}
        assert same(tmp_path / "out" / name, tmp_path / "run" / name)
    with whole_folder(shards) as folder:
        assert same(folder, tmp_path / "run" / "critic")
    with whole_folder(tmp_path / "run" / "policy") as folder:
        assert folder == tmp_path / "run" / "policy"


def test_a_run_that_goes_on_from_shards_ends_as_from_a_whole_folder(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    runs.finish(toys.toy_run(base, tmp_path / "run"), report=False)
    for name in ("policy", "critic"):
        layer = {"model": {"policy": str(tmp_path / "run" / "policy"), "critic": str(tmp_path / "run" / "critic")}}
        layer["model"][name] = str(in_shards(tmp_path / "run" / name, tmp_path / "shards" / name))
        runs.finish(toys.toy_run(base, tmp_path / f"from-{name}", layer), report=False)
    assert same(tmp_path / "from-policy" / "policy", tmp_path / "from-critic" / "policy")
    assert same(tmp_path / "from-policy" / "critic", tmp_path / "from-critic" / "critic")


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_adapters_on_adapters_are_refused_with_the_command_that_merges_the_first(tmp_path: Path, network, monkeypatch):
    base = toys.toy_base(tmp_path / "base")
    model = load_policy(base) if network == "policy" else load_critic(base)[0]
    add_lora(model, 2, None, keep=None if network == "policy" else value_head(model))
    save_adapters(model, tmp_path / "adapter")
    words = ["export", str(tmp_path / "adapter"), "--dtype", "float32", "--out", str(tmp_path / "merged")]
    config = toys.toy_config(base, {"model": {network: str(tmp_path / "adapter"), f"{network}_lora": 2}})
    with pytest.raises(ConfigError, match=r"holds adapters, and .*export .* --dtype float32 --out FOLDER"):
        runs.prepare(runs.with_task(config, toys.EchoTask()), SilentView(), toys.EchoTask())
    assert vapo(monkeypatch, *words) == 0
    config = toys.toy_config(base, {"model": {network: str(tmp_path / "merged"), f"{network}_lora": 2}})
    runs.prepare(runs.with_task(config, toys.EchoTask()), SilentView(), toys.EchoTask())
