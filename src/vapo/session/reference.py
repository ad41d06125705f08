"""Every setting with its meaning, type, range and default, read from where it is declared.

`python -m vapo.session.reference` prints docs/settings.md.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from vapo.algo.method import Algorithm
from vapo.algo.sizes import NAMES
from vapo.ranges import RANGE, Range
from vapo.session.schema import Choice, Sections
from vapo.tasks.catalog import DATA_TASKS
from vapo.tasks.gym import PREFIX, GymOptions
from vapo.tasks.problem_options import ProblemOptions
from vapo.tasks.registry import BUILTIN

_MISSING = dataclasses.MISSING


@dataclass(frozen=True)
class Setting:
    """One setting, for people."""

    key: str
    type: str
    """`int`, `float or null`, `one of a, b`."""
    default: str
    range: str
    """`at least 1`, `in [0, 1]`; empty where the type says it all."""
    unit: str
    """What is counted or measured: `tokens`, `seconds`; empty for a pure number or no number."""
    meaning: str
    kinds: tuple[str, ...] = ()
    """The variants of its union that have it; empty for a setting that is always there."""
    task: str = ""
    """The task whose option it is; empty for a setting of every run."""

    @property
    def words(self) -> str:
        """The meaning, and which kinds or which task have the setting."""
        of_kinds = f" (kind: {', '.join(self.kinds)})" if self.kinds else ""
        return self.meaning + of_kinds + (f" (task: {self.task})" if self.task else "")

    def is_named(self, word: str) -> bool:
        """Whether whole words of the name are these: `actor_lr` and `critic_lr` are for `lr`."""
        return f"_{word.lower()}_" in f"_{self.key.lower().replace('.', '_')}_"

    def matches(self, word: str) -> bool:
        """Whether the word stands in the name, the meaning, the values it takes, or the kinds that have it."""
        return word.lower() in f"{self.key} {self.type} {self.words}".lower()


@cache
def all_settings() -> dict[str, Setting]:
    """Every setting by its dotted name, sections in the order of a settings file."""
    found = {s.key: s for s in _settings_of(Sections, "")}
    method = {s.key: s for s in _settings_of(Algorithm, "algorithm.") if s.key.removeprefix("algorithm.") not in NAMES}
    choice = {s.key: s for s in _settings_of(Choice, "algorithm.")}
    return {"seed": found.pop("seed"), **choice, **method, **found}


@cache
def task_options() -> tuple[Setting, ...]:
    """The options of the tasks that ship, `task.<option>`, task by task; the same name may stand for several tasks."""
    owners: dict[str, type] = {name: family.options for name, family in BUILTIN.items()}
    owners |= {", ".join(DATA_TASKS): ProblemOptions, f"{PREFIX}NAME": GymOptions}
    return tuple(
        dataclasses.replace(setting, task=task)
        for task, owner in owners.items()
        for setting in _settings_of(owner, "task.")
    )


def _settings_of(owner: type, prefix: str) -> Iterator[Setting]:
    """The settings of a dataclass or model, those of its parts included; a union's parts are all its members'."""
    meanings, hints = _meanings(owner), typing.get_type_hints(owner, include_extras=True)
    for name, default, metadata in _fields(owner):
        hint = _plain(hints[name])
        parts = [member for member in _members(hint) if _is_part(member)]
        if parts:
            yield from _settings_of_union(parts, f"{prefix}{name}.", getattr(default, "kind", None))
        else:
            allowed = metadata.get(RANGE)
            words, unit = ("", "") if allowed is None else (str(allowed), allowed.unit)
            key, meaning = f"{prefix}{name}", meanings.get(name, "")
            yield Setting(key, _type_words(hint), _default_words(default), words, unit, meaning)


def _settings_of_union(parts: list[type], prefix: str, chosen: str | None) -> Iterator[Setting]:
    """The settings of all variants, each once, with the variants that have it; `kind`, by default `chosen`, first."""
    found: dict[str, Setting] = {}
    tags: dict[str, list[str]] = {}
    for part in parts:
        tag = _tag(part)
        for setting in _settings_of(part, prefix):
            found.setdefault(setting.key, setting)
            tags.setdefault(setting.key, []).extend([tag] if tag else [])
    if len(parts) == 1 and not _tag(parts[0]):
        yield from found.values()
        return
    kind = found.pop(f"{prefix}kind")
    names = tags.pop(kind.key)
    words = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    yield dataclasses.replace(
        kind, type=words, default=chosen or ("the preset's" if len(names) > 1 else names[0]), meaning="Which variant."
    )
    for key, setting in found.items():
        everywhere = len(tags[key]) == len(parts)
        yield setting if setting.kinds or everywhere else dataclasses.replace(setting, kinds=tuple(tags[key]))


def _tag(part: type) -> str:
    """The tag of a union's member; empty for a type that has none."""
    hint = typing.get_type_hints(part).get("kind")
    return str(get_args(hint)[0]) if get_origin(hint) is Literal else ""


