"""`vapo fork` and `vapo pretrain-critic`, from the command line."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import sets, vapo
from vapo.durability import checkpoint
from vapo.errors import ConfigError
from vapo.session import forking
from vapo.session.forking import checkpoint_of
from vapo.session.forking import fork as copy_run
from vapo.session.layers import set_layer
from vapo.session.run_dirs import check_folder, config_to_resume

SMALL = ["trainer.samples_per_step=16", "trainer.group_size=4", "trainer.minibatch_size=8", "evaluation.prompts=4",
         "trainer.pretraining_heldout=8", "evaluation.samples_per_prompt=1", "scale.threads=1", "evaluation.every=0",
         "rollout.max_response_tokens=16", "checkpoint.every=1", "checkpoint.keep=9"]  # fmt: skip


def steps_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert vapo(patch, "train", "--run-dir", "run", "--steps", "3",
                    *sets(*SMALL, "trainer.pretraining_steps=1")) == 0  # fmt: skip
    return folder / "run"


def test_a_fork_shares_the_past_and_leaves_its_origin_alone(run: Path, monkeypatch, tmp_path: Path, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    path = tmp_path / "fork"
    assert (
        vapo(monkeypatch, "fork", str(run), "--step", "1", "--run-dir", str(path), *sets("trainer.actor_lr=0.0")) == 0
    )
    assert "vapo compare" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before
    ours, theirs = steps_of(path), steps_of(run)
    assert [line["step"] for line in ours] == [1, 2, 3]
    assert ours[0] == theirs[0]
    assert ours[1]["reward"] == theirs[1]["reward"]  # the same policy sampled
    assert ours[1]["lr/actor"] == 0.0
    weights = load_file(path / "checkpoints" / "step_000001" / "policy" / "model.safetensors")
    after = load_file(path / "policy" / "model.safetensors")
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert any("trainer.actor_lr" in line for line in (path / "events.jsonl").read_text().splitlines())


def test_a_fork_without_changes_ends_as_its_origin(run: Path, monkeypatch, tmp_path: Path, capsys):
    fork = tmp_path / "fork"
    assert vapo(monkeypatch, "fork", str(run), "--step", "2", "--run-dir", str(fork)) == 0
    said = capsys.readouterr().out
    assert f"Read both vapo view {run} {fork}" in said  # one method with one seed is nothing to compare
    assert "vapo compare" not in said
    one, other = (load_file(path / "policy" / "model.safetensors") for path in (run, tmp_path / "fork"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-run",), "is not a run directory"),
        (("RUN", "--step", "9"), "keeps no checkpoint of step 9; there are those of 1, 2, 3."),
        (("RUN",), "The checkpoint of step 3 is the run's last, with trainer.steps=3"),
        (("RUN", "--step", "2", "--run-dir", "RUN"), "is not empty"),
        (("RUN", "--step", "2", "--set", "trainer.steps=3", "--set", "task.side=99"), "side"),
        (("RUN", "--set", "trainer.actor_lrr=1"), "actor_lrr"),
        (("RUN", "--set", "algorithm.preset=grpo"), "algorithm.preset makes another method"),
        (("RUN", "--step", "1", "--set", "model.critic=base"), "model.critic=base would have no effect"),
        (("RUN", "--step", "1", "--set", "model.policy=base"), "config.yaml --set model.policy=base"),
        (("RUN", "--step", "1", "--set", "task.name=walk"), "task.name=walk is another task than"),
        (
            ("RUN", "--step", "1", "--set", "trainer.pretraining_lr=0.1", "--set", "trainer.pretraining_steps=4"),
            "trainer.pretraining_lr and trainer.pretraining_steps would have no effect: value pretraining was over",
        ),
    ],
)
def test_a_fork_that_cannot_be_is_refused_before_anything_is_copied(
    arguments, message, run: Path, monkeypatch, tmp_path: Path, capsys
):
    monkeypatch.chdir(tmp_path)
    assert vapo(monkeypatch, "fork", *(a.replace("RUN", str(run)) for a in arguments)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
    assert not run.with_name("run-fork").exists()


def test_a_resume_refuses_another_task_and_a_change_can_mend_what_no_run_could_begin_with(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"task\.name=walk is another task than"):
        config_to_resume(run, changes=[set_layer("task.name=walk")])
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    text = (broken / "config.yaml").read_text()
    (broken / "config.yaml").write_text(re.sub(r"group_size: \d+", "group_size: 7", text))
    with pytest.raises(ConfigError, match="group_size"):
        config_to_resume(broken)
    assert config_to_resume(broken, changes=[set_layer("trainer.group_size=4")])


@pytest.fixture
def damaged(run: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the run, in the working folder, whose checkpoint of step 2 is damaged and the newest."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree("run/checkpoints/step_000003")
    Path("run/checkpoints/step_000002/critic/model.safetensors").write_bytes(b"torn")
    return Path("run")


def test_a_fork_takes_the_newest_checkpoint_that_is_not_damaged(damaged: Path, monkeypatch, capsys):
    assert vapo(monkeypatch, "fork", "run", "--run-dir", "fork", *sets("trainer.steps=2"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == "step_000001"
    assert [line["step"] for line in steps_of(Path("fork"))] == [1, 2]


@pytest.mark.parametrize(("words", "advice"), [(["--step", "2"], "Take another --step"), ([], "vapo train")])
def test_a_fork_of_damaged_checkpoints_names_the_run_that_has_them(damaged: Path, monkeypatch, capsys, words, advice):
    if not words:
        for path in damaged.glob("checkpoints/*/manifest.json"):
            path.write_text("{}")
    assert vapo(monkeypatch, "fork", "run", *words) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"{damaged.resolve()} has no healthy checkpoint to go on from here (" in said
    assert "step_000002: " in said
    assert advice in said
    assert not Path("run-fork").exists()


def test_a_fork_goes_on_from_a_checkpoint_whose_replacement_was_killed(damaged: Path, monkeypatch, capsys):
    shutil.rmtree(damaged / "checkpoints" / "step_000002")
    (damaged / "checkpoints" / "step_000001").rename(damaged / "checkpoints" / "step_000001.old")
    assert checkpoint_of(damaged, None, 3) == checkpoint_of(damaged, 1, 3) == "step_000001.old"
    with pytest.raises(ConfigError, match="there are those of 1"):
        checkpoint_of(damaged, 2, 3)
    assert vapo(monkeypatch, "fork", "run", "--step", "1", "--run-dir", "fork", *sets("trainer.steps=2")) == 0
    assert [line["step"] for line in steps_of(Path("fork"))] == [1, 2]


def test_a_fork_that_cannot_be_copied_is_one_line_and_leaves_nothing(damaged: Path, monkeypatch, capsys):
    def full(source, target, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copy2", full)
    assert vapo(monkeypatch, "fork", "run", "--step", "1", "--run-dir", "fork") == 2
    assert "Cannot copy" in (said := capsys.readouterr().err)
    assert "No space left on device" in said
    assert not Path("fork").exists()


def test_a_fork_of_a_critics_run_goes_on_with_its_pretraining_and_says_what_comes_after_it(tmp_path: Path):
    checkpoint.save(tmp_path / "checkpoints", "pretrain_000002", lambda _: None, serial=2, keep=9)
    assert checkpoint_of(tmp_path, None, 0, 3) == "pretrain_000002"
    with pytest.raises(ConfigError, match=f"write its critic first: vapo resume {tmp_path}"):
        checkpoint_of(tmp_path, None, 0, 2)
    (tmp_path / "critic").mkdir()
    with pytest.raises(ConfigError, match=r"vapo train .*config.yaml --critic .*critic --set trainer.steps=N"):
        checkpoint_of(tmp_path, None, 0, 2)


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("pretrain_000002", ["pretrain_000003.jsonl.gz", "step_000001.index.json.gz", "step_000001.jsonl.gz"]),
        ("step_000001.old", ["step_000002.jsonl.gz"]),
    ],
)
def test_a_fork_copies_no_rollouts_of_steps_after_its_checkpoint(tmp_path: Path, name: str, later: list[str]):
    run, path = tmp_path / "run", tmp_path / "fork"
    checkpoint.save(run / "checkpoints", name, lambda _: None, serial=2, keep=9)
    (run / "rollouts").mkdir()
    kept = [
        "pretrain_000002.jsonl.gz",
        *(["pretrain_000003.jsonl.gz", "step_000001.jsonl.gz"] if "step" in name else []),
    ]
    for file in (*kept, *later):
        (run / "rollouts" / file).touch()
    copy_run(run, name, path)
    assert sorted(file.name for file in (path / "rollouts").iterdir()) == kept


def test_of_two_forks_into_one_folder_one_is_refused_and_the_other_stays(tmp_path: Path, monkeypatch):
    run, path = tmp_path / "run", tmp_path / "fork"
    checkpoint.save(run / "checkpoints", "step_000001", lambda _: None, serial=1, keep=9)

    def other_begins(folder: Path) -> None:  # between the look at the folder and the claim
        monkeypatch.setattr(forking, "check_folder", check_folder)
        copy_run(run, "step_000001", folder)

    monkeypatch.setattr(forking, "check_folder", other_begins)
    with pytest.raises(ConfigError, match=f"Another process has begun to write to {path}"):
        copy_run(run, "step_000001", path)
    assert checkpoint.problems(path / "checkpoints" / "step_000001") == []


def test_a_fork_that_cannot_be_copied_leaves_what_was_there(tmp_path: Path, monkeypatch):
    run, path = tmp_path / "run", tmp_path / "fork"
    checkpoint.save(run / "checkpoints", "step_000001", lambda _: None, serial=1, keep=9)
    (run / "config.yaml").touch()
    path.mkdir()
    (path / "vllm.log").touch()  # of a run that was killed before it began

    def full(source, target, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        copy_run(run, "step_000001", path)
    assert [entry.name for entry in path.iterdir()] == ["vllm.log"]


def test_a_fork_that_is_stopped_before_it_loads_leaves_nothing(run: Path, monkeypatch, tmp_path: Path):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vapo.cli.branching.view_for", stopped)
    assert vapo(monkeypatch, "fork", str(run), "--step", "1", "--run-dir", str(tmp_path / "fork")) == 130
    assert not (tmp_path / "fork").exists()


def test_only_a_folder_that_is_a_run_is_to_be_resumed(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError) as error:
        check_folder(tmp_path)
    assert str(error.value).endswith("is not empty. Choose another --run-dir.")


def test_pretrain_critic_leaves_a_critic_and_an_untouched_policy(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.chdir(tmp_path)
    own = sets(*SMALL, "trainer.pretraining_passes=2", "model.critic_kind=side")
    assert vapo(monkeypatch, "pretrain-critic", "--steps", "2", "--run-dir", "critic-run", *own) == 0
    use = re.search(r"Use it +vapo (train .*)", capsys.readouterr().out)
    assert use is not None
    left = [text for text in SMALL if not text.startswith("trainer.pretraining_")]
    again = ["train", *sets(*left, "model.critic_kind=side"), "--critic", "critic-run/critic"]
    assert shlex.split(use[1]) == again
    assert vapo(monkeypatch, *again, "--dry-run") == 0
    lines = [json.loads(line) for line in (tmp_path / "critic-run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["pretrain", "pretrain"]
    assert (tmp_path / "critic-run" / "critic" / "config.json").exists()
    assert vapo(monkeypatch, "pretrain-critic", *sets("algorithm.preset=grpo")) == 2
    assert "set trainer.pretraining_steps with a preset that has a critic" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["vapo", "grpo"])
def test_pretrain_critic_trains_no_policy(monkeypatch, tmp_path: Path, capsys, preset: str):
    monkeypatch.chdir(tmp_path)
    own = sets("trainer.steps=1", f"algorithm.preset={preset}")
    assert vapo(monkeypatch, "pretrain-critic", "--run-dir", "critic-run", *own) == 2
    assert "trains no policy, and trainer.steps=1 would train one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
