"""Scripts that act as soon as they are imported, and workers whose trainer is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import vapo

def judge(response, answer):
    return True

{call}
"""
TASK = '{"verifier": judge, "name": "math", "data": "sums.jsonl", "heldout": 4, "verifier_workers": 2}'
CALLS = {
    "vapo.train()": f"vapo.train({{'model': {{'policy': 'none'}}, 'task': {TASK}}}, 'run')",
    "vapo.evaluate()": f"vapo.evaluate('none', 'math', k=1, task_options={TASK})",
}


def processes(word: str) -> list[int]:
    """Those that have the word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def gone(word: str, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while (there := processes(word)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not there


def start(folder: Path, script: str, **options) -> subprocess.Popen[str]:
    path = folder / f"{folder.name}.py"
    path.write_text(script)
    lines = [json.dumps({"problem": f"{i} + 1 = ?", "answer": str(i + 1)}) for i in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    return subprocess.Popen([sys.executable, str(path)], cwd=folder, stderr=subprocess.PIPE, text=True, **options)


def last_words(process: subprocess.Popen[str]) -> str:
    """What a process has said on stderr when it ended."""
    try:
        return process.communicate(timeout=300)[1]  # two workers load at once, perhaps on a busy machine
    finally:
        process.kill()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", CALLS)
def test_a_script_without_a_guard_says_what_it_lacks_and_leaves_no_process(tmp_path: Path, name: str):
    process = start(tmp_path, SCRIPT.format(call=CALLS[name]))
    said = last_words(process)
    path = tmp_path / f"{tmp_path.name}.py"
    assert said.splitlines() == [
        f"error: Cannot load the verifier: {path}, line 7, comes to {name} as soon as the file is imported, and it is "
        f"imported by other processes to find {path}:judge. Put what the script does under "
        '`if __name__ == "__main__":`.'
    ]
    assert process.returncode == 2
    assert gone(path.name, within_s=2)


def test_a_script_that_ends_the_process_when_it_is_imported_lacks_the_guard_too(tmp_path: Path):
    call = f"try:\n    {CALLS['vapo.train()']}\nexcept Exception as error:\n    raise SystemExit(str(error))"
    said = last_words(start(tmp_path, SCRIPT.format(call=call)))
    assert "ends the process" in said
    assert 'under `if __name__ == "__main__":`' in said
    assert "Traceback" not in said


SLOW = {
    "while it loads its verifier": ("import time; time.sleep(60)", "True"),
    "while it judges": ("pass", "__import__('time').sleep(60)"),
    "while it waits": ("pass", "True"),
}
POOL = """
import sys
from vapo.tasks.verifiers.pool import Limits, VerifierPool
from vapo.types import Prompt

pool = VerifierPool(sys.argv[1] + ":judge", workers=1, limits=Limits(time_s=60))
print("ready", flush=True)
if "__import__" in open(sys.argv[1]).read():
    pool.judge([(Prompt("p", "q", "a"), "a")])
input()
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("when", SLOW)
def test_a_worker_ends_with_its_trainer(tmp_path: Path, when: str):
    loading, judging = SLOW[when]
    path = tmp_path / f"{tmp_path.name}.py"
    path.write_text(f"{loading}\ndef judge(response, answer):\n    return {judging}\n")
    trainer = subprocess.Popen(
        [sys.executable, "-c", POOL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = f'"{path}:judge"'
    while not processes(worker):
        assert trainer.poll() is None
        time.sleep(0.05)
    if "loads" not in when:
        assert trainer.stdout is not None
        trainer.stdout.readline()
    time.sleep(0.5)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.communicate()
    assert gone(worker)
