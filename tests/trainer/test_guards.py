"""Bad numbers, alarms, rollbacks, lack of memory, and the watch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toys
from vapo.durability.watch import Watchdog
from vapo.durability.watchdog import Deadlines
from vapo.errors import DivergedError, VapoError
from vapo.metrics import METRICS
from vapo.reports.runfiles import read_jsonl
from vapo.session import lifecycle as runs
from vapo.session.signals import exit_code_of
from vapo.trainer.batch import Batch
from vapo.trainer.guards import ALARMS, new_alarms
from vapo.trainer.run import Run
from vapo.trainer.settings import GuardSettings
from vapo.trainer.state import State


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return toys.toy_base(tmp_path / "base")


# --------------------------------------------------------------------------- alarms


HEALTHY = {
    "entropy": 0.5,
    "value/explained_variance": 0.3,
    "completions/clipped_ratio": 0.1,
    "grad_norm/policy": 0.5,
    "grad_norm/critic": 1.0,
}
NAMES = {
    "entropy": "entropy collapse",
    "value/explained_variance": "critic worse than none",
    "completions/clipped_ratio": "length at the limit",
}


@pytest.mark.parametrize(
    ("metric", "bad", "words"),
    [
        ("entropy", 0.001, "0.0010 nats a token"),
        ("value/explained_variance", -0.2, "explained variance is -0.20"),
        ("completions/clipped_ratio", 0.9, "90% of the responses are cut off"),
    ],
)
def test_an_alarm_is_raised_once_after_enough_bad_steps_in_a_row(metric: str, bad: float, words: str):
    state, settings = State(), GuardSettings(patience=3)
    values = [bad, bad, 0.4, bad, bad, bad, bad, bad]
    raised = [new_alarms({**HEALTHY, metric: value}, state, settings) for value in values]
    assert [bool(t) for t in raised] == [False] * 5 + [True] + [False] * 2
    assert words in raised[5][NAMES[metric]]


def test_an_alarm_gives_the_figure_its_setting_and_the_advice_of_the_table_of_metrics():
    metrics = {alarm.metric: alarm.message(0.5, GuardSettings(), alarm.metric) for alarm in ALARMS}
    assert metrics["entropy"] == (
        "The policy's entropy is 0.5000 nats a token, below guards.entropy_below=0.005. Near 0 the policy writes "
        "almost the same response every time: raise algorithm.clip.high or lower trainer.actor_lr."
    )
    spike, few = State(recent={"critic": [1.0] * 5}), State(streaks={"too few with a signal": 2})
    (metrics["grad_norm/critic"],) = new_alarms({"grad_norm/critic": 99.0}, spike, GuardSettings()).values()
    (metrics["sampling/kept_ratio"],) = new_alarms({}, few, GuardSettings(patience=3), kept=1, wanted=2).values()
    for metric, message in metrics.items():
        assert message.lower().endswith(f". {METRICS[metric].plain_advice.lower()}."), metric
        assert message.startswith("Only 1 of 2") or "guards." in message.partition(". ")[0]


def test_a_gradient_spike_over_the_median_of_earlier_steps_raises_an_alarm_at_once():
    state, settings = State(), GuardSettings(grad_norm_above=10.0)
    norms = [0.5, 0.6, 0.4, 0.5, 4.9, 5.1, 0.5]
    raised = [new_alarms({**HEALTHY, "grad_norm/policy": n}, state, settings) for n in norms]
    assert [list(t) for t in raised] == [[]] * 5 + [["gradient spike of the policy"]] + [[]]
    assert "5.1, 10 times the median of the last 5 steps" in raised[5]["gradient spike of the policy"]


def test_steps_without_a_gradient_say_nothing_of_what_is_usual():
    state, settings = State(), GuardSettings(grad_norm_above=10.0)
    norms = [0.0] * 9 + [0.5, 1e-7, 0.5, 9e-8, 0.6, 0.0, 0.4, 0.5, 5.1]  # a hard task: few groups have a right answer
    raised = [new_alarms({**HEALTHY, "grad_norm/policy": n}, state, settings) for n in norms]
    assert [list(t) for t in raised] == [[]] * (len(norms) - 1) + [["gradient spike of the policy"]]
    earlier = State(recent={"policy": [0.0] * 9})  # of a checkpoint that another version wrote
    assert new_alarms({**HEALTHY, "grad_norm/policy": 0.5}, earlier, settings) == {}


@pytest.mark.parametrize(("lr", "alarms"), [(1e-3, ["dead value head"]), (0.0, [])])
def test_a_critic_that_is_not_to_learn_has_no_dead_head(lr, alarms):
    state, settings = State(), GuardSettings(patience=2)
    still = {"value/head_step": 0.0, "grad_norm/critic": 0.3, "lr/critic": lr}
    new_alarms(still, state, settings)
    assert list(new_alarms(still, state, settings)) == alarms


def test_figures_that_a_method_does_not_have_raise_no_alarm():
    state = State()
    for _ in range(10):
        assert new_alarms({"value/explained_variance": float("nan"), "entropy": None}, state, GuardSettings()) == {}


def test_a_move_of_the_policy_that_overflows_is_a_step_too_far():
    assert "step too far" in new_alarms({**HEALTHY, "kl/update": float("inf")}, State(), GuardSettings())
    assert not new_alarms({**HEALTHY, "kl/update": float("nan")}, State(), GuardSettings())


def test_too_few_responses_with_a_signal_raise_an_alarm_after_enough_steps_and_once_a_streak():
    state, settings = State(), GuardSettings(patience=3)
    kept = [31, 0, 32, 31, 31, 30, 31, 32, 31]
    raised = [new_alarms(HEALTHY, state, settings, kept=n, wanted=32) for n in kept]
    assert [list(r) for r in raised] == [[]] * 5 + [["too few with a signal"]] + [[]] * 3
    assert "Only 30 of 32 responses carry a signal" in raised[5]["too few with a signal"]


def always(action: str, **more: Any) -> dict[str, Any]:
    """An alarm in the second joint step, whatever happens."""
    return {"guards": {"clipped_ratio_above": 0.0, "patience": 2, "action": action} | more}


@pytest.mark.parametrize(("preset", "phase"), [("vapo", "pretrain"), ("grpo", "train")])
def test_an_alarm_can_stop_a_run_in_either_phase(base: Path, tmp_path: Path, preset: str, phase: str):
    with pytest.raises(DivergedError, match="Stopped by an alarm") as stop:
        runs.finish(toys.toy_run(base, tmp_path / "run", always("stop"), preset=preset))
    assert stop.value.exit_code == 3
    assert stop.value.fix.endswith(f"vapo resume {tmp_path / 'run'} --set guards.action=warn --allow-change")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(m["phase"], m["step"]) for m in lines] == [(phase, 1), (phase, 2)]


def test_value_pretraining_raises_alarms_and_joint_training_counts_its_own_steps(base: Path, tmp_path: Path):
    runs.finish(toys.toy_run(base, tmp_path / "run", always("warn")), report=False)
    raised = [e["event"] if e["event"] != "alarm" else e.get("name") for e in events(tmp_path / "run")]
    raised = [name for name in raised if name in ("length at the limit", "pretraining finished")]
    assert raised == ["length at the limit", "pretraining finished", "length at the limit"]


def test_a_critics_first_joint_gradients_are_no_spike_after_smaller_ones_in_pretraining(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"pretraining_steps": 6}})
    seen: list[int] = []
    run.observer.step = lambda m: seen.append(len(run.state.recent.get("critic", [])))
    runs.finish(run, report=False)
    assert seen == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_an_alarm_can_roll_a_run_back_to_draw_other_responses(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", always("rollback", patience=1))
    seen: list[tuple[int, float]] = []
    run.observer.step = lambda m: seen.append((m["step"], m["reward"])) if m["phase"] == "train" else None
    with pytest.raises(DivergedError, match="3 rollbacks did not help"):
        runs.finish(run)
    assert [step for step, _ in seen] == [1, 1, 1, 1]
    assert len({reward for _, reward in seen}) > 1
    back = [e for e in events(tmp_path / "run") if e["event"] == "rolled back"]
    assert [e["rollbacks"] for e in back] == [1, 2, 3]
    assert {(e["from_step"], e["to_step"]) for e in back} == {(1, 0)}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines if m["phase"] == "train"] == [1]


def test_after_a_rollback_the_checkpoints_own_bad_steps_do_not_count(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", always("rollback"))
    runs.finish(run, report=False)  # back from step 2 to 1, and from step 3 to 2
    assert run.state.rollbacks == 2
    lines = events(tmp_path / "run")
    back = [i for i, event in enumerate(lines) if event["event"] == "rolled back"]
    assert [lines[i - 1]["name"] for i in back] == ["length at the limit"] * 2  # why it went back stays in the log


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("network", "what"),
    [("policy", x) for x in ("loss", "gradient", "advantages", "old_logp")]
    + [("critic", x) for x in ("loss", "gradient", "returns")],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_moves_nothing(base: Path, tmp_path: Path, network: str, what: str, value: str):
    from vapo.chaos.faults import spoil_gradient_step

    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 1}, "evaluation": {"prompts": 1}})
    spoil_gradient_step(run, network, 1, what, float(value), times=10**6)  # every gradient step there is
    chosen = run.policy if network == "policy" else run.critic
    before = [p.clone() for p in chosen.parameters]
    three_in_a_row = network == "critic"  # two steps of pretraining, one joint one
    with pytest.raises(DivergedError) if three_in_a_row else contextlib.nullcontext():
        runs.finish(run, report=False)
    assert all(torch.equal(b, p) for b, p in zip(before, chosen.parameters, strict=True))
    assert not chosen.optimizer.state
    kept = sorted((tmp_path / "run" / "skipped").glob("*.safetensors"))
    batch = Batch.from_tensors(load_file(kept[0]))
    if what in ("loss", "gradient"):  # what was kept can be learned from again
        figures = type(chosen).accumulate(chosen, batch, micro_batch_tokens=1000).figures
        assert all(torch.isfinite(torch.as_tensor(v)) for v in figures.values())
    assert len(batch) == 8


def test_the_last_gradient_step_counts_in_how_far_the_policy_moved(base: Path, tmp_path: Path):
    sizes = {"trainer": {"steps": 1, "minibatch_size": 32, "warmup_steps": 0, "actor_lr": 1.0}}
    run = runs.finish(toys.toy_run(base, tmp_path / "run", sizes, preset="grpo"), report=False)
    (line,) = read_jsonl(run.folder.path / "metrics.jsonl")
    assert line["gradient_steps"] == 1
    assert line["kl/update"] > run.guards.kl_update_above
    assert "kl/update" in (run.folder.path / "events.jsonl").read_text()  # the alarm


def test_a_diagnostic_that_is_not_finite_is_logged_as_null_and_cancels_no_step(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"steps": 1}}, preset="grpo")
    honest = run.policy.objective.loss

    def with_diverging_diagnostic(micro: Batch, weights: dict[str, torch.Tensor]):
        part = honest(micro, weights)
        return replace(part, figures={**part.figures, "clip_ratio/high_mean": torch.tensor(float("inf"))})

    object.__setattr__(run.policy.objective, "loss", with_diverging_diagnostic)
    runs.finish(run, report=False)
    whole = toys.toy_run(base, tmp_path / "whole", {"trainer": {"steps": 1}}, preset="grpo")
    runs.finish(whole, report=False)
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (line["skipped/policy"], line["gradient_steps"], line["clip_ratio/high_mean"]) == (0, 4, None)
    for one, other in zip(run.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(one, other)


# --------------------------------------------------------------------------- memory


def little_memory(run: Run, tokens: int, *, cpu: bool = False) -> list[int]:
    """Let the policy's loss fail above so many tokens; the sizes that were tried."""
    tried: list[int] = []
    objective = run.policy.objective

    class Little(type(objective)):
        def loss(self, micro, weights):
            size = sum(len(t) for t in micro.tokens)
            tried.append(size)
            if size > tokens:
                if cpu:
                    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(micro, weights)

    run.policy.objective = Little(objective.policy, objective.algorithm)
    return tried


