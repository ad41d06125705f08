"""`vapo export`: a trained model in another precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

import architectures
import toys
from command_line import vapo
from vapo.errors import ModelError
from vapo.models.converted import convert
from vapo.models.loading import load_critic, load_policy
from vapo.models.networks import Critic, Sequences
from vapo.session import lifecycle
from vapo.session.exported_folder import default_target


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    layer = {"trainer": {"steps": 1, "pretraining_steps": 1}, "model": {"policy_lora": 2}}
    run = toys.toy_run(toys.toy_base(folder / "base"), folder / "run", layer)
    lifecycle.finish(run, report=False)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    return Path("run")


def test_the_policy_is_exported_in_bfloat16_with_its_tokenizer_and_card(run: Path, monkeypatch, capsys):
    assert vapo(monkeypatch, "export", "run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == "run/policy-bfloat16"
    exported = AutoModelForCausalLM.from_pretrained(said["folder"])
    assert exported.dtype == torch.bfloat16  # config.json says so
    trained = load_policy(run / "policy").state_dict()
    assert all(torch.equal(value, trained[name].bfloat16()) for name, value in exported.state_dict().items())
    assert AutoTokenizer.from_pretrained(said["folder"])("3 x")["input_ids"] == [5, 12]
    assert (run / "policy-bfloat16" / "README.md").read_text() == (run / "policy" / "README.md").read_text()
    assert 1.9 < (run / "policy" / "model.safetensors").stat().st_size / said["bytes"] < 2.1


def test_an_export_of_a_checkpoint_outlives_it():
    assert default_target(Path("run/policy"), "bfloat16") == Path("run/policy-bfloat16")
    of_checkpoint = default_target(Path("run/checkpoints/step_000020/critic"), "bfloat16")
    assert of_checkpoint == Path("run/critic-step_000020-bfloat16")


@pytest.mark.parametrize("place", [".", "link"])
def test_an_export_goes_into_the_working_folder_and_through_a_link(
    place: str, run: Path, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / ("empty" if place == "." else ""))
    assert vapo(monkeypatch, "export", str(tmp_path / "run"), "--out", place) == 0
    assert f"Exported  {place}" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(place).dtype == torch.bfloat16
    assert not list((tmp_path / "empty").glob(".*"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, of transformers
def test_the_critic_and_the_adapters_are_exported_too(run: Path, monkeypatch, capsys):
    pytest.importorskip("peft")
    from peft import PeftModel

    assert vapo(monkeypatch, "export", "run", "--critic", "--dtype", "float16", "--out", "small") == 0
    assert AutoModelForTokenClassification.from_pretrained("small").dtype == torch.float16
    assert vapo(monkeypatch, "export", "run", "--adapter", "--dtype", "float32", "--out", "adapters") == 0
    base = load_policy(json.loads(Path("adapters/adapter_config.json").read_text())["base_model_name_or_path"])
    merged = PeftModel.from_pretrained(base, "adapters").merge_and_unload().state_dict()
    trained = load_policy(run / "policy").state_dict()
    assert all(torch.allclose(value, trained[name], atol=1e-6) for name, value in merged.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist. Check the path."),
        (["run", "--critic", "--adapter"], "run has no adapters of the critic: they come with model.critic_lora"),
        (["run", "--out", "run"], "run exists and is not an empty folder. Choose another --out."),
        (["run", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["run/rollouts"], "has no config.json"),
    ],
)
def test_a_mistake_is_one_line(run: Path, monkeypatch, capsys, words, message):
    assert vapo(monkeypatch, "export", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_value_that_the_precision_cannot_hold_leaves_nothing_behind(run: Path, tmp_path: Path):
    model = load_policy(run / "policy")
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(ModelError, match=r"model.norm.weight has values that float16 cannot hold. Take bfloat16"):
        convert(tmp_path / "large", tmp_path / "half", "float16")
    assert not (tmp_path / "half").exists()
    assert convert(tmp_path / "large", tmp_path / "brain", "bfloat16") > 0


@pytest.mark.parametrize("name", ["Granite", "Gemma3", "side"])
def test_a_critic_that_transformers_has_no_token_classifier_for_is_shown_how_to_load(
    name: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"trainer": {"steps": 1, "pretraining_steps": 1}}
    base = toys.toy_base(tmp_path / "base")
    if name == "side":
        settings["model"] = {"critic_kind": "side"}
    else:
        base = architectures.folder_of(architectures.tiny(name.lower()), tmp_path / "other")
    lifecycle.finish(toys.toy_run(base, tmp_path / "run", settings), report=False)
    assert vapo(monkeypatch, "export", "run", "--critic", "--dtype", "float32") == 0
    said = capsys.readouterr().out
    assert "Load      vapo.models.loading.load_critic(...), or load_side_critic" in said
    card = Path("run/critic/README.md").read_text()
    assert "AutoModelForTokenClassification" not in card
    if name == "side":
        assert "opens with vapo only" in card
        return
    code = card.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {"prompt": "3 ", "response": "4 x"}
    exec(code, found)  # the card's own lines
    tokens = torch.tensor([5, 6, 12])
    critic = load_critic("run/critic")[0]
    with torch.no_grad():
        ours = torch.stack([Critic(critic, "padded").final_values(Sequences((tokens[:n],), (1,)))[0] for n in (2, 3)])
    torch.testing.assert_close(found["values"][1:].detach(), ours, atol=1e-5, rtol=1e-5)
