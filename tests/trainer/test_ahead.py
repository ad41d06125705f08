"""Rollouts that are made while the step before is trained on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from vapo.algo.method import NoCorrection, TruncatedWeight
from vapo.errors import StoppedError, VerifierBrokenError
from vapo.models.placing import split_threads
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.layers import Layer, Source
from vapo.trainer import loop, snapshot
from vapo.trainer.ahead import AheadSource
from vapo.trainer.record import read_rollout, write_rollout
from vapo.trainer.rollouts import Rollout
from vapo.trainer.run import Run
from vapo.types import Episode, Prompt, Turn, Verdict

CLOCKS = ("time/", "throughput/", "mfu/", "memory/", "step_time")
AHEAD: dict[str, Any] = {"trainer": {"max_staleness": 1, "pretraining_steps": 2, "steps": 4}}
NOW: dict[str, Any] = {"trainer": {**AHEAD["trainer"], "max_staleness": 0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


def timeless(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines]


def joint(folder: Path) -> list[dict[str, Any]]:
    return [line for line in timeless(folder) if line["phase"] == "train"]


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("rollout")]


def slow(run: Run, seconds: float, then: Callable[[], None] = lambda: None) -> list[str]:
    """Let every call of the engine take so long, then call `then`; the list fills with what the engine is asked for,
    in order."""
    calls: list[str] = []
    generate, load = run.engine.generate, run.engine.load_weights

    def slow_generate(*args: Any) -> Any:
        where = "there" if threading.current_thread().name.startswith("rollout") else "here"
        calls.append(f"begin {where}")
        time.sleep(seconds)
        completions = generate(*args)
        then()
        calls.append(f"end {where}")
        return completions

    def noted_load(weights: Any, version: int) -> None:
        load(weights, version)
        calls.append(f"load {version}")

    run.engine.generate, run.engine.load_weights = slow_generate, noted_load
    return calls


# --------------------------------------------------------------------------- what a step learns from


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of the same run without and with rollouts made ahead."""
    root = tmp_path_factory.mktemp("pair")
    for name, layer in (("now", NOW), ("ahead", AHEAD)):
        runs.finish(toys.toy_run(base, root / name, layer), report=False)
    return root / "now", root / "ahead"


def test_every_step_but_the_first_learns_from_responses_that_are_one_update_old(pair):
    now, ahead = pair
    assert [line["rollout/staleness"] for line in joint(now)] == [0, 0, 0, 0]
    assert [line["rollout/staleness"] for line in joint(ahead)] == [0, 1, 1, 1]
    gaps = [line["sampler/logp_gap_mean"] for line in joint(ahead)]
    assert gaps[0] < 1e-5 < 1e-3 < min(gaps[1:])
    assert no_thread_is_left()


def test_value_pretraining_and_the_first_step_are_those_of_a_run_that_waits(pair):
    now, ahead = pair
    one, two = timeless(now), timeless(ahead)
    assert one[:2] == two[:2]
    sampled = ("reward", "accuracy", "completions/mean_length", "num_samples", "num_tokens", "entropy")
    assert [one[2].get(key) for key in sampled] == [two[2].get(key) for key in sampled]
    assert one[3] != two[3]
    # the same prompts in the same order: nothing is skipped, nothing drawn twice
    assert [line["num_samples"] for line in one] == [line["num_samples"] for line in two]


def test_a_run_repeats_itself(pair, base: Path, tmp_path: Path):
    _, ahead = pair
    run = toys.toy_run(base, tmp_path / "again", AHEAD)
    slow(run, 0.1)  # however the two threads take turns
    runs.finish(run, report=False)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert timeless(tmp_path / "again", name) == timeless(ahead, name)
    for name in ("policy", "critic"):
        one, two = ((folder / name / "model.safetensors").read_bytes() for folder in (ahead, tmp_path / "again"))
        assert one == two


