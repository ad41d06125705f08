"""What SECURITY.md promises: no pickles, no sockets, no secrets written down, no name that leaves its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toys
from vapo.errors import ModelError
from vapo.models.loading import load_critic, load_policy
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.run_dirs import default_run_dir

SECRET = "hf_thisIsASecret0123456789"
A_RUN = """
import sys
from pathlib import Path
seen = []
watched = ("pickle.", "socket.")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(watched) else None)
sys.path.insert(0, sys.argv[1])
import toys
from vapo.session import lifecycle as runs
from vapo.reports.live import SilentView
from vapo.errors import StoppedError
root = Path(sys.argv[2])
before = len(seen)  # what importing libraries does is theirs
run = toys.toy_run(toys.toy_base(root / "base"), root / "run")
run.observer.step = lambda m: setattr(run, "stop_requested", m["phase"] == "train")
try:
    runs.finish(run)
except StoppedError:
    pass
runs.finish(runs.resume(root / "run", SilentView(), task=toys.EchoTask()))
print(seen[before:])
import pickle, socket
pickle.loads(pickle.dumps(sys.exit))
socket.socket().bind(("127.0.0.1", 0))
print(sorted(set(seen[before:])))
"""


@pytest.mark.slow
def test_a_run_reads_no_pickle_opens_no_socket_and_writes_no_secret(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-c", A_RUN, str(Path(__file__).parent), str(tmp_path)]
    environment = {**os.environ, "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    during, after = done.stdout.splitlines()[-2:]
    assert during == "[]"
    assert "pickle.find_class" in after  # the hook does see them
    assert "socket.bind" in after
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {p.suffix for p in files if "checkpoints" in p.parts} <= {".safetensors", ".json", ".jinja"}
    assert len(files) > 20
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/b.py:make", "a\\b", "x\ny", ".hidden"])
def test_no_task_can_name_a_run_out_of_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = default_run_dir(resolve([file_layer("test", {"task": {"name": name}})]))
    assert path.parent == Path("runs")
    assert path.name not in ("", ".", "..")
    assert not path.name.startswith(".")
    assert path.resolve().is_relative_to(tmp_path / "runs")


def test_pickled_weights_are_not_read(tmp_path: Path):
    model = toys.tiny_llama()
    model.config.save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (load_policy, load_critic):
        with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
            load(tmp_path)
