"""`vapo completion SHELL`, and `vapo complete`, which the shells' functions call at each TAB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class Shell(StrEnum):
    """Shells with a completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


SCRIPTS = {
    # bash takes a word with = apart; compopt leaves out the space behind KEY=
    Shell.BASH: r"""
_vapo() {
    local IFS=$'\n'
    COMPREPLY=($(vapo complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    return 0
}
complete -o default -F _vapo vapo
""",
    Shell.ZSH: r"""
#compdef vapo
_vapo() {
    local -a found keys
    found=("${(@f)$(vapo complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ! ${#found} )); then _files; return; fi
    keys=(${(M)found:#*=})
    (( ${#keys} )) && compadd -S '' -- $keys
    compadd -- ${found:#*=}
}
compdef _vapo vapo
""",
    Shell.FISH: r"""
complete -c vapo -e
complete -c vapo -a '(set -l words (commandline -opc) (commandline -ct); vapo complete -- $words[2..-1] 2>/dev/null)'
""",
}


def completion(
    shell: Annotated[Shell, typer.Argument(help="Your shell.")],
) -> None:
    """Print a script that completes commands, options and settings: `source <(vapo completion bash)`.

    Put that line into ~/.bashrc or ~/.zshrc (after compinit); for fish: `vapo completion fish >
    ~/.config/fish/completions/vapo.fish`.
    """
    print(SCRIPTS[shell].strip())


def complete(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Print what the last of these words may become, one a line; nothing where it is a path."""
    from vapo.cli import app

    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    print("\n".join(candidates(words or [""], shown)))


def candidates(words: Sequence[str], commands: dict[str, Any]) -> list[str]:
    """What the last word may become, after the words before it; `commands` are click's, by name."""
    *before, word = words
    if not before:
        return _starting(word, [*commands, "--help", "--version"])
    command = commands.get(before[0])
    if command is None:
        return []
    if before[-1] == "=" or word == "=":  # as bash splits KEY=VALUE
        key, word = (before[-1], "") if word == "=" else (before[-2] if len(before) > 1 else "", word)
        return _starting(word, _values(key))
    if before[-1] == "--set":
        key, equals, _ = word.partition("=")
        known = [f"{key}={value}" for value in _values(key)] if equals else [f"{name}=" for name in _settings()]
        return _starting(word, known)
    options = {name: option for option in command.params for name in option.opts if name.startswith("-")}
    option = options.get(before[-1])
    if option is not None and not option.is_flag:
        return _starting(word, OPTIONS[before[-1]]()) if before[-1] in OPTIONS else []
    if word.startswith("-"):
        return _starting(word, [*options, "--help"])
    return _starting(word, ARGUMENTS[before[0]]()) if before[0] in ARGUMENTS and len(before) == 1 else []


def _starting(word: str, known: Iterable[str]) -> list[str]:
    return sorted({name for name in known if name.startswith(word)})


def _recipes() -> Iterable[str]:
    from vapo.session.layers import recipes

    return recipes()


def _tasks() -> Iterable[str]:
    from vapo.tasks.registry import BUILTIN

    return BUILTIN


def _presets() -> Iterable[str]:
    from vapo.algo.presets import PRESETS

    return PRESETS


def _techniques() -> Iterable[str]:
    from vapo.algo.presets import REMEDIES, TECHNIQUES

    return [*TECHNIQUES, *REMEDIES]


def _settings() -> Iterable[str]:
    from vapo.session.reference import all_settings, task_options

    return [*all_settings(), *(option.key for option in task_options())]


def _values(key: str) -> Iterable[str]:
    """The values of a setting that has few; none of any other."""
    from vapo.session.reference import all_settings

    if key in SETTINGS:
        return SETTINGS[key]()
    setting = all_settings().get(key)
    kind = "" if setting is None else setting.type
    if kind == "bool":
        return ["true", "false"]
    return kind.removeprefix("one of ").split(", ") if kind.startswith("one of ") else []


def _dtypes() -> Iterable[str]:
    from vapo.cli.exporting import Dtype

    return list(Dtype)


def _shells() -> Iterable[str]:
    return list(Shell)


Names = Callable[[], Iterable[str]]
OPTIONS: dict[str, Names] = {"--preset": _presets, "--without": _techniques, "--task": _tasks, "--dtype": _dtypes}
ARGUMENTS: dict[str, Names] = {
    "train": _recipes, "pretrain-critic": _recipes, "plan": _recipes, "check": _recipes, "make-base": _tasks,
    "settings": _settings, "completion": _shells,
}  # fmt: skip
SETTINGS: dict[str, Names] = {"algorithm.preset": _presets, "task.name": _tasks}
