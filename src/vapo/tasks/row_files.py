"""Reads the rows of a data set: a JSONL, JSON, CSV or Parquet file, a folder, or a data set of the hub."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from vapo.errors import DataError, counted
from vapo.hub import hub_access, not_cached

Row = Mapping[str, Any]

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
MAX_FIELD = 1 << 30
"""Longest value of a CSV file, in characters; Python's own limit is 131,072, less than some prompts."""
UTF_8 = "utf-8-sig"
"""UTF-8 with or without the byte-order mark that Windows programs write."""


def read_rows(source: str, *, subset: str | None = None, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of a file, a folder or a hub data set; DataError for a row that cannot be read."""
    check_rows(source)
    path = Path(source)
    if path.is_file():
        try:
            yield from _from_file(path)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"Cannot read {path}: {error}. Is it damaged?") from error
        except UnicodeDecodeError as error:
            if path.read_bytes()[:2] == b"\x1f\x8b":
                raise DataError(f"{path} is compressed. Rename it: {path.name}.gz") from error
            raise DataError(
                f"{path} is not UTF-8: {error.reason} at byte {error.start}. Convert it, for example with iconv "
                "-t utf-8."
            ) from error
    else:
        yield from _from_datasets(source, subset, split or "train")


def check_rows(source: str) -> None:
    """Raise DataError for a path without a file, and for a file of another format. Reads nothing."""
    path = Path(source)
    if path.is_file() and not path.name.endswith(FORMATS):
        raise DataError(f"{path} is none of {', '.join(FORMATS)}. Convert it, or give a hub data set.")
    if not path.exists() and _looks_local(source):
        raise DataError(f"There is no file {source}. Check the path.")


def _looks_local(source: str) -> bool:
    path = Path(source)
    return path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or source.endswith(FORMATS)


def _from_file(path: Path) -> Iterator[tuple[str, Row]]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding=UTF_8) as lines:
            # without the line end, where json would report an error for the next line
            # without byte-order marks, which files that were joined have inside, too
            stripped = ((number, line.lstrip("\ufeff").rstrip()) for number, line in enumerate(lines, 1))
            advice = " If it holds one list of rows, rename it to .json."
            yield from _checked(
                path, "line", ((n, _json(path, n, line, advice * (line[0] == "["))) for n, line in stripped if line)
            )
    elif path.suffix == ".json":
        data = _json(path, 1, path.read_text(encoding=UTF_8), " If it has one row per line, rename it to .jsonl.")
        yield from _checked(path, "row", enumerate(_listed_rows(path, data), 1))
    elif path.suffix == ".csv":
        with open(path, encoding=UTF_8, newline="") as lines:
            yield from _from_csv(path, lines)
    else:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise DataError(f"Reading {path} needs pyarrow: pip install pyarrow.") from error
        try:
            rows = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"Cannot read {path}: {str(error).splitlines()[0]}") from error
        yield from _checked(path, "row", enumerate(rows, 1))


def _listed_rows(path: Path, data: Any) -> list[Any]:
    """The rows of a JSON file: a list, or the only list of rows in a mapping; DataError for anything else."""
    if isinstance(data, list):
        return data
    lists = _row_lists(data) if isinstance(data, Mapping) else {}
    if len(lists) == 1:
        return next(iter(lists.values()))
    advice = "If it has one row per line, rename it to .jsonl."
    if lists:
        advice = f"Rows are under {', '.join(lists)}: write each of them to a file of its own."
    elif isinstance(data, Mapping) and data and all(isinstance(value, list | Mapping) for value in data.values()):
        advice = "If it is a table of pandas, write it with df.to_json(path, orient='records')."
    raise DataError(f"{path} must hold a list of rows, found a {type(data).__name__}. {advice}")


def _row_lists(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of rows in a mapping, by their keys. A mapping with a dialogue is a row itself."""
    return {
        key: value
        for key, value in data.items()
        if isinstance(value, list)
        and value
        and all(isinstance(row, Mapping) and not {"role", "from"} & row.keys() for row in value)
    }


def _from_csv(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a CSV file with a header; all values are texts."""
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path} line {start} is not CSV: {error}. Is a quote missing?") from error
        if not values:  # an empty line
            continue
        if names is None:
            names = [name.strip() for name in values]
            _check_header(path, names)
        elif len(values) != len(names):
            raise DataError(
                f"{path} line {start} has {counted(len(values), 'value')}, the header {counted(len(names), 'name')}. "
                'Put values with commas into double quotes ("), and double the quotes in them.'
            )
        else:
            yield f"{path} line {start}", dict(zip(names, values, strict=True))


def _check_header(path: Path, names: Sequence[str]) -> None:
    """DataError for a header with a name twice, or with another separator than the comma."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path} has two columns {twice[0]!r}. Rename one.")
    for separator in (";", "\t"):
        if len(names) == 1 and separator in names[0]:
            raise DataError(
                f'{path} has {separator!r} between its values, not commas. Convert it: python -c "import pandas; '
                f"pandas.read_csv({path.name!r}, sep={separator!r}, dtype=str).to_csv('commas.csv', index=False)\""
            )


def _json(path: Path, line: int, text: str, advice: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {line + error.lineno - 1} is not JSON: {error.msg.removesuffix(' at')} at column "
            f"{error.colno}.{advice}"
        ) from error
    except (ValueError, RecursionError) as error:  # Python's limits: 4,300 digits, about a thousand levels
        what = "is nested too deeply" if isinstance(error, RecursionError) else "has a number with too many digits"
        where = path if path.suffix == ".json" else f"{path} line {line}"
        raise DataError(f"{where} {what} to be read. Write it as a text.") from error


def _checked(path: Path, unit: str, rows: Iterator[tuple[int, Any]] | enumerate[Any]) -> Iterator[tuple[str, Row]]:
    for number, row in rows:
        # the rows of Open-Reasoner-Zero are pairs of turns
        if isinstance(row, list) and len(row) == 2 and all(isinstance(turn, Mapping) for turn in row):
            row = {"0": row[0], "1": row[1]}
        if not isinstance(row, Mapping):
            raise DataError(f"{path} {unit} {number} holds a {type(row).__name__}, not a row of columns.")
        yield f"{path} {unit} {number}", row


def _from_datasets(source: str, subset: str | None, split: str) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Reading {source} needs the datasets library: pip install datasets. (There is no file of that name.)"
        ) from error
    offline_reason = ""
    try:
        with hub_access(source) as offline_reason:
            rows = datasets.load_dataset(source, subset, split=split)
    except Exception as error:  # the library raises many types, mostly for a wrong name or no network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if offline_reason and not_cached(error):
            reason = f"there is no such file or folder here, it is not in the cache, and {offline_reason}"
        raise DataError(
            f"Cannot load the data set {source}{f', subset {subset}' if subset else ''}, split {split}: {reason}. "
            "Check the name, or give a file."
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source} {split} row {number}", cast(Row, row)
