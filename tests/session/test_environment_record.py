"""What a run records of the code that made it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vapo.session import environment as recorded


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_of_a_repository_that_has_the_code_and_not_of_one_around_it(tmp_path: Path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "environment.py").touch()
    git("init")
    git("commit", "--allow-empty", "-m", "a user's project")
    monkeypatch.setattr(recorded, "__file__", str(tmp_path / ".venv" / "environment.py"))
    assert recorded._source() == {"commit": None, "uncommitted_changes": None}
    git("add", ".venv")
    git("commit", "-m", "with our code")
    assert recorded._source() == {"commit": git("rev-parse", "HEAD").strip(), "uncommitted_changes": False}
