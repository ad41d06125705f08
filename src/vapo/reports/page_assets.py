"""Templates, style sheets and scripts of all pages. Needs no matplotlib, so that a page without figures loads fast."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from vapo.reports.palette import DARK, LIGHT, Palette


def page_templates(package: str = "vapo.reports") -> Environment:
    """A jinja2 environment with the templates in a package's `assets`; it escapes all inserted text."""
    return Environment(
        loader=PackageLoader(package, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str, package: str = "vapo.reports") -> str:
    """The text of a file in a package's `assets`."""
    return (resources.files(package) / "assets" / name).read_text(encoding="utf-8")


def palette_css() -> str:
    """Both palettes as CSS variables."""

    def block(palette: Palette) -> str:
        return ":root{" + "".join(f"--{name}:{hue};" for name, hue in asdict(palette).items()) + "}"

    return f"{block(LIGHT)}\n@media (prefers-color-scheme: dark){{{block(DARK)}}}\n"