def _fields(owner: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, default, metadata) of each field."""
    if issubclass(owner, BaseModel):
        for name, info in owner.model_fields.items():
            yield name, info.default, {RANGE: next((m for m in info.metadata if isinstance(m, Range)), None)}
    else:
        for f in dataclasses.fields(owner):
            made = f.default if f.default_factory is _MISSING else f.default_factory()
            yield f.name, made, f.metadata


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_part(member: Any) -> bool:
    return isinstance(member, type) and (dataclasses.is_dataclass(member) or issubclass(member, BaseModel))


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is typing.Annotated else hint


def _type_words(hint: Any) -> str:
    words = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            values = [str(value) for value in get_args(member)]
            words.append(f"one of {', '.join(values)}" if len(values) > 1 else values[0])
        elif member is type(None):
            words.append("null")
        elif get_origin(member) in (list, tuple):
            words.append("list of numbers" if float in get_args(member) else "list of names")
        else:
            name = getattr(get_origin(member) or member, "__name__", str(member))
            words.append({"str": "text", "Mapping": "mapping"}.get(name, name))
    return " or ".join(words)


def _default_words(default: Any) -> str:
    if default is _MISSING:
        return "the preset's"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, str) and "\n" in default:
        return repr(default)  # on one line
    if isinstance(default, tuple):
        return str(list(default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _meanings(owner: type) -> dict[str, str]:
    """The text under each field, from the source: Python keeps it nowhere else."""
    found: dict[str, str] = {}
    for part in reversed(owner.__mro__):
        if part.__module__.startswith("vapo."):
            body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
            assert isinstance(body, ast.ClassDef)
            for field, text in zip(body.body, body.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    value = text.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        assert isinstance(field.target, ast.Name)
                        found[field.target.id] = " ".join(value.value.split())
    return found


def page() -> str:
    """docs/settings.md."""
    lines = [
        "# Every setting",
        "",
        "Printed by `python -m vapo.session.reference` from where the settings are declared. `vapo settings WORD`",
        "searches them. Set one with `--set key=value` or in a YAML file; from weak to strong: default, recipe, file,",
        "option. A setting that belongs to some kinds only is there where that kind is chosen.",
    ]
    for section, settings in groupby(all_settings().values(), key=lambda setting: setting.key.partition(".")[0]):
        lines += ["", f"## {section}", "", *_table(settings)]
        if section == "task":
            lines += ["", "Further keys of `task` are the options of the task that `task.name` names."]
            for task, options in groupby(task_options(), key=lambda setting: setting.task):
                lines += ["", f"### Options of {task}", "", *_table(options)]
    return "\n".join(lines) + "\n"


def _table(settings: Iterable[Setting]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| setting | takes | unit | default | range | meaning |"
    yield "|---|---|---|---|---|---|"
    for setting in settings:
        words = dataclasses.replace(setting, task="").words  # the heading names the task
        cells = (f"`{setting.key}`", setting.type, setting.unit, setting.default, setting.range, words)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
