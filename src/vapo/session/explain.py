"""What pydantic found wrong, as one line: the setting, what is wrong, what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vapo.errors import ConfigError, command
from vapo.json_text import flatten
from vapo.session.reference import Setting, all_settings
from vapo.session.suggest import SYNONYMS, suggestion
from vapo.type_words import expected, shown

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list of names": "a list of names, [a, b]",
    "list of numbers": "a list of numbers, [0.3, 0.6]",
}
"""A setting's type in words."""


def explain(error: ValidationError, prefix: str = "") -> ConfigError:
    """The first problem of a validation error in words."""
    problem = _meant(error)
    path = [str(part) for part in problem["loc"] if not str(part)[:1].isupper()]
    key = prefix + ".".join(path)
    if problem["type"] in _UNKNOWN:
        given = problem.get("input")
        inner = [k for k, _ in flatten(given)] if isinstance(given, Mapping) and given else []
        return unknown(f"{key}.{inner[0]}" if inner and key not in all_settings() else key)
    # what our own checks raise names the setting and the fix already
    if isinstance(cause := (problem.get("ctx") or {}).get("error"), ConfigError):
        return cause
    return _wrong_value(key, problem)


def _wrong_value(key: str, problem: Any) -> ConfigError:
    """The error for a value of another type, or of none of a setting's values."""
    got = shown(problem.get("input"))
    name, known = key, all_settings()
    while name not in known and name.rpartition(".")[0] in known:  # an entry of a list
        name = name.rpartition(".")[0]
    if name not in known:
        return ConfigError(f"{key} takes {expected([problem])}, got {got}. `vapo settings {key}` lists what there is.")
    takes, given = _takes(known[name]), problem.get("input")
    if problem["type"] == "literal_error" and isinstance(given, str):
        choices = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        where = f"takes some of {', '.join(choices)}, got {got} in it" if name != key else f"takes {takes}, got {got}"
        return ConfigError(f"{name} {where}{suggestion(given, choices)} See: {command('settings', name)}")
    if known[name].type.startswith("list") and isinstance(given, str):
        got += f": write a list, [{given}]"
    inside = " in it" if name != key else ""
    return ConfigError(f"{name} takes {takes}, got {got}{inside}. See: {command('settings', name)}")


def _takes(setting: Setting) -> str:
    """What a setting takes: `a whole number or null, at least 1`."""
    words = " or ".join(_TYPES.get(word, word) for word in setting.type.split(" or "))
    return f"{words}, {setting.range}" if setting.range and setting.range != "finite" else words


def unknown(key: str) -> ConfigError:
    """A setting of that name does not exist: what it may have been meant to be."""
    known = all_settings()
    section, _, last = key.rpartition(".")
    if last in SYNONYMS:
        return ConfigError(f"Unknown setting {key}; did you mean {SYNONYMS[last]!r}? `vapo settings` lists them all.")
    if key in known and known[key].kinds:
        kinds = " or ".join(known[key].kinds)
        whole = f"{section}={{kind: {known[key].kinds[0]}, {last}: ...}}"
        return ConfigError(f"{key} goes with kind {kinds}, which is not the one here. Set both: {whole}.")
    if key in known:
        return ConfigError(f"{key} stands where it is one word: write it nested, {section}: {{{last}: ...}}.")
    here = sorted({k[len(section) + 1 if section else 0 :].partition(".")[0] for k in known if k.startswith(section)})
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    if elsewhere:
        return ConfigError(f"Unknown setting {key}; did you mean {' or '.join(map(repr, elsewhere))}?")
    return ConfigError(f"Unknown setting {key}{suggestion(last, here)} Known here: {', '.join(here)}.")


def null_given(key: str) -> ConfigError:
    """A null for a field of the method, where leaving the field out is what takes the preset's."""
    known = all_settings()
    if key in known:
        return ConfigError(f"{key} takes {_takes(known[key])}, got null. Leave it out for the preset's.")
    kind = known.get(f"{key}.kind")
    name = key.rpartition(".")[2]
    takes = f"{{kind: {kind.type}, ...}}" if kind else f"settings of its own, {name}: {{...}}"
    return ConfigError(f"{key} takes {takes}, got null. Leave it out for the preset's.")


def refuse_booleans(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for `true` and `false` where a number is wanted: Python would take them for 1 and 0."""
    known = all_settings()
    for key, value in flatten(values):
        if isinstance(value, bool) and key in known and "bool" not in known[key].type:
            raise ConfigError(f"{key} takes {_takes(known[key])}, got {str(value).lower()}.")


def _meant(error: ValidationError) -> Any:
    """The first problem that is the user's.

    In a union every member complains. Those whose tag does not fit were not meant; if no tag fits, the tag is wrong.
    """
    problems = error.errors()
    tags = [p for p in problems if p["type"] == "literal_error" and p["loc"][-1] == "kind"]
    unmeant = [tag["loc"][:-1] for tag in tags]
    meant = [p for p in problems if not any(p["loc"][: len(branch)] == branch for branch in unmeant)]
    if meant or not tags:
        return (meant or problems)[0]
    return max(tags, key=lambda tag: len(tag["loc"]))  # of unions in one another, the outer one's tag may be right
