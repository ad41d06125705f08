"""Guarantee 3 at step edges: a resumed run writes the same lines and the same bytes as one never stopped."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import toys
from vapo.durability import checkpoint
from vapo.errors import CheckpointError, ConfigError, StoppedError
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer.run import Run
from vapo.trainer.state import State

pytestmark = pytest.mark.slow

CLOCKS = ("time/", "throughput/", "mfu/", "memory/", "step_time")


def timeless(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines]


def hashes(folder: Path) -> dict[str, str]:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name != "state.json"}


@pytest.fixture(scope="module", params=["vapo", "dapo", "grpo", "vapo-lora", "vapo-ahead", "dapo-ahead"])
def finished(request, tmp_path_factory) -> tuple[Path, Path, str]:
    """A run that was never stopped, with a checkpoint after every step."""
    root = tmp_path_factory.mktemp(request.param)
    base = toys.toy_base(root / "base")
    runs.finish(start(base, root / "whole", request.param))
    return base, root / "whole", request.param


def start(base: Path, folder: Path, kind: str, *layers: dict[str, Any]) -> Run:
    """A run of this kind: a preset, perhaps with adapters on both networks, or with rollouts made ahead."""
    preset, _, also = kind.partition("-")
    model = {"model": {"policy_lora": 2, "critic_lora": 2, "gradient_checkpointing": True} if also == "lora" else {}}
    ahead = {"trainer": {"max_staleness": 1 if also == "ahead" else 0}}
    # a KL reference that is refreshed after 6 of 12 gradient steps belongs to the state, too
    kl = {"algorithm": {"kl": {"coef": 0.01, "refresh_every": 6}}}
    return toys.toy_run(base, folder, kl, model, ahead, *layers, preset=preset)


def edges(whole: Path) -> list[str]:
    return sorted(p.name for p in (whole / "checkpoints").iterdir())


def test_resuming_at_every_edge_gives_the_same_lines_and_the_same_bytes(finished, tmp_path: Path):
    _, whole, preset = finished
    names = edges(whole)
    assert len(names) == (6 if preset.startswith("vapo") else 4)
    serials = {n: json.loads((whole / "checkpoints" / n / "manifest.json").read_text())["serial"] for n in names}
    for name in names:
        copy = tmp_path / name
        shutil.copytree(whole, copy)
        for later in names:
            if serials[later] > serials[name]:
                shutil.rmtree(copy / "checkpoints" / later)
        # what a lost attempt wrote after the checkpoint must not stay
        with (copy / "metrics.jsonl").open("a") as file:
            file.write('{"phase": "train", "step": 99}\n{"torn')
        runs.finish(runs.resume(copy, SilentView(), task=toys.EchoTask()))
        assert timeless(copy, "metrics.jsonl") == timeless(whole, "metrics.jsonl"), name
        assert timeless(copy, "evaluations.jsonl") == timeless(whole, "evaluations.jsonl"), name
        last = max(names, key=lambda n: (serials[n], n))
        assert hashes(copy / "checkpoints" / last) == hashes(whole / "checkpoints" / last), name
        for file in ("policy/model.safetensors", *(["critic/model.safetensors"] if preset.startswith("vapo") else [])):
            assert checkpoint.sha256(copy / file) == checkpoint.sha256(whole / file)


CRITICS = {
    "a fitted mixture": {"baseline": "fitted"},
    "a residual critic that starts at the mean": {"baseline": "group", "head": {"start": "mean"}},
    "a sigmoid head": {"head": {"kind": "sigmoid"}},
    "an HL-Gauss head": {"head": {"kind": "hl_gauss", "bins": 11}},
}


@pytest.mark.parametrize("name", CRITICS)
def test_critics_with_state_of_their_own_resume_exactly(name: str, tmp_path: Path):
    layer = {"algorithm": {"credit": CRITICS[name]}}
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    runs.finish(toys.toy_run(toys.toy_base(tmp_path / "base"), whole, layer), report=False)
    for edge in ("pretrain_000001", "step_000001"):
        shutil.copytree(whole, copy)
        serial = json.loads((copy / "checkpoints" / edge / "manifest.json").read_text())["serial"]
        for other in (copy / "checkpoints").iterdir():
            if json.loads((other / "manifest.json").read_text())["serial"] > serial:
                shutil.rmtree(other)
        runs.finish(runs.resume(copy, SilentView(), task=toys.EchoTask()), report=False)
        assert timeless(copy, "metrics.jsonl") == timeless(whole, "metrics.jsonl")
        assert hashes(copy / "checkpoints" / "step_000003") == hashes(whole / "checkpoints" / "step_000003")
        shutil.rmtree(copy)


def test_a_run_without_any_checkpoint_starts_over(finished, tmp_path: Path):
    _, whole, _ = finished
    shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints")
    runs.finish(runs.resume(tmp_path / "copy", SilentView(), task=toys.EchoTask()))
    assert timeless(tmp_path / "copy", "metrics.jsonl") == timeless(whole, "metrics.jsonl")


def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_used(finished, tmp_path: Path):
    _, whole, kind = finished
    shutil.copytree(whole, tmp_path / "copy")
    file = "policy/adapter_model.safetensors" if kind.endswith("lora") else "policy/model.safetensors"
    victim = tmp_path / "copy" / "checkpoints" / "step_000003" / file
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    messages: list[str] = []
    view = SilentView()
    view.alarm = messages.append
    run = runs.resume(tmp_path / "copy", view, task=toys.EchoTask())
    assert run.state.step == 2
    assert f"step_000003 is damaged (the SHA-256 of {file} has changed" in messages[0]
    assert (tmp_path / "copy" / "checkpoints" / "step_000003.corrupt").is_dir()
    runs.finish(run)
    assert timeless(tmp_path / "copy", "metrics.jsonl") == timeless(whole, "metrics.jsonl")


def test_every_step_appears_once_and_phases_count_from_1(finished):
    _, whole, preset = finished
    lines = [(m["phase"], m["step"]) for m in timeless(whole, "metrics.jsonl")]
    pretraining = [("pretrain", 1), ("pretrain", 2)] if preset.startswith("vapo") else []  # pitfall 22: N means N
    assert lines == [*pretraining, ("train", 1), ("train", 2), ("train", 3)]


def test_a_stop_request_saves_at_the_next_edge_and_the_run_goes_on_as_if_never_stopped(finished, tmp_path: Path):
    base, whole, preset = finished
    run = start(base, tmp_path / "run", preset, {"checkpoint": {"every": 0}})
    run.stop_requested = True
    with pytest.raises(StoppedError, match="vapo resume"):
        runs.finish(run)
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()))
    assert timeless(tmp_path / "run", "metrics.jsonl") == timeless(whole, "metrics.jsonl")


def test_a_second_process_on_the_folder_is_refused(tmp_path: Path):
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run")
    with pytest.raises(ConfigError, match="Another process"):
        runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask())
    run.folder.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    few = {"checkpoint": {"every": 1, "keep": 2}}
    runs.finish(toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", few))
    assert edges(tmp_path / "run") == ["step_000002", "step_000003"]


def test_a_state_with_an_unknown_field_is_refused_by_name():
    data = State().to_json()
    assert State.from_json(data) == State()
    assert State.from_json({key: value for key, value in data.items() if key != "verdicts"}) == State()
    with pytest.raises(CheckpointError, match="unknown \\['colour'\\]"):
        State.from_json({**data, "colour": 1})


def test_prompts_are_trained_exactly_once_an_epoch_through_kills(tmp_path: Path):
    # 6 prompts a step of 8 training prompts: epochs end within steps 2, 3 and 4, and again in 6, 7 and 8
    steps, every = 8, {"checkpoint": {"every": 3}, "evaluation": {"every": 4}}
    sizes = {"trainer": {"steps": steps, "samples_per_step": 24, "save_rollouts_every": 1}}
    run = toys.toy_run(toys.toy_base(tmp_path / "base"), tmp_path / "run", sizes, every)
    struck = []
    for moment in (0, 1, 3, 2, 4, 1, 2, 0, 3):

        def die(metrics: dict[str, Any], left: list[int] = [moment]) -> None:  # noqa: B006  counts down
            left[0] -= 1
            if left[0] < 0:
                struck.append((metrics["phase"], metrics["step"]))
                raise KeyboardInterrupt  # what was done since the checkpoint is lost

        run.observer.step = die
        with contextlib.suppress(KeyboardInterrupt):
            runs.finish(run, report=False)
        run = runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask())
    runs.finish(run, report=False)
    assert len(set(struck)) >= 5  # not the same moment again and again
    trained = []
    for step in range(1, steps + 1):
        lines = gzip.decompress((tmp_path / "run" / "rollouts" / f"step_{step:06d}.jsonl.gz").read_bytes()).splitlines()
        ids = [json.loads(line)["prompt_id"] for line in lines]
        assert ids == [prompt for prompt in ids[::4] for _ in range(4)]  # groups are neighbours
        trained += ids[::4]
    assert len(trained) == steps * 6
    for epoch in range(len(trained) // 8):
        assert sorted(trained[8 * epoch : 8 * epoch + 8]) == sorted(p.id for p in toys.EchoTask().train)
