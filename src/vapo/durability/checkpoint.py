"""Atomic checkpoint folders: written under a temporary name, synced, listed by hash, then renamed.

They contain only safetensors and JSON. A folder whose content does not match its manifest is renamed to `*.corrupt`,
and the one before it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vapo.errors import CheckpointError
from vapo.json_text import json_text

MANIFEST = "manifest.json"
LOCK = "run.lock"
"""The file in a run directory that the process which carries out the run keeps locked."""
FORMAT = 4
"""Format 1 (vapo 0.1) has no settings and alarms in the state, and no hash of the manifest. Formats 1 and 2 store a
network with adapters as the merged model, with the adapters in a separate file. Up to format 3 no network is in shards.
All formats can be read."""
OWN = "manifest_sha256"
Entries = dict[str, dict[str, Any]]
"""Sizes and SHA-256 of files, by their paths within a checkpoint."""
REFUSALS = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ENODEV,
        errno.ESTALE,
    )
)


def save(root: Path, name: str, write: Callable[[Path], Entries | None], *, serial: int, keep: int) -> Path:
    """Let `write` fill a folder, move it to `root/name` atomically, then delete all but the newest `keep`.

    `write` may return the entries of files that other processes wrote, synced and read; the others are read here. After
    a crash at any moment, `root/name` is either missing or complete.
    """
    if not root.exists():
        root.mkdir(parents=True)
        _sync(root.parent)
    for leftover in root.glob(".*"):  # from killed attempts
        shutil.rmtree(leftover, ignore_errors=True)
    final, temporary = root / name, root / f".{name}.tmp"
    temporary.mkdir()
    try:
        _fill(temporary, write, serial)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk
        raise
    old = root / f"{name}.old"
    if final.exists():  # the same step again; the old folder stays available as `.old` until the new one is in place
        remove(old)
        final.rename(old)
    temporary.rename(final)
    _sync(root)
    remove(old)
    healthy = [folder for _, folder in _finished(root) if _serial(folder) is not None]
    for surplus in healthy[keep:]:
        if surplus != final:
            remove(surplus)
    return final


def refused(error: BaseException) -> bool:
    """Whether an exception means that the disk cannot be written: full, read-only, no permission, or broken."""
    number = error.errno if isinstance(error, OSError) else None
    found = re.search(r"os error (\d+)", str(error))  # Rust libraries have the number in the message only
    return number in REFUSALS or (found is not None and int(found[1]) in REFUSALS)


def names(root: Path) -> list[str]:
    """The names of the finished checkpoints, newest first."""
    return [folder.name for _, folder in _finished(root)]


def file_entry(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest; syncs it to the disk first."""
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _fill(temporary: Path, write: Callable[[Path], Entries | None], serial: int) -> None:
    """Call `write`, sync every file to the disk, and write the manifest."""
    known = write(temporary) or {}
    found = {str(path.relative_to(temporary)): path for path in sorted(temporary.rglob("*")) if path.is_file()}
    for name, entry in known.items():
        if name not in found or found[name].stat().st_size != entry["bytes"]:
            raise OSError(
                errno.EIO, f"{name} is not here as its process wrote it; all machines of a run must share its folder"
            )
    files = {name: known.get(name) or file_entry(path) for name, path in found.items()}
    content = {"format": FORMAT, "serial": serial, "files": files}
    manifest = temporary / MANIFEST
    manifest.write_text(json_text({**content, OWN: _digest(content)}, indent=1))
    _sync(manifest)
    for folder in (p for p in temporary.rglob("*") if p.is_dir()):
        _sync(folder)
    _sync(temporary)


def newest(root: Path, on_damage: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match its manifest, or None if there is none.

    Damaged ones are reported to `on_damage`, renamed to `*.corrupt`, and skipped. Raises CheckpointError for one that
    a newer version of vapo wrote.
    """
    for _, folder in _finished(root):
        _check_format(folder)
        damage = problems(folder)
        if not damage:
            return folder
        aside = folder.with_name(folder.name + ".corrupt")
        number = 1
        while aside.exists():  # keep all damaged folders for inspection
            number += 1
            aside = folder.with_name(f"{folder.name}-{number}.corrupt")
        folder.rename(aside)
        on_damage(f"Checkpoint {folder.name} is damaged ({damage[0]}); set aside as {aside.name}.")
    return None


def problems(folder: Path) -> list[str]:
    """One message per mismatch with the manifest; empty for a healthy folder."""
    try:
        files = _manifest(folder)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to other threads
        found = pool.map(lambda name: _mismatch(folder / name, name, files[name]), files)
        return [message for message in found if message]


def _mismatch(path: Path, name: str, entry: dict[str, Any]) -> str:
    try:
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        same = sha256(path) == entry["sha256"]
    except OSError as error:  # a broken disk, or no permission: an older checkpoint may still be readable
        return f"{name} cannot be read: {error.strerror or error}"
    return "" if same else f"the SHA-256 of {name} has changed since it was saved"


def read_json(folder: Path, name: str) -> dict:
    """Read a JSON file of a checkpoint. Raises CheckpointError if it cannot be read."""
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read {folder / name}: {error}. Remove the folder to use an older one."
        ) from error


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(root: Path) -> list[tuple[int, Path]]:
    """(serial, folder) of every finished checkpoint, newest first.

    A folder without a readable manifest counts as the newest, so that its damage is reported.
    """
    found = []
    for folder in root.glob("*") if root.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith(".") and not folder.name.endswith(".corrupt"):
            serial = _serial(folder)
            found.append((2**62 if serial is None else serial, folder))
    # if two folders have the same serial, the replaced one (`.old`) comes second
    return sorted(found, key=lambda entry: (-entry[0], entry[1].suffix == ".old", entry[1].name))


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked by its own hash. Raises OSError, ValueError, KeyError or TypeError if it is damaged."""
    content = json.loads((folder / MANIFEST).read_text())
    own = content.pop(OWN, None)
    if content["format"] != 1 and own != _digest(content):
        raise ValueError("its SHA-256 has changed since it was saved")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(content, sort_keys=True).encode()).hexdigest()


def _serial(folder: Path) -> int | None:
    try:
        return int(_manifest(folder)["serial"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_format(folder: Path) -> None:
    try:
        number = int(_manifest(folder)["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # damaged; `problems` reports it
    if number > FORMAT:
        raise CheckpointError(
            f"{folder} has format {number}; this version of vapo reads up to {FORMAT}. "
            "Resume with the version that wrote it."
        )


def remove(folder: Path) -> None:
    """Delete a folder, renaming it first so that a crash leaves no folder that looks damaged."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sync(folder: Path, *, deep: bool = True) -> None:
    """Sync a folder's entries to the disk, and with `deep` everything in it. Does nothing if the folder is missing."""
    for path in folder.rglob("*") if deep else ():
        _sync(path)
    if folder.exists():
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
