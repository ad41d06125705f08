"""One owner of a device at a time: networks take turns on it, and wait in host memory."""

from __future__ import annotations

from typing import Protocol

import torch

HOST = torch.device("cpu")


class Movable(Protocol):
    """Something with memory on a device."""

    def move(self, to: torch.device) -> None:
        """Move all of its memory there."""
        ...


class DeviceTurns:
    """Who is on the device. Networks that are made there `enter`; one that is to compute `take`s it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.owners: list[Movable] = []

    def enter(self, made: Movable) -> None:
        """Note what is on the device already."""
        self.owners.append(made)

    def take(self, *wanted: Movable) -> None:
        """Move these to the device, after all others have left it."""
        for owner in self.owners:
            if owner not in wanted:
                owner.move(HOST)
        self.owners = [owner for owner in self.owners if owner in wanted]
        for owner in wanted:
            if owner not in self.owners:
                owner.move(self.device)
                self.owners.append(owner)  # not before: a move that ran out of memory is done again

    def free(self) -> None:
        """Leave the device to other processes."""
        self.take()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
