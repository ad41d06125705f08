"""`vapo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vapo.cli.options import DebugOption, JsonOption
from vapo.json_text import json_text


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A run, one of its checkpoints, or a policy/ or critic/ in it.")
    ],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder for the networks.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the networks of a checkpoint as ordinary Hugging Face folders.

    Runs on several training ranks save them in shards, and those with adapters without their base. A run's own
    policy/ and critic/, written at its end, need no export.
    """
    from vapo.session.run_dirs import check_output_folder

    check_output_folder(out)

    from vapo.session.exporting import export as write
    from vapo.session.exporting import networks_of  # imports torch, so only after what is cheap to check

    found = networks_of(source)
    single = len(found) == 1 and source.resolve() == next(iter(found.values())).resolve()
    written = {}
    for name, folder in found.items():
        write(folder, path := out if single else out / name)
        written[name] = str(path)
    if as_json:
        print(json_text(written))
        return
    for name, path in written.items():
        print(f"{name:8}{path}")
