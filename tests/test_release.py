"""Wheel and source distribution hold what a run needs; a user's script is typed; versions agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import vapo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMALL = [
    "trainer.steps=1", "trainer.samples_per_step=16", "trainer.group_size=4", "trainer.minibatch_size=16",
    "trainer.pretraining_steps=1", "trainer.pretraining_heldout=8", "evaluation.prompts=4",
    "evaluation.samples_per_prompt=2", "rollout.max_response_tokens=24", "scale.threads=1",
]  # fmt: skip
SCRIPT = """
from pathlib import Path
from typing import Any

import vapo
from vapo.algo import gae, length_adaptive_lambda


class Watch(vapo.Observer):
    def step(self, metrics: dict[str, Any]) -> None:
        print(metrics["reward"])


def words(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


if __name__ == "__main__":
    run = vapo.train({"trainer": {"steps": 3}}, "runs/mine", observer=Watch(), silent=True)
    table = run.metrics
    page: Path = run / "report.html"
    alarms: list[str] = run.alarms
    if run.critic is not None:
        print(run.critic.config, run.policy.config, run.tokenizer.eos_token, page, alarms, table)
    score: float = vapo.evaluate(run, "maze", k=4).avg
    trainer = vapo.VAPOTrainer(
        model="Qwen/Qwen2.5-0.5B",
        reward_funcs=words,
        args=vapo.VAPOConfig(output_dir="runs/other", max_steps=3),
        train_dataset=[{"prompt": "1 + 1 ="}],
    )
    trainer.train()
    print(score, trainer.log_history, gae, length_adaptive_lambda)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = "import hatchling.build as b, sys; print(b.build_sdist(sys.argv[1]))"
    environment = folder / "hatch"
    subprocess.run([*pip, "install", "--target", environment, "hatchling==1.27.0"], check=True)
    paths = {**os.environ, "PYTHONPATH": str(environment)}
    subprocess.run([sys.executable, "-c", build, folder], check=True, cwd=ROOT, env=paths, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    build = build.replace("build_sdist", "build_wheel")
    subprocess.run([sys.executable, "-c", build, folder], check=True, cwd=source, env=paths, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.slow
def test_the_wheel_of_the_sdist_trains_outside_of_the_repository(built: Path, tmp_path: Path):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"vapo-{vapo.__version__}-py3-none-any.whl"
    python = tmp_path / "env" / "bin" / "python"
    venv.create(tmp_path / "env", with_pip=True)
    there = python.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # what vapo depends on is that of the tests; vapo is not in it, being an editable install there
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (there / "dependencies.pth").write_text("".join(f"{path}\n" for path in packages))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", "--no-index", wheel]
    subprocess.run(install, check=True, env=environment)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    vapo_command = python.with_name("vapo")
    train = [vapo_command, "train", "--run-dir", "run", *settings]
    done = subprocess.run(train, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
    where = [python, "-c", "import vapo; print(vapo.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.slow
def test_the_wheel_holds_the_types_and_every_file_of_the_package(built: Path):
    (wheel,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vapo/")}
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "src"], capture_output=True, text=True, check=True)
    assert held == {name.removeprefix("src/") for name in tracked.stdout.split()}
    assert "vapo/py.typed" in held
    assert wheel.stat().st_size < 4e6
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.stat().st_size < 6e6


@pytest.mark.slow
def test_pyright_finds_nothing_in_a_users_script(tmp_path: Path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    settings = {"include": ["mine.py"], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(str(settings).replace("'", '"'))
    command = [Path(sys.executable).with_name("pyright"), "--pythonpath", sys.executable, "--project", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("0 errors"), done.stdout


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert PROJECT["version"] == vapo.__version__ == citation["version"] == newest[1]
    assert citation["license"] == PROJECT["license"]


def test_importing_vapo_loads_no_other_package():
    code = "import sys; before = set(sys.modules); import vapo; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert packages - sys.stdlib_module_names == {"vapo"}  # all others load on first use
