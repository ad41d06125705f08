"""Weights for an engine in another process: folders of safetensors in memory, and what shows that they arrived.

A folder has the model as `from_pretrained` reads it. The files are in /dev/shm where there is room.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vapo.errors import ConfigError, ModelError
from vapo.models.saving import save_weights

PREFIX = "vapo-weights-"
LOCK = "lock"
# a folder of its own is made there, for this user alone
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108
PROOF_TOKENS = 48
"""Tokens of the text on which engine and trainer are compared."""


def outline(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model without its weights: they are on the meta device; buffers are copied."""
    own = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, cast(Any, own)).eval()


def proof_tokens(vocab_size: int, context: int) -> list[int]:
    """The fixed text: random tokens, the same for each model of this size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (min(PROOF_TOKENS, context - 1),), generator=generator).tolist()


class WeightExchange:
    """The folders of one engine; there is one of the present weights, from the first `write` on.

    Embeddings that the model ties are written apart, under a config that says so. vLLM 0.32 packs a tied head for its
    kernels on CPUs and does not pack it again when the weights change.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._ties = _ties(model)
        self._outline = _untied(outline(model))
        self.present: Path | None = None
        self._count = 0
        _remove_orphans()
        numbers = sum(p.numel() * p.element_size() for p in self._outline.parameters())
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_roomy(2 * numbers)))
        self._lock = _locked(self.path / LOCK)

    def write(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Make a folder of these weights the present one; returns them as they were written.

        One name of each set of tied tensors is enough. Raises ModelError if they are not the model's; then the folder
        before stays.
        """
        own, dtype = self._outline.state_dict(), self._outline.dtype
        given = {name: t.detach().to(dtype) if t.is_floating_point() else t.detach() for name, t in weights}
        for names in self._ties:
            there = next((given[name] for name in names if name in given), None)
            if there is not None:
                given |= {name: there.clone() for name in names}
        wrong = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
        if wrong := [*wrong, *sorted(given.keys() - own.keys())]:
            raise ModelError(
                f"Weights for {type(self._outline).__name__} do not fit; missing, unknown or of the wrong shape: "
                f"{', '.join(wrong[:3])}" + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "") + ". Give all "
                "tensors of the policy's state_dict under its names; nothing was loaded."
            )
        self._count += 1
        folder = self.path / f"weights-{self._count}"
        save_weights(self._outline, given, folder)
        if self.present:
            shutil.rmtree(self.present)
        self.present = folder
        return given

    @torch.no_grad()
    def logprobs(self, weights: dict[str, Tensor], tokens: list[int]) -> list[float]:
        """The log-probability of each token but the first under the model with these weights, in nats."""
        ids = torch.tensor([tokens], device=next(iter(weights.values())).device)
        with torch.autocast(ids.device.type, enabled=False):
            output = torch.func.functional_call(self._outline, weights, (ids,), {"use_cache": False})
        logp = output.logits[0, :-1].float().log_softmax(-1)
        return logp.gather(1, ids[0, 1:, None])[:, 0].tolist()

    def write_others(self) -> Path:
        """A folder of other weights than the present ones, all numbers changed.

        An engine starts from it. So if it says later what the trainer says, the present weights have arrived, all of
        them.
        """
        assert self.present is not None
        folder = self.path / "others"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.present, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        for file in self.present.glob("*.safetensors"):
            tensors = load_file(file)
            others = {name: _other(tensor).contiguous() for name, tensor in tensors.items()}
            save_file(others, folder / file.name, metadata={"format": "pt"})
        return folder

    def remove_others(self) -> None:
        """Delete the other weights, once the engine has read them: there is room for two copies, and `write` needs
        them. What else their folder has stays, since an engine may read it later."""
        for file in (self.path / "others").glob("*.safetensors"):
            file.unlink()

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _other(tensor: Tensor) -> Tensor:
    return tensor.flip(0) * 0.75 + 0.01 if tensor.is_floating_point() and tensor.ndim else tensor


def _ties(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    """The outline with a head of its own."""
    head = model.get_output_embeddings()
    if head is None or not _ties(model):
        return model
    head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model._tied_weights_keys = model.all_tied_weights_keys = {}
    return model


def _roomy(needed: int) -> Path:
    """Where to keep so many bytes: in memory, else on the disk."""
    disk = Path(tempfile.gettempdir())
    for place in (SHARED_MEMORY, disk):
        if place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free > needed:
            return place
    raise ConfigError(
        f"The weights for the rollout engine need {needed / 1e9:.1f} GB in {SHARED_MEMORY} or {disk}, and neither has "
        "so much free. Free space, or set TMPDIR to a folder on another disk."
    )


def _remove_orphans() -> None:
    """Delete the folders of processes that were killed together with their engines.

    A process holds the lock of its folder as long as it lives. Its id says nothing where containers share the memory:
    each has ids of its own.
    """
    for place in {SHARED_MEMORY, Path(tempfile.gettempdir())}:
        for file in place.glob(f"{PREFIX}*-*/{LOCK}") if place.is_dir() else ():
            with contextlib.suppress(OSError), file.open("rb") as lock:  # another user's, or deleted meanwhile
                if _try_lock(lock):
                    shutil.rmtree(file.parent, ignore_errors=True)


def _locked(path: Path) -> IO[bytes]:
    """A new file with its lock held. It gets its name last: a file of that name without a lock is an orphan's."""
    hidden = path.with_name(f".{path.name}")
    file = hidden.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    hidden.rename(path)
    return file


def _try_lock(file: IO[bytes]) -> bool:
    """Whether this process has the lock of the file now; closing the file gives it back."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
