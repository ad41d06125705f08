"""What a word of a command line that the command does not know was meant to be: other trainers' options, settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

OPTIONS = {
    "out": "--run-dir",
    "output": "--run-dir",
    "out_dir": "--run-dir",
    "output_dir": "--run-dir",
    "save_dir": "--run-dir",
    "default_local_dir": "--run-dir",
    "method": "--preset",
    "algo": "--preset",
    "algorithm": "--preset",
    "adv_estimator": "--preset",
    "advantage_estimator": "--preset",
    "max_steps": "--steps",
    "num_steps": "--steps",
    "total_training_steps": "--steps",
}
"""What others call an option of a command."""
SOURCES = ("config", "config_file", "config_path", "recipe", "file")
"""What others call the argument that says what to train."""
SETTINGS = {
    "model": "model.policy",
    "model_name": "model.policy",
    "data": "task.data",
    "dataset": "task.data",
    "train_data": "task.data",
    "task": "task.name",
    "reward": "task.verifier",
    "temp": "rollout.temperature",
}
"""What others call a setting on a command line; names in settings files are in `vapo.session.suggest`."""
_VALUE = "VALUE"


def meant(problem: Any, words: Sequence[str]) -> str:
    """What to write instead, in a sentence; "" if nothing is known. `problem` is click's usage error."""
    if problem.ctx is None:
        return ""
    parameters = problem.ctx.command.params
    options = {option for parameter in parameters for option in parameter.opts}
    if option := getattr(problem, "option_name", ""):
        takes_source = any(parameter.name == "source" for parameter in parameters)
        instead = _instead_of(option, _value_of(option, words), options, takes_source=takes_source)
        return f"No such option: {option}. Write {instead}." if instead else ""
    found = re.search(r"unexpected extra argument\S* \((?:.*? )?([\w.]+=[^\s)]*)", str(problem.format_message()))
    if found and "--set" in options:
        return f"{found[1]} is no argument. To change a setting write --set {shlex.quote(found[1])}."
    return ""


def _instead_of(option: str, value: str, options: set[str], *, takes_source: bool) -> str:
    """What an option with this value is called here."""
    from vapo.session.layers import recipes
    from vapo.session.reference import all_settings
    from vapo.session.suggest import SYNONYMS

    name = option.lstrip("-").replace("-", "_")
    if takes_source and (name in SOURCES or (name == "task" and value in recipes())):
        return f"it without an option: {value if value != _VALUE else 'FILE.yaml'}"
    ours = OPTIONS.get(name)
    if ours in options:
        return f"{ours} {shlex.quote(value)}"
    if "--set" not in options:
        return ""
    known = all_settings()
    alike = [key for key in known if name in (key, key.rpartition(".")[2])]
    setting = SETTINGS.get(name) or SYNONYMS.get(name) or (alike[0] if len(alike) == 1 else "")
    return f"--set {shlex.quote(f'{setting}={value}')}" if setting in known else ""


def _value_of(option: str, words: Sequence[str]) -> str:
    """What was given to the option, VALUE if nothing was."""
    for word, after in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return _VALUE if after.startswith("-") else after
    return _VALUE