def test_the_engine_samples_beside_the_update_and_takes_weights_when_it_is_idle(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"evaluation": {"every": 2}}, preset="grpo")
    calls = slow(run, 0.05)
    meanwhile: list[bool] = []
    accumulate = run.policy.accumulate

    def watched(*args: Any, **kwargs: Any) -> Any:
        meanwhile.append(calls[-1] == "begin there")
        return accumulate(*args, **kwargs)

    run.policy.accumulate = watched
    runs.finish(run, report=False)
    assert any(meanwhile)
    here, there = ["begin here", "end here"], ["begin there", "end there"]
    assert calls == [
        *["load 0", *here],  # the evaluation before training
        *[*here, *there, "load 1"],
        *[*there, "load 2", *here],  # an evaluation, with the newest weights
        *[*there, "load 3"],
        *["load 4", *here],  # nothing is sampled for a step after the last
    ]


@pytest.mark.parametrize("preset", ["vapo", "dapo"])
def test_a_rollout_that_waits_is_read_back_with_the_same_numbers(base: Path, tmp_path: Path, preset: str):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"trainer": {"pretraining_steps": 0}}, preset=preset)
    run.hand_over()
    run.source.next(run.state)
    waiting = run.source.waiting()
    assert waiting is not None
    write_rollout(tmp_path / "file.jsonl", waiting)
    stripped = [replace(e, prompt=replace(e.prompt, columns={})) for e in waiting.drawn]
    assert read_rollout(tmp_path / "file.jsonl") == Rollout(tuple(stripped), waiting.kept, waiting.prompts_seen)
    run.source.close()
    run.folder.close()


def test_chats_scores_reference_tokens_and_tool_output_are_read_back(tmp_path: Path):
    prompt = Prompt("p", ({"role": "user", "content": "é?"},), token_ids=(3, 4), privileged_ids=(5,))
    turns = (Turn("policy", (1, 2), (-0.1, -1e-9)), Turn("environment", (7,)), Turn("policy", (1,), (-2.5,)))
    episode = Episode(prompt, 3, turns, "a\nb", "length", 6, Verdict("wrong", "no", "no_answer", 0.25), opened=2)
    write_rollout(tmp_path / "file.jsonl", Rollout((episode,), (0,), 9))
    (read,) = read_rollout(tmp_path / "file.jsonl").drawn
    assert read == episode
    assert (read.verdict.kind, read.verdict.score) == ("no_answer", 0.25)


# --------------------------------------------------------------------------- stops, kills, errors


def stop_at(run: Run, what: str, number: int) -> None:
    """Ask for a stop when the run reports `what` for the `number`-th time; `step` is the end of a step."""
    left = [number]

    def report(name: str) -> None:
        left[0] -= name == what
        run.stop_requested = run.stop_requested or left[0] <= 0

    run.observer.progress = lambda name, *_: report(name)
    run.observer.step = lambda _: report("step")


MOMENTS = [
    ("sampling", 1),
    ("sampling", 9),
    ("verifying", 60),
    ("verifying", 100),
    ("step", 1),
    ("step", 3),
    ("step", 5),
]


@pytest.mark.parametrize(("what", "number"), MOMENTS)
def test_a_run_that_is_stopped_goes_on_as_if_never_stopped(pair, base: Path, tmp_path: Path, what: str, number: int):
    _, ahead = pair
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"checkpoint": {"every": 0}})
    stop_at(run, what, number)
    with pytest.raises(StoppedError, match="vapo resume"):
        runs.finish(run)
    assert no_thread_is_left()
    runs.finish(runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask()), report=False)
    assert timeless(tmp_path / "run") == timeless(ahead)
    file = "policy/model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (ahead / file).read_bytes()


def test_a_stop_in_the_middle_of_an_update_waits_for_the_rollout_and_keeps_it(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"checkpoint": {"every": 0}}, preset="grpo")
    calls = slow(run, 0.3)
    accumulate = run.policy.accumulate

    def stopping(*args: Any, **kwargs: Any) -> Any:
        run.stop_requested = calls[-1] == "begin there" or run.stop_requested
        return accumulate(*args, **kwargs)

    run.policy.accumulate = stopping
    with pytest.raises(StoppedError, match="Stopped in order, saved"):
        runs.finish(run)
    saved = tmp_path / "run" / "checkpoints" / "step_000001"
    manifest = json.loads((saved / "manifest.json").read_text())
    assert snapshot.WAITING in manifest["files"]
    assert {e.policy_version for e in read_rollout(saved / snapshot.WAITING).drawn} == {0}


