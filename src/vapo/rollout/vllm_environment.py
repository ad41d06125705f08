"""Whether an interpreter has a vLLM that the engine works with. Needs no torch and takes a tenth of a second."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from vapo.errors import ConfigError
from vapo.rollout.engine_settings import EngineSettings, VllmEngineSettings

WORKER = Path(__file__).with_name("vllm_worker.py")
OLDEST, NEWEST = (0, 32), (0, 33)
"""The versions that the engine is written for; it was run with 0.32 on a CPU."""
INSTALL = (
    "Install it: pip install 'vapo[vllm]' on a GPU; for a CPU an environment of its own (docs/vllm.md), named by "
    "rollout.engine.python."
)
_LIMIT_S = 60.0


def interpreter(settings: VllmEngineSettings) -> str:
    """The path of the interpreter that runs vLLM; ConfigError if there is none."""
    if settings.python is None:
        return sys.executable
    found = shutil.which(settings.python)
    if found is None:
        raise ConfigError(
            f"rollout.engine.python={settings.python} is no program. Name a Python interpreter. {INSTALL}"
        )
    return found


def variables(settings: VllmEngineSettings) -> dict[str, str]:
    """The environment of a process under that interpreter."""
    own = dict(os.environ)
    if settings.python is not None:  # these belong to the environment that runs vapo
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            own.pop(name, None)
    return own


def check_environment(engine: EngineSettings) -> list[str]:
    """Notes on the vLLM that the engine will use; none for other engines.

    Raises ConfigError if the interpreter is not there, has no vLLM, or one that is too old.
    """
    if not isinstance(engine, VllmEngineSettings):
        return []
    python = interpreter(engine)
    command = [python, str(WORKER), "--version"]
    try:
        done = subprocess.run(  # noqa: S603 - our own file, run by the interpreter that the user names
            command, env=variables(engine), capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
        version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"rollout.engine=vllm: {python} is no working Python interpreter ({_reason(error)}). {INSTALL}"
        ) from error
    if version is None:
        raise ConfigError(f"rollout.engine=vllm needs vLLM, and {python} has none. {INSTALL}")
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else None
    if number is not None and number < OLDEST:
        raise ConfigError(
            f"vLLM {version} of {python} is older than {_words(OLDEST)}, the first that takes weights as the engine "
            "hands them over. Install a newer one there."
        )
    if number is None or number > NEWEST:
        return [f"vLLM {version} is newer than {_words(NEWEST)}, the last one known here; its log-probabilities are "
                "checked against the trainer's at the start"]  # fmt: skip
    return []


def _reason(error: Exception) -> str:
    errors = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    lines = (errors or str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _words(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
