"""Networks of a run or of a checkpoint as ordinary Hugging Face folders, whatever form they were saved in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.errors import ModelError
from vapo.models.loaded import check_complete, read_model
from vapo.models.loading import load_critic, load_policy
from vapo.models.model_source import ADAPTER_CONFIG, MODEL_CONFIG
from vapo.models.pretrained import load_config
from vapo.models.saving import save_model
from vapo.models.shards import is_in_shards
from vapo.models.side import SideModel, is_side_critic
from vapo.models.tokens import read_tokenizer
from vapo.session.evaluated_run import run_of
from vapo.session.run_dirs import load_run_config


def export(source: Path, folder: Path) -> None:
    """Read one network's folder, in shards or not, and write it as `save_pretrained` does; adapters are merged."""
    run = run_of(source)
    trust = run is not None and load_run_config(run).sections.model.trust_remote_code
    model = _loaded(source, trust)
    save_model(model, _tokenizer(source, trust), folder)


@contextmanager
def whole_folder(source: Path, *, merged: bool = False) -> Iterator[Path]:
    """Within: a network's folder, or where it is in shards a copy of it as an ordinary folder; with `merged` also where
    it holds adapters."""
    if not is_in_shards(source) and not (merged and (source / ADAPTER_CONFIG).exists()):
        yield source
        return
    with TemporaryDirectory() as folder:
        export(source, Path(folder))
        yield Path(folder)


def _loaded(source: Path, trust: bool) -> PreTrainedModel:
    config = load_config(source, trust_remote_code=trust) if (source / MODEL_CONFIG).exists() else None
    if config is not None and is_side_critic(config):
        model, info = read_model(SideModel, source)
        check_complete(model, info, source, "critic")
        return cast(PreTrainedModel, model)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if "Classification" in architecture or (config is None and _adapts_critic(source)):
        return load_critic(source, trust_remote_code=trust)[0]
    return load_policy(source, trust_remote_code=trust)


def _tokenizer(source: Path, trust: bool) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None: a side critic and the folders of adapters have none."""
    try:
        return read_tokenizer(source, trust_remote_code=trust)
    except ModelError:
        return None


def _adapts_critic(source: Path) -> bool:
    """Whether a folder of adapters has a critic's head beside them."""
    return bool(json.loads((source / ADAPTER_CONFIG).read_text()).get("modules_to_save"))
