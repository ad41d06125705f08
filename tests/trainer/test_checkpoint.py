"""Checkpoint folders: whole or not there, damage found and named, old formats read, full disks survived."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from vapo.chaos.faults import spoil_gradient_step
from vapo.durability import checkpoint
from vapo.errors import CheckpointError, ConfigError, StoppedError
from vapo.json_text import json_text
from vapo.metrics import Phase
from vapo.models.saving import save_model
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.layers import Layer, Source
from vapo.trainer import network_files, snapshot
from vapo.trainer.loop import train_step
from vapo.trainer.run import Run

GOLDEN = Path(__file__).parent / "golden" / "format-1"


def write(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.json").write_text('{"a": 1}')
    (folder / "b.bin").write_bytes(bytes(range(256)))


def saved(root: Path, *serials: int, keep: int = 100) -> list[Path]:
    return [checkpoint.save(root, f"step_{i:06d}", write, serial=i, keep=keep) for i in serials]


def test_a_saved_folder_is_healthy_and_the_newest_counts(tmp_path: Path):
    first, second = saved(tmp_path, 1, 2)
    assert checkpoint.problems(first) == []
    assert checkpoint.newest(tmp_path, print) == second
    assert sorted(json.loads((second / "manifest.json").read_text())["files"]) == ["b.bin", "inner/a.json"]


@pytest.mark.parametrize("name", ["b.bin", "inner/a.json", "manifest.json"])
def test_every_bit_of_every_file_counts(tmp_path: Path, name: str):
    _, folder = saved(tmp_path, 1, 2)
    data = (folder / name).read_bytes()
    content = json.loads(data) if name == "manifest.json" else None
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << (at % 8)
        (folder / name).write_bytes(spoiled)
        try:
            same = content is not None and json.loads(spoiled) == content  # white space between the words
        except ValueError:
            same = False
        assert bool(checkpoint.problems(folder)) != same, at
    (folder / name).write_bytes(data)
    assert checkpoint.problems(folder) == []


def test_a_damaged_checkpoint_is_named_and_kept_and_the_one_before_is_used(tmp_path: Path):
    first, second = saved(tmp_path, 1, 2)
    messages: list[str] = []
    for _ in range(2):  # damaged again after it was saved again
        (second / "b.bin").write_bytes(b"short")
        assert checkpoint.newest(tmp_path, messages.append) == first
        saved(tmp_path, 2)
    assert "step_000002 is damaged (b.bin has 5 bytes instead of 256)" in messages[0]
    assert {p.name for p in tmp_path.glob("*.corrupt")} == {"step_000002.corrupt", "step_000002-2.corrupt"}


def test_a_checkpoint_that_cannot_be_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = saved(tmp_path, 1, 2)
    sha256 = checkpoint.sha256

    def broken(path: Path) -> str:
        if path == second / "b.bin":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", broken)
    assert checkpoint.problems(second) == ["b.bin cannot be read: Input/output error"]
    messages: list[str] = []
    assert checkpoint.newest(tmp_path, messages.append) == first
    assert "step_000002 is damaged (b.bin cannot be read: Input/output error)" in messages[0]


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(tmp_path: Path):
    _, second = saved(tmp_path, 1, 2, keep=1)
    (second / "manifest.json").write_text("{")
    (third,) = saved(tmp_path, 3, keep=1)
    assert checkpoint.problems(third) == []
    assert checkpoint.newest(tmp_path, lambda _: None) == third


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path: Path):
    (first,) = saved(tmp_path, 1)

    def fails(folder: Path) -> None:
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, "step_000002", fails, serial=2, keep=1)
    assert list(tmp_path.iterdir()) == [first]
    assert checkpoint.problems(first) == []


def test_files_that_other_processes_wrote_come_with_their_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    real = checkpoint.sha256
    monkeypatch.setattr(checkpoint, "sha256", lambda path: read.append(path.name) or real(path))

    def written_elsewhere(folder: Path) -> checkpoint.Entries:
        write(folder)
        return {"b.bin": {"bytes": 256, "sha256": real(folder / "b.bin")}}

    folder = checkpoint.save(tmp_path, "step_000001", written_elsewhere, serial=1, keep=1)
    assert "b.bin" not in read
    assert checkpoint.problems(folder) == []
    (folder / "b.bin").write_bytes(bytes(255) + b"x")
    assert checkpoint.problems(folder) == ["the SHA-256 of b.bin has changed since it was saved"]


@pytest.mark.parametrize("entry", [{"missing.bin": 256}, {"b.bin": 255}])
def test_a_part_that_is_not_here_as_it_was_written_fails_the_save(tmp_path: Path, entry: dict[str, int]):
    (first,) = saved(tmp_path, 1)

    def elsewhere(folder: Path) -> checkpoint.Entries:
        write(folder)
        return {name: {"bytes": size, "sha256": ""} for name, size in entry.items()}

    with pytest.raises(OSError, match=r"is not here as its process wrote it; all machines") as caught:
        checkpoint.save(tmp_path, "step_000002", elsewhere, serial=2, keep=1)
    assert checkpoint.refused(caught.value)
    assert list(tmp_path.iterdir()) == [first]


def test_a_newer_format_is_refused_and_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 5)
    (folder,) = saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 5; this version of vapo reads up to 4"):
        checkpoint.newest(tmp_path, print)
    assert folder.exists()


# --------------------------------------------------------------------------- runs


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return toys.toy_base(tmp_path / "base")


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_checkpoint_of_format_1_goes_on(tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN, folder)
    run = runs.resume(folder, SilentView(), task=toys.EchoTask())
    assert (run.state.step, run.state.evaluated, run.state.gradient_steps) == (1, 1, 2)
    runs.finish(run, report=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(m["phase"], m["step"]) for m in lines] == [
        ("pretrain", 1),
        ("pretrain", 2),
        *(("train", i) for i in (1, 2, 3)),
    ]
    newest = checkpoint.newest(folder / "checkpoints", print)
    assert newest is not None
    assert json.loads((newest / "manifest.json").read_text())["format"] == checkpoint.FORMAT


def refusing(run: Run, times: int, patch: pytest.MonkeyPatch) -> None:
    """From the second save on, the disk refuses so many saves."""
    real, seen = checkpoint._fill, 0

    def fill(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if 1 < seen <= 1 + times:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    patch.setattr(checkpoint, "_fill", fill)


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = toys.toy_run(base, tmp_path / "run", {"checkpoint": {"every": 2}})
    refusing(run, 2, monkeypatch)
    runs.finish(run, report=False)
    alarms = [e["message"] for e in events(tmp_path / "run") if e["event"] == "alarm" and "lasting" not in e]
    assert len(alarms) == 2
    assert "No space left" in alarms[0]
    assert "pretrain_000000 stays the newest checkpoint" in alarms[0]
    # tried again after the very next step, not two later
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} >= {"step_000002", "step_000003"}


def test_after_three_refusals_the_run_stops_and_can_be_resumed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = toys.toy_run(base, tmp_path / "run")
    refusing(run, 10**9, monkeypatch)
    with pytest.raises(StoppedError, match=r"refused 3 saves in a row.*vapo resume") as stop:
        runs.finish(run, report=False)
    assert stop.value.exit_code == 75
    monkeypatch.undo()
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()), report=False)
    runs.finish(toys.toy_run(base, tmp_path / "whole"), report=False)
    one, other = (checkpoint.sha256(tmp_path / n / "policy" / "model.safetensors") for n in ("run", "whole"))
    assert one == other


def test_a_run_that_would_not_fit_is_refused_before_it_begins(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"The run needs about .* GB .* lower checkpoint.keep"):
        toys.toy_run(base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_killed_before_its_start_can_be_used(base: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    for name in ("run.lock", ".environment.json.tmp", "environment.json", ".config.yaml.tmp"):
        (tmp_path / "run" / name).write_text("half")
    run = toys.toy_run(base, tmp_path / "run")
    run.folder.close()
    assert (tmp_path / "run" / "config.yaml").exists()


# --------------------------------------------------------------------------- settings


def stopped(base: Path, folder: Path) -> None:
    run = toys.toy_run(base, folder)
    run.observer.step = lambda m: setattr(run, "stop_requested", m["phase"] == "train")
    with pytest.raises(StoppedError):
        runs.finish(run)


def resume(folder: Path, values: dict[str, Any], **options: Any) -> Run:
    return runs.resume(
        folder,
        SilentView(),
        task=toys.EchoTask(),
        changes=[Layer(Source.OPTION, "--set", values)] if values else [],
        **options,
    )


def test_a_new_task_option_counts_as_a_changed_setting():
    then = {"task": {"name": "maze"}, "trainer": {"steps": 3}}
    now = {"task": {"name": "maze", "side": 7}, "trainer": {"steps": 3, "new_in_this_version": 1}}
    assert snapshot.changes(now, then) == ["task.side: None -> 7"]


def test_a_limit_of_the_guards_is_a_change_where_more_than_a_warning_depends_on_it():
    then = {"guards": {"action": "warn", "patience": 3}, "trainer": {"pretraining_ready": 0.5}}
    assert (
        snapshot.changes({"guards": {"action": "warn", "patience": 9}, "trainer": {"pretraining_ready": 0.1}}, then)
        == []
    )
    stops = {"guards": {"action": "stop", "patience": 3}, "trainer": {"pretraining_ready": 0.5}}
    assert snapshot.changes(stops, then) == ["guards.action: warn -> stop"]
    assert snapshot.changes({**stops, "guards": {"action": "stop", "patience": 9}}, stops) == [
        "guards.patience: 3 -> 9"
    ]


def test_more_workers_on_another_cluster_are_no_change_and_more_training_ranks_are_one():
    then = {"scale": {"address": None, "restarts": 3, "rollout_workers": 1, "verifier_workers": 1, "training_ranks": 1}}
    now = {
        "scale": {"address": "auto", "restarts": 9, "rollout_workers": 4, "verifier_workers": 0, "training_ranks": 2}
    }
    assert snapshot.changes(now, then) == ["scale.training_ranks: 1 -> 2"]


def test_what_a_run_holds_is_closed_also_where_one_end_raises(base: Path, tmp_path: Path):
    run, ended = toys.toy_run(base, tmp_path / "run"), list[str]()

    def refuse() -> None:
        raise RuntimeError("the engine hangs")

    run.source.close = run.engine.close = refuse
    run.closing.append(lambda: ended.append("cluster"))
    run.on_end.append(lambda failed: ended.append(f"trackers, {failed}"))
    with pytest.raises(RuntimeError, match="the engine hangs"):
        runs.finish(run, report=False)
    assert ended == ["cluster", "trackers, False"]
    resume(tmp_path / "run", {}).folder.close()  # its lock is free


def test_a_task_option_that_json_cannot_say_is_no_change_after_a_resume():
    now = {"task": {"name": "mine", "limit": math.inf, "weights": [0.5, math.nan]}}
    then = json.loads(json_text(now))  # as the checkpoint holds it
    assert snapshot.changes(now, then) == []
    assert snapshot.changes({"task": {**now["task"], "limit": 5}}, then) == ["task.limit: None -> 5"]


def test_a_resume_refuses_changed_settings_that_alter_results(base: Path, tmp_path: Path):
    folder = tmp_path / "run"
    stopped(base, folder)
    lower = {"trainer": {"actor_lr": 1e-4}}
    with pytest.raises(ConfigError, match=r"trainer.actor_lr: 0.003 -> 0.0001.*--allow-change") as refused:
        resume(folder, lower)
    assert str(refused.value).endswith(f"vapo resume {folder} --set trainer.actor_lr=0.0001 --allow-change")
    # nor by an editor
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("max_grad_norm: 1.0", "max_grad_norm: 2.0"))
    with pytest.raises(ConfigError, match=r"trainer.max_grad_norm: 1.0 -> 2.0"):
        resume(folder, {})
    (folder / "config.yaml").write_text(text)
    resume(folder, lower, allow_change=True).folder.close()  # killed before its first step
    run = resume(folder, {})
    runs.finish(run, report=False)
    assert [e["changes"] for e in events(folder) if e["event"] == "resumed"] == [
        ["trainer.actor_lr: 0.003 -> 0.0001"],
        [],
    ]
    assert (folder / "method.yaml").read_text().count("actor_lr: 0.0001") == 1
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lr/actor"] == 1e-4
    resume(folder, {}).folder.close()  # and it is the run's setting from now on


@pytest.mark.parametrize("model", [{}, {"policy_lora": 2}], ids=["weights", "adapters"])
def test_a_kl_term_that_is_switched_on_measures_from_the_policy_of_the_checkpoint(
    base: Path, tmp_path: Path, model: dict[str, Any]
):
    folder = tmp_path / "run"
    run = toys.toy_run(base, folder, {"model": model, "algorithm": {"kl": {"coef": 0.0}}}, preset="grpo")
    assert run.reference is None
    run.state.phase = Phase.TRAIN
    train_step(run)
    snapshot.save(run)
    run.folder.close()
    again = resume(folder, {"algorithm": {"kl": {"coef": 0.01}}}, allow_change=True)
    assert again.reference is not None
    reference = again.reference.model.state_dict()
    assert all(torch.equal(weights, reference[name]) for name, weights in run.policy.model.state_dict().items())
    again.hand_over()
    train_step(again)
    again.folder.close()


def test_a_run_can_be_made_longer_even_when_it_is_done(base: Path, tmp_path: Path):
    runs.finish(toys.toy_run(base, tmp_path / "run"), report=False)
    runs.finish(resume(tmp_path / "run", {"trainer": {"steps": 5}}), report=False)
    runs.finish(toys.toy_run(base, tmp_path / "long", {"trainer": {"steps": 5}}), report=False)
    one, other = (checkpoint.sha256(tmp_path / n / "policy" / "model.safetensors") for n in ("run", "long"))
    assert one == other


def test_a_run_cannot_be_made_shorter_than_it_is(base: Path, tmp_path: Path):
    runs.finish(toys.toy_run(base, tmp_path / "run"), report=False)
    with pytest.raises(ConfigError, match=r"has done 3 steps, so trainer.steps=2 is behind it"):
        resume(tmp_path / "run", {"trainer": {"steps": 2}})


def test_a_kill_while_the_finished_models_are_written_leaves_none_that_is_torn(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = network_files.save_model

    def killed(model, tokenizer, folder: Path) -> None:
        real(model, tokenizer, folder)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(network_files, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.finish(toys.toy_run(base, tmp_path / "run"), report=False)
    assert not (tmp_path / "run" / "policy").exists()
    monkeypatch.undo()
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()), report=False)
    assert (tmp_path / "run" / "policy" / "model.safetensors").stat().st_size > 4
    assert not list((tmp_path / "run").glob(".policy*"))


def test_a_run_keeps_its_method_and_who_chose_its_settings(base: Path, tmp_path: Path):
    folder = tmp_path / "run"
    stopped(base, folder)
    with pytest.raises(ConfigError, match=r"algorithm.preset makes another method"):
        resume(folder, {"algorithm": {"preset": "grpo"}})
    before = json.loads((folder / "sources.json").read_text())["settings"]
    resume(folder, {"trainer": {"steps": 5}}).folder.close()
    after = json.loads((folder / "sources.json").read_text())["settings"]
    assert before["trainer.steps"] == ["file", "toy"]
    assert after == {**before, "trainer.steps": ["option", "--set"]}


def test_environment_json_lists_every_resume(base: Path, tmp_path: Path):
    folder = tmp_path / "run"
    stopped(base, folder)
    resume(folder, {}).folder.close()
    resume(folder, {}).folder.close()
    environment = json.loads((folder / "environment.json").read_text())
    assert [entry["step"] for entry in environment["resumed"]] == [1, 1]
    assert all(entry["packages"] == environment["packages"] for entry in environment["resumed"])


def test_a_run_without_a_healthy_checkpoint_is_not_started_over(base: Path, tmp_path: Path):
    folder = tmp_path / "run"
    runs.finish(toys.toy_run(base, folder, {"checkpoint": {"keep": 1}}), report=False)
    (only,) = (folder / "checkpoints").iterdir()
    (only / "state.json").write_text("{}")
    lines = (folder / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"No checkpoint .* healthy \(step_000003.corrupt\)"):
        resume(folder, {})
    assert (folder / "metrics.jsonl").read_text() == lines


def test_a_folder_that_cannot_be_written_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuses(self, name: str, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vapo.trainer.record.RunFolder.write_text", refuses)
    with pytest.raises(ConfigError, match=r"Cannot write to .*run: .*No space left"):
        toys.toy_run(base, tmp_path / "run")


def test_other_errors_of_the_system_are_not_called_a_full_disk(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run")

    def fails(_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "somewhere else")

    run.observer.step = fails
    with pytest.raises(FileNotFoundError):
        runs.finish(run)


def test_rollouts_and_skipped_minibatches_that_cannot_be_written_are_alarms_that_the_user_sees(
    base: Path, tmp_path: Path
):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 1}}, preset="grpo")
    (tmp_path / "run" / "rollouts").write_text("no folder")
    (tmp_path / "run" / "skipped").write_text("no folder")
    spoil_gradient_step(run, "policy", 1, "loss", float("nan"))
    seen: list[str] = []
    run.observer.alarm = seen.append
    runs.finish(run, report=False)
    assert any(message.startswith("Rollouts of step_000001 were not written") for message in seen)
    assert any(message.startswith("The skipped minibatches of step_000001_policy") for message in seen)
    written = [e["message"] for e in events(tmp_path / "run") if e["event"] == "alarm"]
    assert set(seen) == set(written)


def test_a_full_disk_is_recognised_by_a_librarys_message(tmp_path: Path):
    assert checkpoint.refused(Exception("No space left on device (os error 28)"))
    assert checkpoint.refused(OSError(errno.EROFS, "Read-only file system"))
    assert not checkpoint.refused(OSError(errno.EMFILE, "Too many open files"))
    if Path("/dev/full").exists():
        (tmp_path / "tokenizer.json").symlink_to("/dev/full")
        with pytest.raises(OSError, match="os error 28") as full:
            save_model(toys.tiny_llama(), toys.tokenizer(), tmp_path)
        assert full.value.errno == errno.ENOSPC
