"""Worker processes whose verifiers hang, crash, print or exceed their limits."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vapo.errors import ConfigError
from vapo.tasks.verifiers import worker
from vapo.tasks.verifiers.pool import MAX_RESPONSE_CHARACTERS, Group, Limits, VerifierPool, _read_verdicts
from vapo.types import Prompt

VERIFIER = """
import ctypes, os, subprocess, sys, time

def judge(response, answer):
    if response == "sleep":
        time.sleep(60)
    if response == "spin":
        while True:
            pass
    if response == "memory":
        return bytearray(1 << 40)
    if response == "tensor":  # torch's message
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    if response == "processor":
        os.kill(os.getpid(), 24)
    if response == "abort":
        os.abort()
    if response == "crash":
        ctypes.string_at(0)
    if response == "leave":
        os._exit(0)
    if response == "once":
        if not os.path.exists(answer):
            open(answer, "w").close()
            os.kill(os.getpid(), 9)
        return True
    if response == "print":
        print('{"number": 1, "verdict": ["right", ""]}', flush=True)
        os.write(1, b'{"number": 2, "verdict": ["right", ""]}\\n')
    if response == "raise":
        raise ValueError("what is this?")
    if response == "child":
        child = subprocess.Popen(["sleep", "60"])
        open(answer, "w").write(str(child.pid))
        time.sleep(60)
    if response == "orphan":
        child = subprocess.Popen(["sleep", "60"])
        open(answer, "w").write(str(child.pid))
        os.abort()
    if response == "pid":
        raise RuntimeError(str(os.getpid()))
    return response == answer
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[VerifierPool]:
    path = tmp_path_factory.mktemp("verifier") / "attack.py"
    path.write_text(VERIFIER)
    with VerifierPool(f"{path}:judge", workers=1, limits=Limits(time_s=0.5)) as pool:
        yield pool


def judge(pool: VerifierPool, *responses: str, answer: str = "a") -> list[tuple[str, str]]:
    verdicts = pool.judge([(Prompt("p", "q", answer), response) for response in responses])
    return [(verdict.status, verdict.reason) for verdict in verdicts]


RIGHT = ("right", "")
TIME = "the limit for each response is task.verifier_timeout_s=0.5; raise it if the verifier needs longer"
MEMORY = "the limit is task.verifier_memory_mb=2048; raise it if the verifier needs more"


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("sleep", f"no verdict within 0.5 s: {TIME}"),
        ("spin", f"no verdict within 0.5 s: {TIME}"),
        ("processor", f"the verifier's process died of SIGXCPU: too much processor time: {TIME}"),
        ("memory", f"the verifier raised MemoryError ({MEMORY}): "),
        ("tensor", f"the verifier raised RuntimeError ({MEMORY}): DefaultCPUAllocator: can't allocate memory"),
        ("abort", f"the verifier's process died of SIGABRT: perhaps its memory ran out: {MEMORY}"),
        ("crash", f"the verifier's process died of SIGSEGV: its stack or memory ran out: {MEMORY}"),
        ("leave", "the verifier's process died"),
        ("raise", "the verifier raised ValueError: what is this?"),
    ],
)
def test_an_attack_gives_an_invalid_verdict_and_the_next_verdicts_are_correct(pool, attack, reason):
    start = time.monotonic()
    assert judge(pool, attack) == [("invalid", reason)]
    assert time.monotonic() - start < 3.0  # a worker whose process exited has to load again
    assert judge(pool, "a", "b", "a") == [RIGHT, ("wrong", "score 0"), RIGHT]


def test_printed_verdicts_are_ignored(pool):
    assert judge(pool, "print", "print") == [("wrong", "score 0")] * 2


def test_a_request_is_repeated_if_the_process_was_killed_from_outside(pool, tmp_path):
    assert judge(pool, "once", answer=str(tmp_path / "seen")) == [RIGHT]


