"""One owner of the device at a time. Where there is no GPU, a move copies everything and spoils what it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import toys
from vapo.errors import ConfigError
from vapo.reports.runfiles import read_jsonl
from vapo.session import lifecycle as runs
from vapo.trainer.device_turns import DeviceTurns
from vapo.trainer.local_network import LocalNetwork

DEVICE = torch.device("meta")  # a name only: nothing is moved to it
OFFLOAD = {"scale": {"offload": True}}
TIMED = ("time/", "throughput/", "mfu/", "memory/", "step_time")


class Moved:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def move(self, to: torch.device) -> None:
        self.log.append(f"{self.name} {'in' if to == DEVICE else 'out'}")


def test_others_leave_before_one_comes_and_who_stays_does_not_move():
    log: list[str] = []
    policy, critic, reference = (Moved(name, log) for name in ("policy", "critic", "reference"))
    turns = DeviceTurns(DEVICE)
    turns.enter(policy)
    turns.enter(critic)
    turns.take(policy)
    turns.take(policy)
    assert log == ["critic out"]
    turns.take(policy, critic)
    turns.take(reference)
    assert log[1:] == ["critic in", "policy out", "critic out", "reference in"]
    turns.free()
    turns.free()
    assert log[5:] == ["reference out"]
    assert turns.owners == []


def elsewhere(tensor: Tensor, where: dict[int, Tensor]) -> Tensor:
    """The same numbers at another address; who still looks at the old one reads nan."""
    if tensor.data_ptr() not in where:
        where[tensor.data_ptr()] = tensor.detach().clone()
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    return where[tensor.data_ptr()]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Moves in order, as `name in` and `name out`; whoever computes must be on the device."""
    done: list[str] = []
    there: dict[str, bool] = {}

    @torch.no_grad()
    def move(self: LocalNetwork, to: torch.device) -> None:
        where: dict[int, Tensor] = {}
        for parameter in self.model.parameters():
            parameter.data, gradient = elsewhere(parameter.data, where), parameter.grad
            if gradient is not None:
                parameter.grad = elsewhere(gradient, where)
        for state in self._optimizer.state.values() if self._optimizer is not None else ():
            state.update({key: elsewhere(value, where) for key, value in state.items()})
        # the same device stands for both: an owner comes after it has left
        there[self.name] = not there.get(self.name, True)
        done.append(f"{self.name} {'in' if there[self.name] else 'out'}")

    def checked(method: str, real: Any) -> Any:
        def run(self: LocalNetwork, *arguments: Any) -> Any:
            assert there.get(self.name, True), f"{method} of a {self.name} in host memory"
            return real(self, *arguments)

        return run

    monkeypatch.setattr(LocalNetwork, "move", move)
    for method in ("_scores", "_step"):
        monkeypatch.setattr(LocalNetwork, method, checked(method, getattr(LocalNetwork, method)))
    return done


CASES: dict[str, dict[str, Any]] = {
    "full critic": {},
    "side critic": {"model": {"critic_kind": "side"}},
    "adapters, reference": {
        "model": {"policy_lora": 4, "critic_lora": 4}, "algorithm": {"kl": {"coef": 0.1, "refresh_every": 4}},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_whose_networks_take_turns_ends_with_the_same_numbers(tmp_path: Path, moves: list[str], case: str):
    base = toys.toy_base(tmp_path / "base")
    runs.finish(toys.toy_run(base, tmp_path / "all", CASES[case]), report=False)
    assert moves == []
    runs.finish(toys.toy_run(base, tmp_path / "turns", CASES[case], OFFLOAD), report=False)
    assert len(moves) > 20
    for name in ("policy", "critic"):
        own = [move for move in moves if move.startswith(name)]
        assert own == [f"{name} out", f"{name} in"] * (len(own) // 2) + [f"{name} out"] * (len(own) % 2)
    one, other = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("all", "turns"))
    assert [timeless(line) for line in one] == [timeless(line) for line in other]
    for file in sorted((tmp_path / "all").rglob("*.safetensors")):
        mine, theirs = load_file(file), load_file(tmp_path / "turns" / file.relative_to(tmp_path / "all"))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items()), file


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.startswith(TIMED)}


def test_the_engine_samples_while_no_network_is_on_the_device(tmp_path: Path, moves: list[str]):
    base = toys.toy_base(tmp_path / "base")
    run = toys.toy_run(base, tmp_path / "run", OFFLOAD)
    before = len(moves)
    run.hand_over()
    assert moves[before:] == ["critic out"]
    run.source.next(run.state)
    assert moves[before + 1 :] == ["policy out"]
    runs.finish(run, report=False)


def test_who_works_at_the_same_time_cannot_take_turns(tmp_path: Path):
    base = toys.toy_base(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"with trainer.max_staleness=1 both work at the same time"):
        toys.toy_run(base, tmp_path / "run", OFFLOAD, {"trainer": {"max_staleness": 1}})
