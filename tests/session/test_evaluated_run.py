"""What `vapo eval RUN` takes from the run, and what it asks for where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vapo
from vapo.durability import checkpoint
from vapo.errors import ConfigError
from vapo.session.config import Config, resolve
from vapo.session.evaluated_run import evaluation_config, find_model
from vapo.session.evaluation import about_samples
from vapo.session.layers import file_layer, set_layer
from vapo.tasks.catalog import find_task
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding

SETTINGS = {
    "task": {"name": "math", "eval_data": "test.jsonl", "template": "Q: {problem}"},
    "rollout": {"max_response_tokens": 24, "engine": {"kind": "generate", "slots": 4}},
    "model": {"policy": "base", "critic": "elsewhere", "prompt_format": "plain"},
    "evaluation": {"prompts": 7},
}


def a_run(folder: Path, **changes: Any) -> Path:
    """The folder of a run that has begun, without networks."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolve([file_layer("test", {**SETTINGS, **changes})]).to_yaml())
    (folder / "metrics.jsonl").touch()
    return folder


def test_kept_samples_belong_to_the_code_of_the_verifier(tmp_path: Path):
    (tmp_path / "test.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    file, found = tmp_path / "mine.py", []
    for name in (f"{file}:judge", f"{file}:judge", "exact"):
        file.write_text(f"def judge(response, answer):\n    return {len(found)} > 0 or '2' in response\n")
        options = {"eval_data": str(tmp_path / "test.jsonl"), "verifier": name, "verifier_workers": 1}
        task = find_task("math", options, to_train=False)
        task.close()
        config = resolve([file_layer("test", {"task": {"name": "math", **options}})])
        inputs: Any = SimpleNamespace(
            task=FullTask.of(task), policy_source="p", heldout_prompts=task.heldout, decoding=Decoding(8, (1,))
        )
        found.append(about_samples(config, inputs))
    before, after, without = found
    assert {key for key in before if before[key] != after[key]} == {"code of task, verifier and environment"}
    assert "code of task, verifier and environment" not in without


def a_model(folder: Path) -> None:
    """A folder that looks like a model's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def save(run: Path, step: int, phase: str) -> Path:
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "config.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps({"phase": phase}))

    return checkpoint.save(run / "checkpoints", f"step_{step:06d}", write, serial=step, keep=9)


def configured(model: str | Path, task: str | None = None, **settings: Any) -> Config:
    found = find_model(str(model))
    return evaluation_config(found, task, {"model": {"policy": found.folder, "critic": None}, **settings})


def test_a_run_brings_its_task_its_options_its_prompt_format_and_its_limit(tmp_path: Path):
    run = a_run(tmp_path / "run")
    a_model(run / "policy")
    saved = save(run, 3, "done")
    for model in (run, run / "policy", saved, saved / "policy"):
        sections = configured(model, evaluation={"samples_per_prompt": 5}).sections
        assert sections.task.name == "math"
        assert sections.task.options == {"eval_data": "test.jsonl", "template": "Q: {problem}"}
        assert (sections.model.prompt_format, sections.rollout.max_response_tokens) == ("plain", 24)
        assert sections.rollout.engine.kind == "generate"
        assert sections.evaluation.samples_per_prompt == 5
        assert sections.model.policy == str(run / "policy" if model == run else saved / "policy" if model == saved else
                                            model)  # fmt: skip
        assert sections.model.critic is None  # the one it started from picks no samples


def test_a_task_that_is_named_replaces_the_runs_with_its_options_and_its_limit(tmp_path: Path):
    run = a_run(tmp_path / "run")
    a_model(run / "policy")
    (tmp_path / "other.yaml").write_text("task: {name: chain, length: 3}\n")
    sections = configured(run, "walk").sections
    assert (sections.task.name, sections.task.options, sections.rollout.max_response_tokens) == ("walk", {}, None)
    assert sections.model.prompt_format == "plain"  # how the model was trained to be asked
    sections = configured(run, str(tmp_path / "other.yaml")).sections
    assert (sections.task.name, sections.task.options) == ("chain", {"length": 3})


def test_a_run_that_has_not_ended_is_its_newest_healthy_checkpoint_and_says_so(tmp_path: Path):
    run = a_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"neither a policy/ nor a healthy checkpoint.*vapo resume"):
        find_model(str(run))
    older, newest = save(run, 2, "train"), save(run, 4, "train")
    found = find_model(str(run))
    assert (found.folder, found.run) == (str(newest / "policy"), run)
    assert "has not ended: this is its checkpoint step_000004" in found.notes[0]
    (newest / "policy" / "config.json").write_text("damaged")
    assert find_model(str(run)).folder == str(older / "policy")
    assert newest.is_dir()  # a run that may be going on is read, never mended


def test_a_run_that_goes_on_again_is_no_longer_what_it_ended_with(tmp_path: Path):
    run = a_run(tmp_path / "run")
    a_model(run / "policy")
    save(run, 2, "done")
    assert find_model(str(run)).folder == str(run / "policy")
    newest = save(run, 4, "train")
    assert find_model(str(run)).folder == str(newest / "policy")
    assert find_model(str(run / "policy")).folder == str(run / "policy")


def test_a_model_of_no_run_asks_for_a_task_and_builtin_is_the_mazes(tmp_path: Path):
    a_model(tmp_path / "mine" / "policy")
    (tmp_path / "mine" / "config.yaml").write_text("hidden_size: 3\n")  # somebody else's
    for model in (tmp_path / "mine" / "policy", "Qwen/Qwen2.5-0.5B"):
        with pytest.raises(ConfigError, match=r"--task maze.*vapo tasks"):
            vapo.evaluate(model, k=1)
        assert configured(model, "walk").sections.task.name == "walk"
    found = find_model("some/model")
    assert evaluation_config(found, None, {}, [set_layer("task.name=walk")]).sections.task.name == "walk"
    assert configured("builtin").sections.task.name == "maze"


def test_a_run_on_a_task_object_asks_for_a_task_that_can_be_found(tmp_path: Path):
    run = a_run(tmp_path / "run", task={"name": "echo"})
    a_model(run / "policy")
    with pytest.raises(ConfigError, match="a task of your own, 'echo'"):
        configured(run)
    assert configured(run, "walk").sections.task.name == "walk"
