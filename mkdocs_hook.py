"""Takes what the pages of docs/ link to outside of docs/ into the site, so that no link leads out of it.

A page links to code, measurements and images of the repository by relative paths, as every forge shows them. In the
site these files stand below `repository/`: Markdown as a page, code as a page with numbered lines, anything else as it
is. Only files that some page links to are taken, and of a folder its README.md or __init__.py.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"\]\(([^)\s#]+)(?:#([^)\s]*))?\)")
CODE = {".py": "python", ".yaml": "yaml"}
OPENERS = ("README.md", "__init__.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every file that a page links to, those that such a file links to, and so on."""
    waiting = [source_of(file) for file in files if file.src_uri.endswith(".md")]
    while waiting:
        source = waiting.pop()
        for target, _ in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            found = file_at(source, target)
            if found is None or found.startswith("docs/") or files.get_file_from_path(place_of(found)):
                continue
            files.append(site_file(found, config))
            if found.endswith(".md"):
                waiting.append(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links to other files of the repository set to where these stand in the site."""
    source = source_of(page.file)
    if Path(source).suffix in CODE:
        page.meta["search"] = {"exclude": True}
        return markdown

    def moved(match: re.Match[str]) -> str:
        found = file_at(source, match[1])
        if found is None:
            return match[0]  # an address, or a mistake that mkdocs reports
        path = posixpath.relpath(place_of(found), posixpath.dirname(page.file.src_uri) or ".")
        return f"]({path}{anchor(found, match[2])})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tells mkdocs of the lines of a page of code: a strict build fails on a link to a line that is not there."""
    if page.present_anchor_ids is not None:
        page.present_anchor_ids |= set(re.findall(r'id="(__codelineno-\d+-\d+)"', html))
    return html


def file_at(source: str, target: str) -> str | None:
    """The file of the repository that a link of the file `source` leads to, or None for addresses and mistakes."""
    if "://" in target:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    found = next((f"{path}/{name}" for name in OPENERS if (ROOT / path / name).is_file()), path)
    return found if (ROOT / found).is_file() else None


def source_of(file: File) -> str:
    """Where a file of the site stands in the repository, relative to its root."""
    if not file.src_uri.startswith("repository/"):
        return f"docs/{file.src_uri}"
    source = file.src_uri.removeprefix("repository/")
    code = source.removesuffix(".md")
    return code if Path(code).suffix in CODE else source


def place_of(source: str) -> str:
    """Where a file of the repository stands in the site, relative to its root."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"repository/{source}" + (".md" if Path(source).suffix in CODE else "")


def site_file(source: str, config: MkDocsConfig) -> File:
    """A file of the repository as a file of the site."""
    place, language = place_of(source), CODE.get(Path(source).suffix)
    if language is None:
        return File.generated(config, place, abs_src_path=str(ROOT / source), inclusion=InclusionLevel.NOT_IN_NAV)
    code = (ROOT / source).read_text(encoding="utf-8")
    fence = "`" * 8
    text = f'# {source}\n\n{fence} {{ .{language} linenums="1" }}\n{code}\n{fence}\n'
    return File.generated(config, place, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def anchor(source: str, name: str) -> str:
    """The anchor of a link: `L34` is a line of code, and the page of a file of code has one block."""
    if name and Path(source).suffix in CODE:
        return f"#__codelineno-0-{name.removeprefix('L')}"
    return f"#{name}" if name else ""
