"""Imports point down, so `algo` serves in anyone's trainer; and one file name means one thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import vapo

ROOT = Path(vapo.__file__).parent
FLOORS = [
    {"types", "errors", "hub"},
    {"ranges", "type_words", "json_text", "metrics"},
    {"algo"},
    {"models", "tasks", "durability"},
    {"bases", "rollout"},
    {"trainer", "evals"},
    {"reports", "scale", "trackers"},
    {"session"},
    {"api", "study", "chaos"},
    {"cli"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vapo":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("vapo.")}
    return rooms


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_room_imports_only_from_the_floors_below_it():
    offences = []
    for path in ROOT.rglob("*.py"):
        room = room_of(path)
        if room in {"__init__", "__main__"}:
            continue
        for other in imported_rooms(path) - {room}:
            if FLOOR[other] >= FLOOR[room]:
                offences.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not offences


def test_verifiers_do_not_import_problem_sources():
    for path in (ROOT / "tasks" / "verifiers").glob("*.py"):
        imported = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vapo.tasks")
        }
        assert all(name.startswith("vapo.tasks.verifiers") for name in imported), path


def test_file_names_are_unique_in_the_package():
    # a folder says what its __init__ and its __main__ are
    names = Counter(path.stem for path in ROOT.rglob("*.py") if path.stem not in {"__init__", "__main__"})
    assert [name for name, count in names.items() if count > 1] == []


def test_the_package_and_the_command_line_load_without_torch_or_optional_packages():
    script = (
        "import sys, vapo, vapo.cli; print([m for m in ('torch', 'transformers', 'vllm', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_algo_imports_only_torch_and_the_lowest_modules():
    script = (
        "import sys, vapo.algo; [getattr(vapo.algo, name) for name in vapo.algo.__all__]; "
        "print(sorted(m for m in sys.modules if m.startswith('vapo.') "
        "and not m.startswith('vapo.algo')), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['vapo.errors', 'vapo.ranges'] False"


def test_public_names_can_be_imported_from_their_documented_modules():
    import vapo.algo as algo
    from vapo.algo import presets

    for name in [
        "gae",
        "length_adaptive_lambda",
        "group_advantages",
        "clipped_surrogate",
        "value_loss",
        "token_weights",
        "sequence_weights",
        "positive_weights",
        "soft_overlong_punishment",
        "explained_variance",
    ]:
        assert callable(getattr(algo, name)), name
    for name in ["PPO", "VC_PPO", "GRPO", "DAPO", "VAPO", "TECHNIQUES", "without"]:
        assert hasattr(presets, name), name
    for name in ["train", "evaluate", "RolloutEngine", "Task", "Verifier"]:
        assert hasattr(vapo, name), name
