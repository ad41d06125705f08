"""Judging in actors on a Ray of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapo.errors import ConfigError
from vapo.rollout.collect import judge_episodes
from vapo.scale import verifier_pool
from vapo.scale.cluster import Cluster, Wanted
from vapo.scale.verifier_pool import JudgeSpec, VerifierCrew, judged_by
from vapo.tasks.catalog import find_task
from vapo.tasks.full_task import FullTask
from vapo.types import Completion, Episode, Prompt

pytestmark = pytest.mark.timeout(120)

TASK_FILE = """
import os, signal, time
from vapo.types import Prompt, Verdict

class Sums:
    name, max_response_tokens = "sums", 8
    train = heldout = [Prompt("sums/1", "1+1=", answer="2")]
    def verify(self, prompt, response):
        if response == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if response == "raise":
            raise KeyError("no")
        return Verdict("right" if response == prompt.answer else "wrong", str(os.getpid()))

def make():
    return Sums()
"""
VERIFIER_FILE = """
def judge(response, answer):
    return float(response == answer)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    alarms: list[str] = []
    made = Cluster(Wanted(2, restarts=4), alarms.append)
    made.alarms = alarms  # type: ignore[attr-defined]
    yield made
    made.close()


def episodes(prompt: Prompt, responses: list[str]) -> list[Episode]:
    return [Episode.of_completion(prompt, j, Completion((5,), (0.0,), "stop", 0), r) for j, r in enumerate(responses)]


def test_workers_judge_with_a_task_of_the_user_and_survive_a_response_that_kills_them(cluster: Cluster, tmp_path: Path):
    (tmp_path / "own.py").write_text(TASK_FILE)
    name = f"{tmp_path / 'own.py'}:make"
    task = FullTask.of(find_task(name, {}))
    crew = VerifierCrew(cluster, task, JudgeSpec(name, {}), workers=2, answer_limit_s=60)
    try:
        remote = judged_by(crew, task)
        prompt = task.train[0]
        responses = ["2", "3", "raise"] * 50 + ["crash"] + ["2", "3"] * 10
        seen: list[tuple[int, int]] = []
        judged = judge_episodes(
            episodes(prompt, responses), remote, lambda *at: seen.append(at), per_prompt=len(responses)
        )
        found = [e.verdict for e in judged]
        statuses = {"2": "right", "3": "wrong", "raise": "invalid", "crash": "invalid"}
        assert [v.status for v in found] == [statuses[r] for r in responses]
        assert found[2].reason == "the verifier raised KeyError: 'no'"
        assert "lost twice: its process ended" in found[150].reason
        assert os.getpid() not in {int(v.reason) for v in found if v.valid}
        assert seen[-1][1] == len(responses)
        assert len(cluster.alarms) == 2  # type: ignore[attr-defined]
        assert "verifier worker" in cluster.alarms[0]  # type: ignore[attr-defined]
    finally:
        crew.close()


def test_workers_judge_for_a_data_task_with_a_function_of_a_file(cluster: Cluster, tmp_path: Path):
    (tmp_path / "verifier.py").write_text(VERIFIER_FILE)
    rows = "".join(f'{{"problem": "p{at}", "answer": "{at}"}}\n' for at in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    options = {"data": str(tmp_path / "rows.jsonl"), "heldout": 8, "verifier": f"{tmp_path / 'verifier.py'}:judge"}
    task = FullTask.of(find_task("math", options))
    crew = VerifierCrew(cluster, task, JudgeSpec("math", options), workers=1, answer_limit_s=60)
    try:
        groups = [e for prompt in task.train for e in episodes(prompt, [str(prompt.answer), "x"])]
        judged = judge_episodes(groups, judged_by(crew, task), per_prompt=2)
        assert [e.verdict.right for e in judged] == [True, False] * len(task.train)
        assert judged == judge_episodes(groups, task, per_prompt=2)
    finally:
        crew.close()


def test_a_plug_in_that_a_worker_cannot_import_is_one_clear_error(cluster: Cluster, tmp_path: Path):
    (tmp_path / "own.py").write_text(TASK_FILE)
    name = f"{tmp_path / 'own.py'}:make"
    task = FullTask.of(find_task(name, {}))
    (tmp_path / "own.py").unlink()  # as on a machine that does not have the file
    with pytest.raises(ConfigError, match=r"own\.py"):
        VerifierCrew(cluster, task, JudgeSpec(name, {}), workers=1, answer_limit_s=60)


def test_a_worker_that_ends_while_it_imports_is_one_clear_error(cluster: Cluster, tmp_path: Path):
    (tmp_path / "own.py").write_text(TASK_FILE)
    name = f"{tmp_path / 'own.py'}:make"
    task = FullTask.of(find_task(name, {}))
    (tmp_path / "own.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n" + TASK_FILE)
    with pytest.raises(ConfigError, match=r"verifier worker 0.*did not start: its process ended"):
        VerifierCrew(cluster, task, JudgeSpec(name, {}), workers=1, answer_limit_s=60)


def test_a_worker_has_the_time_that_a_verifier_takes_to_load_besides_its_own_start(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verifier_pool, "START_LIMIT_S", 0)
    (tmp_path / "own.py").write_text(TASK_FILE)
    name = f"{tmp_path / 'own.py'}:make"
    task = FullTask.of(find_task(name, {}))
    (tmp_path / "own.py").write_text("import time\ntime.sleep(3)\n" + TASK_FILE)  # as one that loads a model
    VerifierCrew(cluster, task, JudgeSpec(name, {}), workers=1, answer_limit_s=60).close()
