"""`vapo view`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vapo.cli.options import DebugOption, JsonOption
from vapo.errors import ConfigError, counted
from vapo.json_text import json_text

if TYPE_CHECKING:
    from vapo.reports.view_data import ViewedRun


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, of a run that has ended or still runs.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[RUN2]", help="Another run, to read the same prompts side by side.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="page.html", help="Write one page with everything in it instead, and stop."),
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option(help="With --out: only this training step; repeatable. Default: all recorded steps."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port on 127.0.0.1; 0 takes any. Default: 8347, or any if it is taken.", min=0, max=65535),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Read a run's responses token by token: value, advantage, TD error, entropy; groups and runs side by side.

    A server on this machine shows all recorded steps, until Ctrl-C. It writes nothing.
    """
    from vapo.reports.view_data import ViewedRun
    from vapo.reports.view_page import view_html

    if step and out is None:
        raise ConfigError("--step chooses what --out writes; the server shows all steps. Add --out page.html.")
    if out is not None and (port is not None or open_browser):
        option = "--open" if port is None else "--port"
        raise ConfigError(
            f"{option} is for the server, and --out writes a page without one. Leave out --out or {option}."
        )
    runs = [ViewedRun(path) for path in (run, other) if path is not None]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if out is not None:
        page = view_html(runs, step or ())
        try:
            out.write_text(page, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"Cannot write {out}: {error.strerror}. Choose another --out.") from error
        if as_json:
            print(json_text({"page": str(out), "bytes": out.stat().st_size}))
        else:
            console.print(f"Page: {out}  ({out.stat().st_size / 1e6:.1f} MB, opens without a server)")
        return
    _serve(runs, port, console, open_browser=open_browser, as_json=as_json)


def _serve(runs: list[ViewedRun], port: int | None, console: Console, *, open_browser: bool, as_json: bool) -> None:
    from vapo.reports.view_server import ViewServer

    with ViewServer(runs, port) as server:
        if as_json:
            print(json_text({"url": server.url, "runs": [str(run.files.path) for run in runs]}), flush=True)
        else:
            steps = counted(sum(len(run.steps) for run in runs), "recorded step")
            console.print(f"{server.url}  ({steps}; Ctrl-C ends it)")
        if open_browser:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            if not as_json:
                console.print()