@pytest.mark.parametrize("cpu", [False, True])
def test_out_of_memory_halves_the_micro_batch_and_redoes_the_same_step(base: Path, tmp_path: Path, cpu: bool):
    small = {"trainer": {"micro_batch_tokens": 160}}
    run = toys.toy_run(base, tmp_path / "run", small)
    tried = little_memory(run, 50, cpu=cpu)
    runs.finish(run, report=False)
    whole = toys.toy_run(base, tmp_path / "whole", small)
    runs.finish(whole, report=False)
    assert max(tried) > 50
    assert run.state.micro_batch_tokens == {"policy": 40}
    for one, other in zip(run.policy.parameters, whole.policy.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    alarms = [e["message"] for e in events(tmp_path / "run") if e["event"] == "alarm" and "lasting" not in e]
    assert "Out of memory in policy with 160 tokens at once" in alarms[0]
    assert ["160" in alarms[0], "80 tokens" in alarms[1], len(alarms)] == [True, True, 2]  # 80 are all of them again


def test_too_little_memory_for_one_response_says_what_to_do(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run")
    tried = little_memory(run, 0)
    with pytest.raises(VapoError, match=r"single response at a time.*gradient_checkpointing"):
        runs.finish(run)
    assert sorted(tried, reverse=True) == tried
    assert [tried.count(size) for size in (max(tried), min(tried))] == [2, 3]  # again in memory that is free now


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run")

    def fails(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    object.__setattr__(run.policy.objective, "loss", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        runs.finish(run)


# --------------------------------------------------------------------------- the watch


def test_deadlines_are_learned_from_the_pauses_that_ended():
    deadlines = Deadlines(factor=10.0, floor_s=30.0)
    assert deadlines.of("rollout") == 30.0
    for pause in (1.0, 8.0, 2.0):
        deadlines.learn("rollout", pause)
    assert deadlines.of("rollout") == 80.0
    assert deadlines.of("update") == 30.0


STUCK = """
import sys, time
from pathlib import Path
from vapo.durability.watch import Watchdog
def waits_for_ever():
    time.sleep(float(sys.argv[2]))
watch = Watchdog(Path(sys.argv[1]), factor=5.0, floor_s=0.4)
for _ in range(4):
    watch.beat("rollout"); time.sleep(0.1)
watch.beat("verifying")
waits_for_ever()
watch.beat("update")
watch.close()
"""


def test_the_watchdog_logs_stuck_work_with_its_stack_and_does_not_end_it(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path), "2"], capture_output=True, text=True, check=True)
    assert done.stderr.count("no report for") == 1
    assert "while verifying (no earlier pause is known)" in done.stderr
    assert "waits_for_ever" in (tmp_path / "stacks.txt").read_text()
    assert "verifying continued after 2 s" in (tmp_path / "watchdog.log").read_text()


def test_the_watchdog_logs_stuck_work_even_if_stderr_is_not_read(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    subprocess.run([sys.executable, "-c", STUCK, str(tmp_path), "2"], stderr=write, check=True)
    os.close(write)
    assert "waits_for_ever" in (tmp_path / "stacks.txt").read_text()
    assert "verifying continued after 2 s" in (tmp_path / "watchdog.log").read_text()


def test_the_watchdog_logs_nothing_while_the_run_beats(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path), "0"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not (tmp_path / "watchdog.log").exists()


TWO = """
import os, signal, sys
from pathlib import Path
from vapo.durability.watch import Watchdog
one, two = (Path(sys.argv[1]) / name for name in ("one", "two"))
one.mkdir(); two.mkdir()
first, second = (Watchdog(folder, factor=5.0, floor_s=60.0) for folder in (one, two))
second.close()
os.kill(os.getpid(), signal.SIGUSR1)
first.close()
print("survived", (one / "stacks.txt").stat().st_size > 0, (two / "stacks.txt").exists())
"""


def test_the_report_of_one_watchdog_is_taken_after_another_runs_end(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", TWO, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("survived True False\n"), (done.returncode, done.stderr)


def test_the_watchdog_ends_when_its_run_is_killed(tmp_path: Path):
    trainer = subprocess.Popen([sys.executable, "-c", STUCK, str(tmp_path), "60"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "watchdog.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer.kill()
    trainer.wait()
    while _watchdogs_of(trainer.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _watchdogs_of(pid: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(pid).encode() in words and any(word.endswith(b"watchdog.py") for word in words):
            found.append(process.name)
    return found


def test_a_full_pipe_does_not_hold_up_the_run(tmp_path: Path):
    watch = Watchdog(tmp_path, factor=10.0, floor_s=60.0)
    os.kill(watch._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    for i in range(30_000):
        watch.beat(f"work {i}")
    assert time.monotonic() - started < 20
    os.kill(watch._process.pid, signal.SIGKILL)
    watch.close()


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("x")]
)
def test_no_memory_where_nothing_can_be_halved_is_one_line(capsys, monkeypatch, error: Exception):
    monkeypatch.setattr(sys, "argv", ["vapo", "train"])

    def sampling() -> None:
        raise error

    if type(error) is RuntimeError:  # another mistake keeps its traceback
        with pytest.raises(RuntimeError):
            exit_code_of(sampling)
        return
    assert exit_code_of(sampling) == 2
    output = capsys.readouterr().err
    assert "Out of memory" in output
    assert "rollout.engine.slots" in output
    assert "vapo resume RUN" in output
