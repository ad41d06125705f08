"""results/evidence/state.py: an unfinished study arrives with the paths of its new folder, and only what has ended."""

import json
import runpy
from pathlib import Path

STATE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "results" / "evidence" / "state.py"))


def test_ended_runs_bases_and_critics_arrive_with_the_paths_of_the_new_folder(tmp_path: Path):
    out, other = tmp_path / "out", tmp_path / "elsewhere" / "out"
    for name, outcome in (("tuning/a", "finished"), ("tuning/b", "unfinished"), ("critics/c", "finished")):
        folder = out / name
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps({"outcome": outcome}))
        (folder / "config.yaml").write_text(f"model: {{policy: {out}/bases/maze}}\n")
        (folder / "report.html").write_text("large")
    for name in ("bases/maze/model.safetensors", "critics/c/critic/model.safetensors"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"\0weights @OUT@")
    STATE["pack"](out, tmp_path / "state.tar.xz")
    (other / "tuning" / "a").mkdir(parents=True)
    (other / "tuning" / "a" / "cell.json").write_text("of this machine")
    STATE["unpack"](tmp_path / "state.tar.xz", other)
    arrived = {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    assert arrived == {
        "tuning/a/cell.json", "tuning/a/config.yaml", "critics/c/cell.json", "critics/c/config.yaml",
        "bases/maze/model.safetensors", "critics/c/critic/model.safetensors",
    }  # fmt: skip
    assert (other / "tuning/a/config.yaml").read_text() == f"model: {{policy: {other}/bases/maze}}\n"
    assert (other / "tuning/a/cell.json").read_text() == "of this machine"
    assert (other / "bases/maze/model.safetensors").read_bytes() == b"\0weights @OUT@"
