"""Devices by their data sheets, and clusters of them by name: `16x8xH100` is 16 machines with 8 GPUs each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from vapo.errors import ConfigError

CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """What one device has, from its maker's data sheet."""

    name: str
    memory: float
    """Bytes."""
    rate: float
    """Dense operations a second in bfloat16, summed in float32."""
    bandwidth: float
    """Bytes a second that it reads from its own memory."""
    link: float
    """Bytes a second to another device of the same machine, in one direction."""
    rates_of: str | None = None
    """The device whose rates these are, where it has no data sheet here."""


DEVICES = {
    device.name: device
    for device in (
        Device("H100", 80e9, 989e12, 3.35e12, 450e9),  # SXM5; NVLink 900 GB/s in both directions
        Device("H200", 141e9, 989e12, 4.8e12, 450e9),  # SXM
        Device("A100-80", 80e9, 312e12, 2.039e12, 300e9),  # SXM4 80 GB; NVLink 600 GB/s in both directions
        Device("L40S", 48e9, 362e12, 864e9, 32e9),  # PCIe 4 x16
        Device("4090", 24e9, 165.2e12, 1.008e12, 32e9),  # PCIe 4 x16
    )
}
"""GPUs by name. The data sheets of H100, H200 and L40S print twice the rate, for sparse products."""
ASSUMED = "A100-80"
"""The device whose rates stand in for those of a GPU that has no data sheet here."""
NETWORK = 50e9
"""Bytes a second between machines for each GPU: one 400 Gb/s adapter each."""


@dataclass(frozen=True)
class Cluster:
    """So many equal machines with so many equal devices each."""

    nodes: int
    per_node: int
    device: Device

    @property
    def devices(self) -> int:
        """All devices."""
        return self.nodes * self.per_node

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on CPUs."""
        return self.device.name == CPU

    @property
    def link(self) -> float:
        """Bytes a second from one device to the others, by the slowest way."""
        return self.device.link if self.nodes == 1 else min(self.device.link, NETWORK)

    @property
    def name(self) -> str:
        """As `read_cluster` reads it, where it knows the device."""
        if self.devices == 1:
            return self.device.name
        return f"{self.nodes}x{self.per_node}x{self.device.name}"


def read_cluster(text: str) -> Cluster:
    """The cluster of a name like `16x8xH100`, `8xH100`, `L40S` or `cpu`; ConfigError with the known devices.

    >>> read_cluster("2x8xA100-80").devices
    16
    """
    found = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([A-Za-z0-9-]+?)", text.strip())
    known = {name.lower(): name for name in (*DEVICES, CPU)}
    if found is None or 0 in (int(n) for n in found.groups()[:2] if n):
        raise ConfigError(f"--cluster takes MACHINESxGPUSxDEVICE, like 16x8xH100, 8xH100 or cpu; got {text!r}.")
    first, second, device = found.groups()
    if (name := known.get(device.lower())) is None:
        close = get_close_matches(device.lower(), known, n=1)
        hint = f"; did you mean {known[close[0]]}?" if close else "."
        raise ConfigError(
            f"--cluster {text}: no device is called {device!r}{hint} There are: {', '.join(known.values())}."
        )
    nodes, per_node = (int(first), int(second)) if second else (1, int(first or 1))
    return Cluster(nodes, per_node, this_cpu() if name == CPU else DEVICES[name])


def this_cpu() -> Device:
    """This machine's memory, and the rates that its cores reach: measured, in a quarter of a second."""
    import torch

    from vapo.models.matrix_rate import copy_rate, matrix_rate
    from vapo.models.placing import total_memory

    rate = matrix_rate(torch.device("cpu"), torch.float32, torch.get_num_threads())
    return Device(CPU, total_memory(), rate, copy_rate(), copy_rate())


def this_machine() -> Cluster:
    """The GPUs that are here, with the data sheet's rates where their kind is known; else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return Cluster(1, 1, this_cpu())
    card = torch.cuda.get_device_properties(0)
    return Cluster(1, torch.cuda.device_count(), device_of(card.name, card.total_memory))


def device_of(card: str, memory: float) -> Device:
    """A GPU with a data sheet's rates, by the name that its driver gives it. One of an unknown kind keeps that name,
    and is taken to be as fast as an A100."""
    known = next((sheet for name, sheet in DEVICES.items() if name.split("-")[0] in card), None)
    if known is not None:
        return replace(known, memory=memory)
    return replace(DEVICES[ASSUMED], name=card, memory=memory, rates_of=ASSUMED)
