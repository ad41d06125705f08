"""Runs, trials and critics that a study need not run again, because a committed `results.json` holds them.

A run is taken over if method, base, seed and every setting that decides its result are equal (`cell_identity`),
including those of the critic that it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vapo.errors import counted
from vapo.reports.runfiles import Record
from vapo.study.cell_cards import ended
from vapo.study.cell_identity import setting_differences
from vapo.study.cells import Cell, describe
from vapo.study.comparison.compared_run import ComparedRun
from vapo.study.comparison.comparison_files import read_results
from vapo.study.comparison.kept_runs import damage_named, kept_run, named_source, recorded_settings
from vapo.study.comparison.table_rows import code_text
from vapo.study.tuning_choice import cells_of, read_tuning, trial_hashes


@dataclass(frozen=True)
class KeptFile:
    """The content of one file that a study continues from."""

    source: str
    results: Record
    """The content of a results.json; of a tuning.json, only its entries under `tuning`."""

    @property
    def tuning(self) -> Mapping[str, Record]:
        """The settings that tuning chose, by method, with the scores and hashes of its trials."""
        return self.results.get("tuning") or {}


@dataclass(frozen=True)
class Kept:
    """The runs of a study that are taken over, and one line for each file and reason why others are not."""

    runs: Mapping[Path, ComparedRun]
    """By the folder that the run would have in this study."""
    refused: Sequence[str] = ()

    def done(self, cell: Cell) -> bool:
        """Whether the cell need not run: it has ended here, or it is taken over."""
        return cell.folder in self.runs or ended(cell)


def read_kept_files(paths: Sequence[Path]) -> list[KeptFile]:
    """Read each `results.json` or `tuning.json`. Raises DataError or ConfigError for another file."""
    files = []
    for path in paths:
        if path.name == "tuning.json" and path.is_file():
            files.append(KeptFile(named_source(path), {"runs": [], "tuning": read_tuning(path.parent)}))
        else:
            files.append(KeptFile(named_source(path), read_results(path)))
    return files


def kept_runs(cells: Sequence[Cell], files: Sequence[KeptFile]) -> Kept:
    """The runs of the first file that has the same run, for the cells that have not ended here."""
    runs: dict[Path, ComparedRun] = {}
    refused: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if not files or ended(cell):
            continue
        reasons = []
        for file, entry in _entries(cell, files):
            with damage_named(entry, file.source):
                reason = _difference(cell, file, entry)
            if reason is None:
                runs[cell.folder] = kept_run(file.results, entry, path=str(cell.folder), source=file.source)
                break
            reasons.append((file.source, reason))
        else:
            for key in dict.fromkeys(reasons):
                refused.setdefault(key, []).append(cell)
    lines = [f"{_named(alike)} of {source}: it {reason}" for (source, reason), alike in refused.items()]
    used = {file.source for cell in cells for file, _ in _entries(cell, files)}
    lines += [
        f"{file.source}: none of its {counted(len(file.results['runs']), 'run')} is a finished one of this study"
        for file in files
        if file.results["runs"] and file.source not in used
    ]
    return Kept(runs, lines)


def kept_tuning(
    trials: Mapping[tuple[str, int], Sequence[Cell]], out: Path, files: Sequence[KeptFile]
) -> tuple[dict[str, Record], list[str]]:
    """By method, the first entry whose trials are those of the study: of the study's folder, else of a file.

    Then one line for each file and reason why tuning that has not ended here is not kept.
    """
    here = KeptFile("", {"tuning": read_tuning(out)})
    kept: dict[str, Record] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for method in dict.fromkeys(name for name, _ in trials):
        wanted, reasons = trial_hashes(method, trials), []
        for file in (here, *files):
            entry = file.tuning.get(method)
            if entry is not None and entry.get("trials") == wanted:
                kept[method] = entry if file is here else {"kept_from": file.source, **entry}
                break
            if file is not here:
                reasons.append((file.source, _why_not_tuned(entry)))
        else:
            if not all(ended(cell) for cell in cells_of(method, trials)):
                for key in reasons:
                    refused.setdefault(key, []).append(method)
    return kept, [f"tuning of {', '.join(names)}: {source} {why}" for (source, why), names in refused.items()]


def kept_lines(kept: Kept, cells: Sequence[Cell]) -> Iterator[str]:
    """What is taken over and what is run again, in words."""
    for source in dict.fromkeys(str(run.kept_from) for run in kept.runs.values()):
        runs = [run for run in kept.runs.values() if run.kept_from == source]
        versions = ", ".join(sorted({code_text(run.code) for run in runs}))
        yield f"{counted(len(runs), 'run')} of {len(cells)} kept from {source} ({versions})"
    yield from (f"not kept: {line}" for line in kept.refused)


def needed_critics(cells: Sequence[Cell], critics: Sequence[Cell]) -> list[Cell]:
    """The critics that these cells start from, and those that the critics start from, in the order of `critics`."""
    by_folder = {critic.folder: critic for critic in critics}
    needed: set[Path] = set()
    for cell in cells:
        folder = cell.critic
        while folder is not None and folder not in needed:
            needed.add(folder)
            folder = by_folder[folder].critic
    return [critic for critic in critics if critic.folder in needed]


def _entries(cell: Cell, files: Sequence[KeptFile]) -> Iterator[tuple[KeptFile, Record]]:
    for file in files:
        for entry in file.results["runs"]:
            same = (entry.get("method"), entry.get("base"), entry.get("seed")) == (cell.method, cell.base, cell.seed)
            if same and entry.get("outcome") in ("finished", "diverged"):
                yield file, entry


def _named(cells: Sequence[Cell]) -> str:
    """The cell, or the number of runs with the first of them."""
    return describe(cells[0]) if len(cells) == 1 else f"{counted(len(cells), 'run')} (first: {describe(cells[0])})"


def _why_not_tuned(entry: Record | None) -> str:
    if entry is None:
        return "does not hold it"
    return "has other trials" if "trials" in entry else "does not record its trials, as an older version wrote it"


def _difference(cell: Cell, file: KeptFile, entry: Record) -> str | None:
    """Why the entry is not this cell's run; None if it is."""
    settings = recorded_settings(file.results, entry)
    if settings is None:
        return "does not record its settings, as an older version wrote it"
    if resumed := entry.get("resumed"):
        return f"has them resumed with other settings ({', '.join(resumed[0]['changes'][:2])})"
    different = setting_differences(cell.settings, settings)
    if not different:
        return None
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return f"has them with other settings ({'; '.join(different[:3])}{more})"
