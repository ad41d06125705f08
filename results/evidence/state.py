"""Carry an unfinished study to another machine: its bases, its critics, and what its ended runs have measured.

    python results/evidence/state.py pack OUT results/evidence/far-state.tar.xz
    python results/evidence/state.py unpack results/evidence/far-state.tar.xz OUT

`vapo ablate STUDY --budget full --out OUT`, run with the code of the study's commit, then goes on: ended runs are not
run again, and new ones start from the very same base and critics. OUT may be another folder; the paths are rewritten.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

PLACE = b"@OUT@"
"""Stands for the study's folder in the packed files."""
MEASURED = ("cell.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "environment.json", "method.yaml")
WEIGHTS = ("bases/*/*", "critics/*/critic/*")
TEXTS = {".json", ".jsonl", ".yaml"}


def kept(out: Path) -> list[Path]:
    """The files of a study that another machine needs."""
    cards = [card for kind in ("runs", "tuning", "critics") for card in out.glob(f"{kind}/*/cell.json")]
    ended = [card.parent for card in cards if json.loads(card.read_text())["outcome"] in ("finished", "diverged")]
    files = [folder / name for folder in ended for name in MEASURED if (folder / name).is_file()]
    files += [file for pattern in WEIGHTS for file in out.glob(pattern) if file.is_file()]
    return sorted({*files, *out.glob("tuning.json")})


def pack(out: Path, target: Path) -> None:
    """Write the archive. Equal contents give equal bytes before compression."""
    root = str(out.resolve()).encode()
    with tarfile.open(target, "w:xz") as archive:
        for file in kept(out):
            data = file.read_bytes()
            if file.suffix in TEXTS:
                data = data.replace(root, PLACE)
            entry = tarfile.TarInfo(str(file.relative_to(out)))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def unpack(source: Path, out: Path) -> None:
    """Write the files below `out`; those that are there stay."""
    root = str(out.resolve()).encode()
    with tarfile.open(source) as archive:
        for entry in archive:
            target = (out / entry.name).resolve()
            if not target.is_relative_to(out.resolve()) or target.exists():
                continue
            content = archive.extractfile(entry)
            if content is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            data = content.read()
            target.write_bytes(data.replace(PLACE, root) if target.suffix in TEXTS else data)


def main() -> None:
    """Pack or unpack."""
    if len(sys.argv) != 4 or sys.argv[1] not in ("pack", "unpack"):
        raise SystemExit(__doc__)
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))


if __name__ == "__main__":
    main()
