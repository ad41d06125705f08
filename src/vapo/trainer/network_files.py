"""A network's files: in a checkpoint, and as a finished model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.durability.checkpoint import Entries, file_entry
from vapo.models.lora import adapter_parameters, has_lora, peft_opens, save_adapters
from vapo.models.master_weights import MasterAdamW
from vapo.models.saving import (
    load_optimizer,
    load_trained,
    load_weights,
    moment_notes,
    moments,
    save_frame,
    save_model,
    save_moments,
    save_trained,
    whole_moments,
)
from vapo.models.shards import is_in_shards, save_part, stored_tensors
from vapo.models.whole import gathered
from vapo.trainer.group import Group


@dataclass
class NetworkFiles:
    """Writes and reads the files of one network, which a group of processes holds.

    Several processes write a network whose weights are all trained in shards, each its own part. One process, and a
    network with adapters, make an ordinary Hugging Face or PEFT folder and one file of moments, which the first process
    writes. Both forms are read by any number of processes.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    optimizer: torch.optim.Optimizer | None
    """None of a reference."""
    group: Group
    own_base: bool = False
    """A reference whose base is not the model that the run started from: formats 1 and 2 kept it merged."""

    def save(self, folder: Path) -> Entries:
        """Write into a checkpoint folder; the digests of the files that are this process's own part."""
        if self.group.size > 1 and not has_lora(self.model):
            return self._save_part(folder)
        self._save_whole(folder)
        return {}

    def _save_part(self, folder: Path) -> Entries:
        """Nothing is exchanged, so a disk that refuses one process leaves no other waiting."""
        own = folder / self.name
        part: dict[str, Any] = {"rank": self.group.rank, "size": self.group.size}
        if self._first:
            save_frame(self.model, self.tokenizer if self.optimizer else None, own)
        written = [save_part(stored_tensors(self.model), own, **part)]
        if self.optimizer is not None:
            notes = moment_notes(self.optimizer)
            written.append(save_part(moments(self.optimizer), self._moments(folder), **part, notes=notes))
        return {str(path.relative_to(folder)): file_entry(path) for path in written}

    def _save_whole(self, folder: Path) -> None:
        try:
            with gathered(self.model, self._first):
                if self._first and self.own_base:
                    save_model(self.model, None, folder / self.name)
                elif self._first:
                    save_trained(self.model, self.tokenizer if self.optimizer else None, folder / self.name)
        finally:  # also where the disk refused the first process: the others exchange the moments now
            tensors = whole_moments(self.optimizer, first=self._first) if self.optimizer is not None else {}
        if self.optimizer is not None and self._first:
            path = self._moments(folder).with_suffix(".safetensors")
            save_moments(tensors, path, moment_notes(self.optimizer))

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, exactly; raises CheckpointError if it does not fit."""
        own, optimizer = folder / self.name, self._moments(folder)
        self.own_base = self.optimizer is None and has_lora(self.model) and (own / "config.json").exists()
        if is_in_shards(own):
            load_trained(self.model, own)
        else:
            with gathered(self.model, self._first, write_back=True):
                if self._first and self.own_base:
                    load_weights(self.model, own)
                elif self._first:
                    load_trained(self.model, own)
        if self.optimizer is not None:
            load_optimizer(self.optimizer, optimizer if optimizer.is_dir() else optimizer.with_suffix(".safetensors"))

    def publish(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder; adapters are merged."""
        with gathered(self.model, self._first):
            if self._first:
                save_model(self.model, self.tokenizer, folder)

    def publish_adapters(self, folder: Path) -> bool:
        """Write a PEFT folder; False if there are no adapters, or if peft would make another model of them."""
        if not has_lora(self.model):
            return False
        with gathered(self.model, self._first):
            if not self._first:
                return True
            save_adapters(self.model, folder)
            return peft_opens(self.model, folder)

    @property
    def checkpoint_bytes(self) -> int:
        """Float32 weights, or the adapters where there are some, two moments of every trained one, and masters."""
        trained = masters = 0
        if self.optimizer is not None:
            trained = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        if isinstance(self.optimizer, MasterAdamW):
            masters = sum(p.numel() for p in self.optimizer.masters)
        if self.own_base or not has_lora(self.model):
            kept = self.model.parameters()
        else:
            kept = adapter_parameters(self.model).values()
        return 4 * (sum(p.numel() for p in kept) + 2 * trained + masters)

    @property
    def _first(self) -> bool:
        return self.group.rank == 0

    def _moments(self, folder: Path) -> Path:
        return folder / f"{self.name}_optimizer"
