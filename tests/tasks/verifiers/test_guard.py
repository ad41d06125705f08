"""Scripts without an `if __name__` guard, and workers whose trainer was killed."""

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
    """Ids of the processes that have the word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def all_ended(word: str, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while (left := processes(word)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def start(folder: Path, script: str, **options) -> subprocess.Popen[str]:
    path = folder / f"{folder.name}.py"
    path.write_text(script)
    lines = [json.dumps({"problem": f"{i} + 1 = ?", "answer": str(i + 1)}) for i in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    return subprocess.Popen([sys.executable, str(path)], cwd=folder, stderr=subprocess.PIPE, text=True, **options)


def stderr_of(process: subprocess.Popen[str]) -> str:
    """The stderr of a process, after it ended."""
    try:
        return process.communicate(timeout=300)[1]  # two workers load at once, perhaps on a busy machine
    finally:
        process.kill()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", CALLS)
def test_a_script_without_a_guard_exits_with_one_line_and_leaves_no_process(tmp_path: Path, name: str):
    process = start(tmp_path, SCRIPT.format(call=CALLS[name]))
    stderr = stderr_of(process)
    path = tmp_path / f"{tmp_path.name}.py"
    assert stderr.splitlines() == [
        f"error: Cannot load the verifier: {path}, line 7, starts {name} when the file is imported, and worker "
        f"processes import it to find {path}:judge. Put the code of the script under "
        '`if __name__ == "__main__":`.'
    ]
    assert process.returncode == 2
    assert all_ended(path.name, within_s=2)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_script_that_starts_itself_as_a_process_without_a_guard_starts_no_chain(tmp_path: Path):
    path, script = tmp_path / f"{tmp_path.name}.py", SCRIPT.format(call=CHAIN)
    stderr = stderr_of(start(tmp_path, script))
    assert stderr == ""
    assert (tmp_path / "started").read_text() == "12"  # the script, and the process that its worker's import starts
    assert all_ended(path.name, within_s=2)
    refused = (tmp_path / "refused").read_text()
    assert refused.startswith(f"{path} starts a verifier's worker processes when the file is imported")
    assert 'under `if __name__ == "__main__":`' in refused


CHAIN = """
import subprocess, sys, pathlib

started, here = pathlib.Path("started"), pathlib.Path(__file__)
count = len(started.read_text()) + 1 if started.exists() else 1
started.write_text(started.read_text() + str(count) if count > 1 else "1")
code = (
    "import pathlib, sys\\nfrom vapo.errors import ConfigError\\nfrom vapo.tasks.verifiers.pool import VerifierPool\\n"
    "try:\\n    VerifierPool(sys.argv[1] + ':judge', workers=1).close()\\n"
    "except ConfigError as error:\\n    pathlib.Path('refused').write_text(str(error))\\n"
)
if count < 5:  # a chain would go on
    subprocess.run([sys.executable, "-c", code, str(here)])
"""


def test_a_script_that_raises_systemexit_on_import_gets_the_same_advice(tmp_path: Path):
    call = f"try:\n    {CALLS['vapo.train()']}\nexcept Exception as error:\n    raise SystemExit(str(error))"
    stderr = stderr_of(start(tmp_path, SCRIPT.format(call=call)))
    assert "ends the process" in stderr
    assert 'under `if __name__ == "__main__":`' in stderr
    assert "Traceback" not in stderr


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
def test_a_worker_ends_when_its_trainer_is_killed(tmp_path: Path, when: str):
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
    assert all_ended(worker)