def test_a_kill_that_python_sees_ends_the_thread_too(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, preset="grpo")
    slow(run, 0.5)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run.policy.accumulate = interrupt
    with pytest.raises(KeyboardInterrupt):
        runs.finish(run)
    assert no_thread_is_left()


class BreaksLater(toys.EchoTask):
    """A verifier that judges so many responses, and then no more."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        self.left -= 1
        return super().verify(prompt, response) if self.left >= 0 else Verdict("invalid", "out of order")


def test_an_error_in_the_thread_ends_the_run_with_its_own_words(base: Path, tmp_path: Path):
    before = 16 + 32 + 32  # the evaluation, and the responses of two steps
    run = toys.toy_run(base, tmp_path / "run", AHEAD, preset="grpo", task=BreaksLater(before))
    with pytest.raises(VerifierBrokenError, match=r"could not judge 32 of 32 responses.*out of order"):
        runs.finish(run)
    assert no_thread_is_left()
    assert [line["step"] for line in joint(tmp_path / "run")] == [1, 2]
    # the finished step is saved without the responses that could not be judged; the next ones are sampled again
    run = runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask())
    assert run.state.step == 2
    runs.finish(run, report=False)
    whole = toys.toy_run(base, tmp_path / "whole", AHEAD, preset="grpo")
    runs.finish(whole, report=False)
    steps = [line["step"] for line in joint(tmp_path / "whole")]
    assert [line["step"] for line in joint(tmp_path / "run")] == steps
    assert timeless(tmp_path / "run")[:2] == timeless(tmp_path / "whole")[:2]


def test_an_error_in_value_pretraining_does_the_same(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, task=BreaksLater(16 + 16 + 32))
    with pytest.raises(VerifierBrokenError, match="out of order"):
        runs.finish(run)
    assert no_thread_is_left()


def test_a_rollback_drops_the_rollout_and_samples_from_the_weights_it_returned_to(base: Path, tmp_path: Path):
    guards = {"guards": {"clipped_ratio_above": 0.0, "patience": 2, "action": "rollback", "max_rollbacks": 1}}
    run = toys.toy_run(base, tmp_path / "run", AHEAD, guards, preset="grpo")
    ages: list[tuple[int, int]] = []
    run.observer.step = lambda line: ages.append((line["step"], line["rollout/staleness"]))
    with pytest.raises(Exception, match="1 rollback did not help"):
        runs.finish(run)
    assert ages == [(1, 0), (2, 1), (2, 0), (3, 1)]


def test_patience_ends_pretraining_without_what_was_sampled_ahead(base: Path, tmp_path: Path):
    patient = {"trainer": {"pretraining_steps": 6, "pretraining_patience": 1, "pretraining_lr": 0.3}}
    for name, layer in (("now", NOW), ("ahead", AHEAD)):
        runs.finish(toys.toy_run(base, tmp_path / name, layer, patient), report=False)
    one, two = ([m for m in timeless(tmp_path / n) if m["phase"] == "pretrain"] for n in ("now", "ahead"))
    assert one == two
    assert len(one) < 6


def test_a_run_made_longer_begins_with_fresh_responses(pair, base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"trainer": {"steps": 2}})
    runs.finish(run, report=False)
    longer = runs.resume(tmp_path / "run", SilentView(), task=toys.EchoTask(), changes=[steps(4)])
    runs.finish(longer, report=False)
    assert [line["rollout/staleness"] for line in joint(tmp_path / "run")] == [0, 1, 0, 1]
    assert joint(tmp_path / "run")[:2] == joint(pair[1])[:2]


def steps(count: int) -> Layer:
    return Layer(Source.OPTION, "--set", {"trainer": {"steps": count}})


def test_a_loop_without_the_waiting_rollout_is_another_run(pair, base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD)
    train_step = loop.train_step

    def forgetful(run: Run) -> None:
        run.source.restart(None)
        train_step(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", forgetful)
        runs.finish(run, report=False)
    assert [line["rollout/staleness"] for line in joint(tmp_path / "run")] == [0, 0, 0, 0]
    assert timeless(tmp_path / "run") != timeless(pair[1])


# --------------------------------------------------------------------------- settings and threads


def test_stale_responses_bring_a_sampler_correction_unless_it_was_chosen(base: Path):
    assert toys.toy_config(base, NOW).algorithm.sampler == NoCorrection()
    config = toys.toy_config(base, AHEAD)
    assert config.algorithm.sampler == TruncatedWeight()
    assert config.changed == ()
    assert "another course than with 0; it repeats and resumes exactly" in config.notes[0]
    assert "one update old, so algorithm.sampler=truncated weighs the loss" in config.notes[1]
    chosen = toys.toy_config(base, AHEAD, {"algorithm": {"sampler": {"kind": "none"}}})
    assert chosen.algorithm.sampler == NoCorrection()
    assert "older weights sampled is trained on as if it were the policy's own" in chosen.notes[1]
    assert toys.toy_config(base, AHEAD, preset="sao").algorithm == toys.toy_config(base, NOW, preset="sao").algorithm
    assert not any("weighs" in note for note in toys.toy_config(base, AHEAD, preset="sao").notes)
    vllm = toys.toy_config(base, AHEAD, {"rollout": {"engine": "vllm"}})
    assert vllm.algorithm.sampler == TruncatedWeight()
    assert not any("exactly" in note for note in vllm.notes)
    assert all("\n" not in note for note in (*config.notes, *vllm.notes))


def test_a_gap_between_sampler_and_trainer_is_no_alarm_where_it_is_wanted(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, {"guards": {"patience": 1}}, preset="grpo")
    assert run.guards.logp_gap_above is None
    runs.finish(run, report=False)
    alarms = [line.get("name") for line in timeless(tmp_path / "run", "events.jsonl") if line["event"] == "alarm"]
    assert "sampler disagrees" not in alarms
    chosen = toys.toy_run(base, tmp_path / "chosen", AHEAD, {"guards": {"logp_gap_above": 0.5}}, preset="grpo")
    assert chosen.guards.logp_gap_above == 0.5
    chosen.folder.close()


def test_sampling_and_training_share_the_threads(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD, preset="grpo")
    assert isinstance(run.source, AheadSource)
    seen: list[tuple[int, bool, bool]] = []

    def look() -> None:
        if threading.current_thread().name.startswith("rollout"):
            seen.append((torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    slow(run, 0.0, look)
    runs.finish(run, report=False)
    assert seen == [(1, True, False)] * 3
    every = torch.get_num_threads()
    try:
        for count, ours, others in ((1, 1, 1), (2, 1, 1), (3, 2, 1), (8, 4, 4)):
            torch.set_num_threads(count)
            assert (split_threads(), torch.get_num_threads()) == (others, ours)
            found: list[int] = []

            def compute(found: list[int] = found, others: int = others) -> None:
                torch.set_num_threads(others)
                torch.ones(1000, 1000).sum()
                found.append(torch.get_num_threads())

            thread = threading.Thread(target=compute)
            thread.start()
            thread.join()
            torch.ones(1000, 1000).sum()
            assert (found, torch.get_num_threads()) == ([others], ours)  # each thread has its own number
    finally:
        torch.set_num_threads(every)


def test_the_engines_model_shares_nothing_with_the_one_that_is_trained(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", AHEAD)
    trained, sampled = run.policy.model, run.engine._decoder.model
    assert trained.config is not sampled.config  # packed attention changes its name there for a while
    ours = {id(module.config) for module in trained.modules() if hasattr(module, "config")}
    assert not ours & {id(module.config) for module in sampled.modules() if hasattr(module, "config")}
    tensors = {t.data_ptr() for t in trained.state_dict().values()}
    assert not tensors & {t.data_ptr() for t in sampled.state_dict().values()}
    run.source.close()
    run.folder.close()
