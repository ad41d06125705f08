"""Interpreters that have vLLM: a stand-in for it, and the real one that VAPO_VLLM_PYTHON names."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

FAKE = Path(__file__).with_name("fake_vllm")
REAL = os.environ.get("VAPO_VLLM_PYTHON")


def fake_python(folder: Path, version: str | None = None, **plan: Any) -> str:
    """A script in `folder` that runs this interpreter with the stand-in, of another version if one is given, and the
    faults of `plan` (see `fake_vllm`)."""
    package = FAKE
    if version is not None:
        package = folder / "package"
        shutil.copytree(FAKE, package)
        (package / "vllm-0.32.0.dist-info").rename(package / f"vllm-{version}.dist-info")
        (package / f"vllm-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        )
    script = folder / "python"
    script.write_text(
        f"#!/bin/sh\nexport PYTHONPATH='{package}' FAKE_VLLM='{json.dumps(plan)}'\nexec '{sys.executable}' \"$@\"\n"
    )
    script.chmod(0o755)
    return str(script)
