"""What `from_pretrained` reads: a folder, a hub id or a .gguf file; its configuration, and errors of one line."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from vapo.errors import ModelError
from vapo.hub import hub_access, not_cached
from vapo.models.gguf import converted
from vapo.models.lora import adapter_base
from vapo.models.model_source import check_source, is_gguf

_OF_THE_LOADER = (
    OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError,
    StrictDataclassError, TypeError, AttributeError,  # JSON of another form: a text for a number, a list for an object
)  # fmt: skip
_OF_THE_CLIENT = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""Any error of the hub's HTTP client, which is httpx or httpx2 by its version."""


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration, for checks before weights load."""
    with explained(source, "model"):
        return AutoConfig.from_pretrained(model_folder(source), trust_remote_code=trust_remote_code)


def context_length(config: PreTrainedConfig) -> int | None:
    """The longest prompt + response that the model has positions for; None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def count_parameters(config: PreTrainedConfig) -> int:
    """The number of parameters of the configuration's causal language model, without allocating them.

    0 if the model cannot be built without its weights.
    """
    model = skeleton(config)
    return 0 if model is None else model.num_parameters()


def skeleton(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The causal language model of a configuration, without memory for weights; None if it cannot be built so."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, RuntimeError, NotImplementedError, ImportError, TypeError, AttributeError):
        return None


def model_folder(source: str | Path) -> str:
    """The folder or hub id for `from_pretrained`."""
    if base := adapter_base(source):
        return model_folder(base)
    return str(converted(Path(source)) if is_gguf(source) else source)


@contextmanager
def explained(source: str | Path, what: str):
    """Turn an error of the loader into a ModelError of one line: what was to be loaded, the reason, and the fix."""
    check_source(source, what)
    verbosity, bars = transformers_logging.get_verbosity(), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    cut_off = ""
    try:
        with hub_access(source) as cut_off:
            yield
    except (*_OF_THE_LOADER, _OF_THE_CLIENT) as error:
        of_loader = isinstance(error, _OF_THE_LOADER)
        reason = _reason(error) if of_loader else f"the connection failed: {_reason(error)}. Try again."
        if cut_off and not_cached(error):
            reason = f"there is no such folder here, it is not in the cache, and {cut_off}."
        raise ModelError(
            f"Cannot load the {what} from {source}: {reason} "
            "Give a folder written by `save_pretrained`, a .gguf file, or a hub id this machine can reach."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars is None:
            transformers_logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    """The first line of an error; of a field that does not fit the second as well, which says what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if isinstance(error, StrictDataclassError) else 1])
