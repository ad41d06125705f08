"""The files of a comparison: `results.json`, and the table, figure and page made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vapo.errors import ConfigError, DataError, command
from vapo.json_text import json_text
from vapo.reports.runfiles import Record
from vapo.study.comparison.compared_run import ComparedRun, with_verdicts
from vapo.study.comparison.compared_runs import read_compared_runs
from vapo.study.comparison.comparison_page import comparison_html
from vapo.study.comparison.figures import main_png
from vapo.study.comparison.kept_runs import kept_run, named_source
from vapo.study.comparison.markdown import comparison_markdown
from vapo.study.comparison.summary import FORMAT, summarise


def compare_runs(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    *,
    reference: str | None = None,
    heading: str | None = None,
    notes: Sequence[str] = (),
    kept: Sequence[ComparedRun] = (),
    tuning: Record | None = None,
) -> Record:
    """Compare finished runs, write the comparison into `out`, and return the content of its `results.json`.

    Differences are those to the method `reference`; None takes "vapo", or the first method where it has no finished
    run. Page and table show `heading` and `notes`, such as the command and the date. `kept` are runs of another
    `results.json` that are compared with the others, and `tuning` is what `results.json` tells of the settings that a
    study chose.

    Raises DataError for runs that cannot be compared (`read_compared_runs`) and for a `reference` that none finished.
    """
    results = summarise(read_compared_runs(run_dirs, kept), reference=reference, heading=heading, notes=notes)
    if tuning:
        results["tuning"] = tuning
    write_comparison(results, out)
    return results


def with_reference(results: Record, reference: str, *, path: str | Path) -> Record:
    """The same comparison with differences to another method, computed from the runs inside of it.

    `path` is its file. Raises DataError if that method has no finished run, or if an older version wrote the file
    without its runs' answers.
    """
    if reference == results["reference"]:
        return results
    if any("record" not in run for run in results["runs"]):
        raise DataError(
            f"{path} has no answers of its runs, as an older version wrote it, so its reference stays "
            f"{results['reference']}. Compare the runs: {command('compare', 'RUN', '--reference', reference)}"
        )
    runs = [
        replace(
            with_verdicts(kept_run(results, run, path=run["run"], source=named_source(path))),
            kept_from=run.get("kept_from"),
        )
        for run in results["runs"]
    ]
    again = summarise(runs, reference=reference, heading=results["heading"], notes=results["notes"])
    return again | ({"tuning": results["tuning"]} if "tuning" in results else {})


def write_comparison(results: Record, out: str | Path) -> None:
    """Write `results.json`, `table.md`, `curves.png` and `comparison.html` into the folder.

    Raises ConfigError where they cannot be written.
    """
    folder = Path(out)
    texts = {
        "results.json": json_text(results) + "\n",
        "table.md": comparison_markdown(results),
        "comparison.html": comparison_html(results),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
        main_png(results, folder / "curves.png")
    except OSError as error:
        raise ConfigError(
            f"Cannot write the comparison into {folder}: {error.strerror or error}. Choose another --out."
        ) from error


def read_results(path: str | Path) -> Record:
    """Read a `results.json`. Raises DataError if it is another file or of another version."""
    try:
        results = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Name a results.json of vapo compare.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Name a results.json of vapo compare.") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(f"{path} is not a results.json of this version. Make it again from the runs: vapo compare RUN…")
    if any(not isinstance(results.get(key), list) for key in ("methods", "runs")):
        raise DataError(
            f"{path} compares no runs, as a critic's does not. Name a results.json of vapo compare or ablate."
        )
    return results
