"""The viewer's page: HTML without any text of a run in its markup, our own scripts and styles by their hashes.

A run's text is JSON in a data block or an answer of the local server, and the scripts show it as text. The page holds
all of a small run (`view_html`), or asks the server for what it shows (`served_html`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from markupsafe import Markup

from vapo.errors import ConfigError
from vapo.json_text import json_text
from vapo.metrics import Phase
from vapo.reports.page_assets import asset, page_templates, palette_css
from vapo.reports.runfiles import Record
from vapo.reports.view_data import ViewedRun

PARTS = ("view_state.js", "view_parts.js", "view_text.js")
VIEWER = ("view_source.js", "view_list.js", "view.js")
MOST_BYTES = 60_000_000
"""A page without a server is at most this large."""


def served_html(runs: Sequence[ViewedRun]) -> tuple[str, str]:
    """The page that asks a server for what it shows, and its content security policy."""
    return _page({"served": True, "complete": True, "runs": [run.overview() for run in runs]}, connects=True)


def view_html(runs: Sequence[ViewedRun], steps: Sequence[int] = ()) -> str:
    """The page that holds everything of these training steps (none: of all steps). ConfigError if it is too large."""
    return _page(embedded_data(runs, steps), connects=False)[0]


def embedded_data(runs: Sequence[ViewedRun], steps: Sequence[int] = ()) -> Record:
    """The data of a page without a server; `parts` are `RUN/STEP`, with the step's index and all its responses."""
    _check_recorded(runs, steps)
    overviews, parts, size = [], {}, 0
    for place, run in enumerate(runs):
        overview = run.overview()
        overview["steps"] = [
            s for s in overview["steps"] if not steps or (s["step"] in steps and s["phase"] == Phase.TRAIN)
        ]
        overviews.append(overview)
        for step in overview["steps"]:
            index = run.index(step["key"])
            rows = run.rows(step["key"], range(len(index["rows"]["prompt"])))
            part = {"index": index, "rows": {str(n): row for n, row in rows.items()}}
            size += len(json_text(part))
            if size > MOST_BYTES:
                raise ConfigError(
                    f"A page with all responses is larger than {MOST_BYTES // 1_000_000} MB. Choose steps with --step, "
                    "or leave out --out: the local server has no limit."
                )
            parts[f"{place}/{step['key']}"] = part
    if not parts:
        raise ConfigError(f"{runs[0].files.path} has no recorded responses: see trainer.save_rollouts_every.")
    return {"served": False, "complete": True, "runs": overviews, "parts": parts}


def _check_recorded(runs: Sequence[ViewedRun], steps: Sequence[int]) -> None:
    """Raise ConfigError for training steps that none of the runs has recorded."""
    there = sorted({file.step for run in runs for file in run.steps.values() if file.phase == Phase.TRAIN})
    if not (missing := [step for step in steps if step not in there]):
        return
    few = [*map(str, there[:10]), *(["...", str(there[-1])] if len(there) > 10 else [])]
    raise ConfigError(
        f"{' and '.join(str(run.files.path) for run in runs)}: no recorded responses of step "
        f"{', '.join(map(str, missing))}. Choose from {', '.join(few) or 'none'}; trainer.save_rollouts_every says "
        "which a run keeps."
    )


def joined_scripts(*names: str) -> str:
    """The common parts and the named scripts as one, in a scope of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(asset(name) for name in (*PARTS, *names)) + "\n})();\n"


def script_json(data: object) -> str:
    """JSON that is safe inside a `<script>` element: ASCII only, without <, > and &."""
    text = json_text(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def hash_of(text: str) -> str:
    """The source expression of a content security policy that allows exactly this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(data: Record, *, connects: bool) -> tuple[str, str]:
    css = palette_css() + asset("report.css") + asset("view.css")
    script = joined_scripts(*VIEWER)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {hash_of(script)}",
            f"style-src {hash_of(css)}",
            *(["connect-src 'self'"] if connects else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = page_templates().get_template("view.html.j2")
    html = page.render(
        title=" and ".join(run["name"] for run in data["runs"]),
        policy=policy,
        css=Markup(css),  # noqa: S704  our own file
        data=Markup(script_json(data)),  # noqa: S704  no < > & left in it
        script=Markup(script),  # noqa: S704  our own files
    )
    return html, policy
