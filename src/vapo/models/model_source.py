"""Checks of a model's source by its path: cheap, without torch, so that a wrong path is reported at once."""

from __future__ import annotations

from pathlib import Path

from vapo.errors import ModelError

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


def is_gguf(source: str | Path) -> bool:
    """Whether a model's source is a .gguf file."""
    return Path(source).suffix == ".gguf"


def is_path(source: str | Path) -> bool:
    """Whether a model's source is written like a path: a hub id is `name` or `owner/name`."""
    path = Path(source)
    return (
        path.is_absolute()
        or str(source).startswith((".", "~"))
        or is_gguf(source)
        or str(source).count("/") > 1
        or path.parts[:1] in (("runs",), ("checkpoints",))
    )


def check_trained(critic: str | Path) -> None:
    """Raise ModelError for a trained critic that is not there. One on the hub has an owner; a bare name is a folder."""
    if "/" not in str(critic) and not Path(critic).exists():
        raise ModelError(f"Cannot load the critic: {critic} does not exist. Check the path.")
    check_source(critic, "critic")


def check_source(source: str | Path, what: str) -> None:
    """Raise ModelError for a path that holds no model. `what` it should hold is named in the message.

    A source that is no path may be a hub id; the loader looks it up.
    """
    path = Path(source)
    if is_path(source) and not path.exists():
        raise ModelError(f"Cannot load the {what}: {source} does not exist. Check the path.")
    if path.is_file() and not is_gguf(source):
        raise ModelError(f"Cannot load the {what}: {source} is a file. Give the folder of a model, or a .gguf file.")
    if (path / "metrics.jsonl").exists():
        raise ModelError(f"Cannot load the {what}: {source} is a run directory. Give its policy/ or critic/ folder.")
    if path.is_dir() and not any((path / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG)):
        raise ModelError(
            f"Cannot load the {what}: {source} has no {MODEL_CONFIG}. Give a folder written by `save_pretrained`."
        )