@pytest.mark.parametrize("ended", ["child", "orphan"])  # killed by the trainer, died by itself
def test_processes_that_a_verifier_started_end_with_it(pool, tmp_path, ended):
    note = tmp_path / "pid"
    assert judge(pool, ended, answer=str(note))[0][0] == "invalid"
    pid = int(note.read_text())
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_score_comes_back_from_the_worker_as_a_number(tmp_path):
    path = tmp_path / "scores.py"
    path.write_text(
        "from vapo.types import Verdict\n"
        "def judge(response):\n    return float(response) if response else Verdict('wrong', 'graded score 0.3')\n"
    )
    with VerifierPool(f"{path}:judge", workers=1) as pool:
        verdicts = pool.judge([(Prompt("p", "q", "a"), response) for response in ("0.3", "-1", "0", "1", "")])
    assert [verdict.score for verdict in verdicts] == [0.3, -1.0, 0.0, 1.0, None]


@pytest.mark.parametrize("score", [10**400, float("inf"), float("nan"), "0.3", None])
def test_a_score_that_is_not_a_finite_float_is_dropped(score):
    line = json.loads(json.dumps({"verdicts": [["wrong", "no", "wrong_answer", score]]}))
    assert [verdict.score for verdict in _read_verdicts(line)] == [None]


def test_verdicts_of_several_workers_are_in_order(tmp_path):
    path = tmp_path / "v.py"
    path.write_text("def judge(response, answer):\n    return response == answer\n")
    items = [(Prompt(str(i), "q", str(i % 3)), str(i % 2)) for i in range(60)]
    with VerifierPool(f"{path}:judge", workers=3) as pool:
        assert [v.right for v in pool.judge(items)] == [i % 3 == i % 2 for i in range(60)]


def test_a_response_above_the_length_limit_is_wrong_and_one_at_the_limit_is_judged(pool):
    assert judge(pool, "x" * (MAX_RESPONSE_CHARACTERS + 1))[0][0] == "wrong"
    long = "x" * MAX_RESPONSE_CHARACTERS
    assert judge(pool, long, answer=long) == [RIGHT]


def test_unpaired_surrogates_and_zero_bytes_reach_the_verifier(pool):
    odd = "a\x00\ud800\n"
    assert judge(pool, odd, answer=odd) == [RIGHT]


def test_a_child_is_replaced_after_a_number_of_verdicts(tmp_path, monkeypatch):
    # the limit is read in the worker's process, so it is set by the verifier's own module
    path = tmp_path / "few.py"
    path.write_text(
        "import os\nimport vapo.tasks.verifiers.worker, sys\n"
        "sys.modules['__main__'].RECYCLE_AFTER = 3\n"
        "def judge(response):\n    raise RuntimeError(os.getpid())\n"
    )
    with VerifierPool(f"{path}:judge", workers=1) as pool:
        pids = [reason for _, reason in judge(pool, *"abcdefg")]
    assert [len(set(pids[i : i + 3])) for i in (0, 3)] == [1, 1]
    assert len(set(pids)) == 3
    assert worker.RECYCLE_AFTER >= 1000


BEST = """
import os, time

def best(completions, completion_ids, **kwargs):
    if "sleep" in completions:
        time.sleep(60)
    if "crash" in completions:
        os.kill(os.getpid(), 11)
    if "raise" in completions:
        raise ValueError(len(completions))
    longest = max(map(len, completion_ids))
    return [float(len(ids) == longest) for ids in completion_ids]

def steps(completions, trainer_state, **kwargs):
    return [float(len(completions) == trainer_state.global_step)] * len(completions)
"""


def group(*responses: str) -> Group:
    return Group(Prompt("p", "q", "a"), responses, tuple((7,) * len(response) for response in responses))


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Iterator[VerifierPool]:
    path = tmp_path_factory.mktemp("best") / "best.py"
    path.write_text(BEST)
    with VerifierPool(f"{path}:best", workers=2, limits=Limits(time_s=0.3)) as pool:
        yield pool


def statuses(pool: VerifierPool, *groups: Group) -> list[str]:
    return [verdict.status for verdict in pool.judge_groups(groups)]


def test_a_reward_function_compares_the_responses_of_one_group_only(best):
    assert best.together
    assert best.needs_tokens
    assert statuses(best, group("ab", "a", "b"), group("a"), group("a", "abcd")) == [
        *("right", "wrong", "wrong"),
        "right",
        *("wrong", "right"),
    ]


@pytest.mark.parametrize(
    ("poison", "reason"),
    [("sleep", "no verdict within 0.3 s"), ("crash", "died of SIGSEGV"), ("raise", "raised ValueError: 1")],
)
def test_a_response_that_breaks_the_verifier_is_invalid_and_the_rest_of_its_group_is_compared(best, poison, reason):
    verdicts = best.judge_groups([group("ab", poison, "abcd", "x"), group("a")])
    assert [v.status for v in verdicts] == ["wrong", "invalid", "right", "wrong", "right"]
    assert reason in verdicts[1].reason


