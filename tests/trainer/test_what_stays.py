"""What a run leaves on the disk: checkpoints of adapters without their base, and what stays when a run has ended."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from test_resume import timeless
from transformers import AutoModelForCausalLM, PreTrainedModel

import toys
from vapo.durability import checkpoint
from vapo.errors import ConfigError
from vapo.models.loading import load_policy
from vapo.models.lora import adapter_parameters, plain_weights
from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer import snapshot
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.network import Network
from vapo.trainer.run import Run

SHORT = {"trainer": {"steps": 2, "samples_per_step": 16, "pretraining_steps": 1}, "guards": {"watchdog": False}}
LORA = {"model": {"policy_lora": 2, "critic_lora": 2}}
KL = {"algorithm": {"kl": {"coef": 0.01, "refresh_every": 2}}}
WEIGHTS = {"checkpoint": {"final": "weights"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def finished(base: Path, folder: Path, *layers: dict[str, Any]) -> Run:
    return runs.finish(toys.toy_run(base, folder, SHORT, *layers), report=False)


def resumed(folder: Path, **how: Any) -> Run:
    return runs.resume(folder, SilentView(), task=toys.EchoTask(), **how)


def model_of(network: Network) -> PreTrainedModel:
    assert isinstance(network, LocalNetwork)
    return network.model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 12)[None]).logits


# --------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A finished run with adapters on both networks and a reference that was refreshed."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return finished(base, folder, LORA, KL), folder


def test_a_checkpoint_of_adapters_holds_no_base_model_and_has_the_estimated_size(adapted: tuple[Run, Path]):
    run, folder = adapted
    newest = folder / "checkpoints" / "step_000002"
    names = {str(p.relative_to(newest)) for p in newest.rglob("*.safetensors")}
    networks = ("policy", "critic", "reference")
    assert names == {f"{name}/adapter_model.safetensors" for name in networks} | {
        "policy_optimizer.safetensors", "critic_optimizer.safetensors",
    }  # fmt: skip
    trained = [sum(p.numel() for p in adapter_parameters(model_of(n)).values()) for n in run.networks]
    assert snapshot.size(run) == 4 * (3 * sum(trained[:2]) + trained[2])
    headers = 6000 * len(names)
    size = sum((newest / name).stat().st_size for name in names)
    assert snapshot.size(run) < size < snapshot.size(run) + headers


def test_a_checkpoints_adapters_can_be_evaluated_like_a_model(adapted: tuple[Run, Path]):
    run, folder = adapted
    loaded = load_policy(folder / "checkpoints" / "step_000002" / "policy").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain_weights(model_of(run.policy)))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_a_finished_run_has_its_adapters_beside_the_merged_model(base: Path, adapted: tuple[Run, Path]):
    _, folder = adapted
    assert (folder / "critic_adapter" / "adapter_model.safetensors").exists()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = outputs(plain)
    merged = outputs(AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).eval())
    opened = outputs(PeftModel.from_pretrained(plain, str(folder / "policy_adapter")).eval())
    torch.testing.assert_close(opened, merged, atol=1e-5, rtol=0)
    assert (opened - before).abs().max() > 1e-4


def test_a_run_that_trains_all_weights_has_no_adapter_folders(base: Path, tmp_path: Path):
    finished(base, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir() if "adapter" in p.name} == set()


def as_format_2(run: Run, folder: Path) -> None:
    """The run's present state as the newest checkpoint, in the layout with merged models."""

    def write(new: Path) -> None:
        for name in ("state.json", "config.json"):
            shutil.copy(folder / name, new)
        for network in run.networks:
            save_model(model_of(network), None, new / network.name)
        for network in run.learners:
            own = {name: p.detach() for name, p in adapter_parameters(model_of(network)).items()}
            with safe_open(folder / network.name / "adapter_model.safetensors", "pt") as file:
                save_file(own, new / f"{network.name}_adapters.safetensors", metadata=file.metadata())
            shutil.copy(folder / f"{network.name}_optimizer.safetensors", new)

    serial = run.state.serial
    checkpoint.save(folder.parent, folder.name, write, serial=serial, keep=100)


