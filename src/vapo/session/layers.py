"""Settings from several places, laid over one another: defaults < recipe < file < option."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from vapo.errors import ConfigError
from vapo.json_text import dotted, flatten, leaves
from vapo.session.suggest import suggestion
from vapo.session.yaml_text import yaml_line

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DEFAULT_RECIPE = "maze"
SOURCES = "sources.json"
"""Beside a run's config.yaml: who chose each setting."""


class Source(StrEnum):
    """Where a setting's value was chosen. Logic reads this; people also read the layer's `place`."""

    DEFAULT = "default"
    RECIPE = "recipe"
    FILE = "file"
    OPTION = "option"


@dataclass(frozen=True)
class Origin:
    """Who chose a value: the kind of place, and its name for people (`recipe maze`, `--set`)."""

    source: Source = Source.DEFAULT
    place: str = "default"


@dataclass(frozen=True)
class Layer:
    """Nested settings from one place."""

    source: Source
    place: str
    values: Mapping[str, Any]
    recipe: str | None = None
    """The name of the shipped recipe that the values are."""

    @property
    def origin(self) -> Origin:
        """The origin of every value in the layer."""
        return Origin(self.source, self.place)


def file_layer(place: str, values: Mapping[str, Any]) -> Layer:
    """Settings that a file, a study or an argument in Python holds."""
    return Layer(Source.FILE, place, values)


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def recipe_layer(name: str) -> Layer:
    """A shipped recipe, which may name another one to start from; raises ConfigError with a suggestion if there is none
    of that name."""
    known = recipes()
    if name not in known:
        raise ConfigError(
            f"No recipe is called {name!r}{suggestion(name, known)} `vapo recipes` lists them; "
            "a file of your own needs the ending .yaml."
        )
    values = dict(read_yaml(known[name]))
    base = values.pop("recipe", None)  # a twin: another recipe with another method
    return Layer(
        Source.RECIPE, f"recipe {name}", merge(recipe_layer(base).values, values) if base else values, recipe=name
    )


def source_layers(source: str | None) -> list[Layer]:
    """The layers of `vapo train SOURCE`: a recipe's name, a YAML file (which may name a `recipe:` to start
    from), or nothing for the default recipe."""
    if source is None:
        return [recipe_layer(DEFAULT_RECIPE)]
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        if "=" in source:
            raise ConfigError(f"{source} is no recipe. To change a setting write --set {shlex.quote(source)}.")
        return [recipe_layer(source)]
    values = dict(read_yaml(path))
    base = values.pop("recipe", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: recipe: must be the name of a recipe, got {base!r}.")
    own = file_layer(f"file {path.name}", values)
    sources = path.with_name(SOURCES)
    if path.name == "config.yaml" and sources.is_file():  # a run's: its recipe's sizes are no choices of the user
        return with_sources(own, json.loads(sources.read_text(encoding="utf-8")), options=Source.FILE)
    return [*([recipe_layer(base)] if base else []), own]


def with_sources(layer: Layer, sources: Mapping[str, Any], *, options: Source = Source.OPTION) -> list[Layer]:
    """The layer's settings again, each by whom it was chosen at first; settings without a source are defaults.

    `sources` is what `Config.sources` gave. What was an option then becomes one of `options` now.
    """
    chosen, recipe = sources["settings"], sources["recipe"]
    layers = [Layer(Source.DEFAULT, "default", layer.values)]
    for path, value in leaves(layer.values):
        if (key := dotted(path)) in chosen:
            source, place = Source(chosen[key][0]), chosen[key][1]
            if source is Source.OPTION and options is not Source.OPTION:
                source, place = options, layer.place
            layers.append(Layer(source, place, nested(path, value), recipe if source is Source.RECIPE else None))
    return layers


def set_layer(assignment: str, option: str = "--set", example: str = "trainer.steps=50") -> Layer:
    """`a.b=c` of `--set`, or of another option, as a layer; the value is read as YAML."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{option} takes key=value, like {option} {example}; got {assignment!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {key}: the value is not valid YAML: {text!r}.") from error
    return option_layer(option, key.strip(), value)


def set_words(changes: Iterable[Layer]) -> list[str]:
    """The `--set` options that lay the same settings down again, for a command."""
    keys = {key: value for layer in changes for key, value in flatten(layer.values)}
    return [word for key, value in keys.items() for word in ("--set", f"{key}={yaml_line(value)}")]


def option_layer(option: str, key: str, value: Any) -> Layer:
    """A command line option that sets one dotted key."""
    return Layer(Source.OPTION, option, nested(key.split("."), value))


def nested(path: Sequence[Any], value: Any) -> Any:
    """The value under its keys: `nested(("a", "b"), 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(path):
        value = {key: value}
    return value


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; raises ConfigError naming file and line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path} is not valid YAML: {where}{getattr(error, 'problem', error)}.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, found a {type(data).__name__}.")
    return data


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping. A union's mapping of another `kind` replaces the old one whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        same_kind = (
            isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("kind") in (None, old.get("kind"))
        )
        if same_kind and isinstance(old, Mapping):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result
