"""Whether the machines of a cluster have the same software as the process that drives the run."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError

PACKAGES = ("torch", "transformers", "ray")


def software() -> dict[str, str]:
    """Versions that must agree, with a digest of this package's source, which tells checkouts apart."""
    found = {"python": platform.python_version(), "vapo": _digest(Path(__file__).parents[1])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()[:12]


def check_software(here: dict[str, str], there: dict[str, dict[str, str] | str]) -> None:
    """Raise ConfigError for the first machine whose software differs; `there` has an error text where it failed."""
    for node, found in there.items():
        if isinstance(found, str):
            raise ConfigError(
                f"The machine {node} of the cluster cannot load vapo: {found}. Install the same vapo there."
            )
        for name, ours in here.items():
            if found.get(name) != ours:
                raise ConfigError(
                    f"The machine {node} of the cluster has {name} {found.get(name)}, this process has {ours}. Use the "
                    "same image or environment on all machines: results and stored objects depend on it."
                )


def software_of_nodes(ray: Any, limit_s: float) -> dict[str, dict[str, str] | str]:
    """`software` of each machine of the cluster, by its address; an error text where it could not be found."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(num_cpus=0, max_retries=0)(software)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
    found: dict[str, dict[str, str] | str] = {asked[ref]: f"no answer within {limit_s:g} s" for ref in late}
    for ref in ready:
        try:
            found[asked[ref]] = ray.get(ref)
        except Exception as error:  # whatever stops a machine from importing this module
            found[asked[ref]] = str(error).strip().split("\n")[-1]
    return found