def test_a_checkpoint_with_merged_models_goes_on_with_the_reference_that_it_kept(
    base: Path, tmp_path: Path, adapted: tuple[Run, Path]
):
    run, folder = adapted
    shutil.copytree(folder, tmp_path / "run")
    as_format_2(run, tmp_path / "run" / "checkpoints" / "step_000002")
    again = resumed(tmp_path / "run", changes=[toys.file_layer("test", {"trainer": {"steps": 4}})])
    for now, then in zip(again.networks, run.networks, strict=True):
        weights = dict(then.weights())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in now.weights()), now.name
    # until it is refreshed, the reference's base is its own and is saved whole
    snapshot.save(again)
    newest = tmp_path / "run" / "checkpoints" / "step_000002"
    assert {p.parent.name: p.name for p in newest.glob("*/*.safetensors")} == {
        "policy": "adapter_model.safetensors",
        "critic": "adapter_model.safetensors",
        "reference": "model.safetensors",
    }
    runs.finish(again, report=False)
    assert (tmp_path / "run" / "checkpoints" / "step_000004" / "reference" / "adapter_model.safetensors").exists()


# --------------------------------------------------------------------------- checkpoint.final


def test_a_run_that_keeps_its_weights_only_leaves_no_checkpoint_and_says_how_to_go_on(base: Path, tmp_path: Path):
    folder = tmp_path / "run"
    finished(base, folder, WEIGHTS)
    assert not [p for p in folder.rglob("*") if "checkpoint" in p.name or "optimizer" in p.name]
    logs = timeless(folder, "metrics.jsonl")
    finished(base, tmp_path / "state")
    assert logs == timeless(tmp_path / "state", "metrics.jsonl")
    for name in ("policy", "critic"):
        files = [tmp_path / run / name / "model.safetensors" for run in ("run", "state")]
        assert checkpoint.sha256(files[0]) == checkpoint.sha256(files[1])
    advice = f"vapo train {folder / 'config.yaml'} --set model.policy={folder / 'policy'} --critic {folder / 'critic'}"
    for changes in ({}, {"trainer": {"steps": 9}}, {"checkpoint": {"final": "state"}}):
        with pytest.raises(ConfigError, match="cannot be made longer") as refused:
            resumed(folder, changes=[toys.file_layer("test", changes)])
        assert advice in str(refused.value)
    assert timeless(folder, "metrics.jsonl") == logs  # nothing was started over


def test_a_fork_from_the_weights_that_stayed_begins_with_them(base: Path, tmp_path: Path):
    ended = finished(base, tmp_path / "run", WEIGHTS)
    folders = {"policy": str(tmp_path / "run" / "policy"), "critic": str(tmp_path / "run" / "critic")}
    fork = toys.toy_run(base, tmp_path / "fork", SHORT, {"model": folders})
    for one, other in zip(fork.learners, ended.learners, strict=True):
        weights = dict(other.weights())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in one.weights())
    fork.folder.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_kill_between_the_models_and_the_deletion_loses_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    folder, remove = tmp_path / "run", checkpoint.remove
    run = toys.toy_run(base, folder, SHORT, WEIGHTS)

    def dies(path: Path) -> None:
        if path.name != "checkpoints":
            return remove(path)
        if moment == "after the rename":
            path.rename(path.with_name(".checkpoints.gone"))
        raise Killed

    monkeypatch.setattr(checkpoint, "remove", dies)
    with pytest.raises(Killed):
        runs.finish(run, report=False)
    monkeypatch.setattr(checkpoint, "remove", remove)
    models = {p: checkpoint.sha256(p) for p in folder.glob("*/model.safetensors")}
    assert len(models) == 2
    if moment == "before the rename":
        assert checkpoint.newest(folder / "checkpoints", print) is not None
        runs.finish(resumed(folder), report=False)
    with pytest.raises(ConfigError, match="cannot be made longer"):
        resumed(folder)
    assert {p: checkpoint.sha256(p) for p in folder.glob("*/model.safetensors")} == models
    assert not [p for p in folder.iterdir() if "checkpoint" in p.name]


def test_a_run_killed_before_it_ended_keeps_its_checkpoints_and_goes_on(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", SHORT, WEIGHTS)

    def dies(metrics: dict[str, Any]) -> None:
        if (metrics["phase"], metrics["step"]) == ("train", 2):
            raise Killed

    run.observer.step = dies
    with pytest.raises(Killed):
        runs.finish(run, report=False)
    again = resumed(tmp_path / "run")
    assert again.state.step == 1
    runs.finish(again, report=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_resume_can_choose_to_keep_weights_only(base: Path, tmp_path: Path):
    finished(base, tmp_path / "run")
    again = resumed(tmp_path / "run", changes=[toys.file_layer("test", WEIGHTS)])
    runs.finish(again, report=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
