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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from vapo.algo.method import Algorithm
from vapo.algo.sizes import NAMES
from vapo.ranges import RANGE
from vapo.session.schema import Choice, Sections

_MISSING = dataclasses.MISSING


@dataclass(frozen=True)
class Setting:
    """One setting, for people."""

    key: str
    type: str
    """`int`, `float or null`, `one of a, b`."""
    default: str
    range: str
    meaning: str
    kinds: tuple[str, ...] = ()
    """The variants of its union that have it; empty for a setting that is always there."""

    @property
    def words(self) -> str:
        """The meaning, and which kinds have the setting."""
        return self.meaning + (f" (kind: {', '.join(self.kinds)})" if self.kinds else "")

    def matches(self, word: str) -> bool:
        """Whether the word stands in the name or the meaning."""
        return word.lower() in f"{self.key} {self.meaning}".lower()


@cache
def all_settings() -> dict[str, Setting]:
    """Every setting by its dotted name, sections in the order of a settings file."""
    found = {s.key: s for s in _settings_of(Sections, "")}
    method = {s.key: s for s in _settings_of(Algorithm, "algorithm.") if s.key.removeprefix("algorithm.") not in NAMES}
    choice = {s.key: s for s in _settings_of(Choice, "algorithm.")}
    return {"seed": found.pop("seed"), **choice, **method, **found}


def _settings_of(owner: type, prefix: str) -> Iterator[Setting]:
    """The settings of a dataclass or model, those of its parts included; a union's parts are all its members'."""
    meanings, hints = _meanings(owner), typing.get_type_hints(owner, include_extras=True)
    for name, default, metadata in _fields(owner):
        hint = _plain(hints[name])
        parts = [member for member in _members(hint) if _is_part(member)]
        if parts:
            yield from _settings_of_union(parts, f"{prefix}{name}.")
        else:
            allowed = metadata.get(RANGE)
            words = "" if allowed is None else " ".join(filter(None, (str(allowed), allowed.unit)))
            yield Setting(f"{prefix}{name}", _type_words(hint), _default_words(default), words, meanings.get(name, ""))


def _settings_of_union(parts: list[type], prefix: str) -> Iterator[Setting]:
    """The settings of all variants, each once, with the variants that have it; `kind` first."""
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
        kind, type=words, default="the preset's" if len(names) > 1 else names[0], meaning="Which variant."
    )
    for key, setting in found.items():
        everywhere = len(tags[key]) == len(parts)
        yield setting if setting.kinds or everywhere else dataclasses.replace(setting, kinds=tuple(tags[key]))


def _tag(part: type) -> str:
    """The tag of a union's member; empty for a type that has none."""
    hint = typing.get_type_hints(part).get("kind")
    return str(get_args(hint)[0]) if get_origin(hint) is Literal else ""


def _fields(owner: type) -> Iterator[tuple[str, Any, Any]]:
    if issubclass(owner, BaseModel):
        for name, info in owner.model_fields.items():
            yield name, info.default, {}
    else:
        for f in dataclasses.fields(owner):
            yield f.name, f.default, f.metadata


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
        else:
            words.append({"str": "text"}.get(name := getattr(member, "__name__", str(member)), name))
    return " or ".join(words)


def _default_words(default: Any) -> str:
    if default is _MISSING:
        return "the preset's"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
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
    section = None
    for setting in all_settings().values():
        if (now := setting.key.partition(".")[0]) != section:
            section = now
            lines += [
                "",
                f"## {section}",
                "",
                "| setting | takes | default | range | meaning |",
                "|---|---|---|---|---|",
            ]
        cells = (f"`{setting.key}`", setting.type, setting.default, setting.range, setting.words)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