def test_a_response_above_the_length_limit_is_left_out_of_its_group(best):
    verdicts = best.judge_groups([group("ab", "x" * (MAX_RESPONSE_CHARACTERS + 1), "a")])
    assert [v.status for v in verdicts] == ["right", "wrong", "wrong"]
    assert verdicts[1].reason == f"a response of {MAX_RESPONSE_CHARACTERS + 1} characters"


def test_progress_counts_responses_and_the_verifier_gets_the_step(tmp_path):
    path = tmp_path / "v.py"
    path.write_text(BEST)
    progress = []
    with VerifierPool(f"{path}:steps", workers=1) as pool:
        groups = [replace(group("a", "b"), step=2), replace(group("a"), step=2)]
        verdicts = pool.judge_groups(groups, lambda done, of: progress.append((done, of)))
    assert [v.right for v in verdicts] == [True, True, False]
    assert progress == [(2, 3), (3, 3)]


def test_other_verifiers_judge_one_response_per_call(pool):
    assert not pool.together
    verdicts = pool.judge_groups([Group(Prompt("p", "q", "a"), ("a", "raise", "b"))])
    assert [v.status for v in verdicts] == ["right", "invalid", "wrong"]


def test_closing_ends_all_processes(tmp_path):
    path = tmp_path / "v.py"
    path.write_text("import os\ndef judge(response):\n    raise RuntimeError(os.getpid())\n")
    pool = VerifierPool(f"{path}:judge", workers=1)
    pid = int(judge(pool, "x")[0][1].rpartition(" ")[2])
    assert alive(pid)
    pool.close()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_killed_worker_process_is_restarted(tmp_path):
    path = tmp_path / "v.py"
    path.write_text("import time\ndef judge(response):\n    time.sleep(response == 'sleep' and 9)\n    return True\n")
    with VerifierPool(f"{path}:judge", workers=1, limits=Limits(time_s=0.3)) as pool:
        os.kill(
            pool._all[0]._process.pid, signal.SIGKILL
        )  # the process that forks, as the system does when memory runs out
        assert judge(pool, "sleep")[0][0] == "invalid"
        assert judge(pool, "a", "a") == [RIGHT, RIGHT]


def test_a_prompt_that_is_not_json_gives_an_invalid_verdict_and_the_next_is_judged(pool):
    odd = Prompt("p", "q", "a", columns={"image": {"bytes": b"x"}})
    verdicts = pool.judge([(odd, "a"), (Prompt("p", "q", "a"), "a")])
    assert [v.status for v in verdicts] == ["invalid", "right"]
    assert "not JSON serializable" in verdicts[0].reason


def test_limits_above_the_hard_limits_of_the_machine_are_lowered(tmp_path):
    path = tmp_path / "v.py"
    path.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "def judge(response):\n    raise RuntimeError(resource.getrlimit(resource.RLIMIT_AS))\n"
    )
    with VerifierPool(f"{path}:judge", workers=1, limits=Limits(memory_mb=4096)) as pool:
        assert str((1 << 30, 1 << 30)) in judge(pool, "x")[0][1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such:thing", "no module 'no'"),
        ("json:no_such", "no function 'no_such'"),
        ("mathematics", "not known here"),
        ("/no/such/file.py:f", "no file"),
    ],
)
def test_an_unknown_verifier_gives_a_config_error(name, message):
    with pytest.raises(ConfigError, match=message):
        VerifierPool(name, workers=1)


def test_a_verifier_that_exits_is_named_and_its_reason_can_always_be_written(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import sys\n\ndef judge(response, answer):\n    if response == 'exit':\n        sys.exit(3)\n"
        "    raise ValueError('\\ud800')\n"
    )
    with VerifierPool(f"{path}:judge", workers=1) as pool:
        exits, breaks = (pool.judge([(Prompt("p", "x"), text)])[0] for text in ("exit", "break"))
    assert (exits.status, exits.reason) == ("invalid", "the verifier raised SystemExit: 3")
    assert (breaks.status, breaks.reason) == ("invalid", "the verifier raised ValueError: ?")
