"""The loop sees networks through `vapo.trainer.network` alone, so others can take their place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vapo.trainer

ROOM = Path(vapo.trainer.__file__).parent
BEHIND = {"local_network", "network_files", "objectives", "batch", "group"}
"""Modules that may use the inside of a network; `batch` only packs sequences for one, `group` only names its type."""
SEES_PROTOCOLS_ONLY = sorted(path for path in ROOM.glob("*.py") if path.stem not in BEHIND)
TEXT_ONLY = {"vapo.models.tokens.response_text"}
"""Of vapo.models, what works on a tokenizer alone."""
FORBIDDEN_ATTRIBUTES = {"model", "parameters", "optimizer", "objective", "state_dict", "load_state_dict", "backward"}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            found.append(f"line {node.lineno}: .{node.attr}")
            continue
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            names = [f"torch.{node.attr}"]
        else:
            continue
        bad = ("torch.nn", "torch.optim", "vapo.models", "vapo.trainer.local_network", "vapo.trainer.objectives")
        found += [f"{name} is used" for name in names if name.startswith(bad) and name not in TEXT_ONLY]
    return found


@pytest.mark.parametrize("path", SEES_PROTOCOLS_ONLY, ids=lambda path: path.stem)
def test_trainer_modules_use_networks_only_through_their_protocol(path: Path):
    assert offences(path.read_text()) == []


def test_the_check_covers_the_modules_of_the_loop():
    assert {"loop", "pretrain", "snapshot", "guards", "run", "sources", "learn"} <= {
        p.stem for p in SEES_PROTOCOLS_ONLY
    }


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn",
        "from torch import nn",
        "from vapo.models.networks import Policy",
        "torch.nn.utils.clip_grad_norm_(x)",
        "run.policy.model",
        "run.critic.optimizer.step()",
    ],
)
def test_the_check_finds_each_forbidden_line(line: str):
    assert offences(line)
