"""Everything that changes over a step is saved, and everything that is saved matters."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from vapo.durability import checkpoint
from vapo.errors import DivergedError, VapoError
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.trainer import loop
from vapo.trainer.run import Run
from vapo.trainer.state import State
from vapo.types import Verdict

pytestmark = pytest.mark.slow

KL = {"algorithm": {"kl": {"coef": 0.01, "refresh_every": 6}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


# --------------------------------------------------------------------------- nothing is forgotten


SAVED = (
    "state.",
    "policy.network.model.",
    "critic.network.model.",
    "reference.network.model.",
    "policy._optimizer.state",
    "critic._optimizer.state",
    "source._waiting",
)
MADE_AGAIN = {
    # the engine's copy of the policy, which every start hands over anew
    "engine.": "weights and the cache that the last rollout left",
    # set from the schedule before every update
    "policy._optimizer.param_groups": "the learning rate",
    "critic._optimizer.param_groups": "the learning rate",
    "folder._waiting": "log lines on their way to the disk",
    "policy._spans.": "where the time went",
    "watch.": "when the last sign of life was",
    "observer._": "for which phases the time left was noted",
    "source._thread._executor": "the thread that samples ahead",
    "pretraining_source.": "responses that are sampled again from their seeds, and the thread that samples them ahead",
    "train_prompts._rendered": "prompts as tokens, kept so that they are made once",
}


def leaves(value: Any, path: str = "", seen: dict[int, str] | None = None) -> dict[str, Any]:
    """Every plain value and tensor that can be reached from an object, by its path."""
    seen = {} if seen is None else seen
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return {path: value}
    if isinstance(value, torch.Tensor):
        return {path: value.detach().clone()}
    if isinstance(value, torch.Generator):
        return {path: value.get_state()}
    if isinstance(value, random.Random):
        return {path: repr(value.getstate())}
    if id(value) in seen or (callable(value) and not hasattr(value, "__dict__")):
        return {}
    seen[id(value)] = path
    found: dict[str, Any] = {}
    if isinstance(value, dict):
        # parameters as keys (the optimizer's state) by their place, not by their address
        items = [(str(i) if isinstance(k, torch.Tensor) else str(k), v) for i, (k, v) in enumerate(value.items())]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        items = [(str(i), v) for i, v in enumerate(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        items = list(vars(value).items())
    else:
        return {}
    found[f"{path}#"] = len(items)
    for name, item in items:
        found |= leaves(item, f"{path}.{name}" if path else name, seen)
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and (one == other or one != one)


def changed_over(work: Callable[[], object], run: Run) -> set[str]:
    before = leaves(run)
    work()
    after = leaves(run)
    missing = object()
    return {
        path for path in before.keys() | after.keys() if not same(before.get(path, missing), after.get(path, missing))
    }


AHEAD = {"trainer": {"max_staleness": 1}}
KINDS = {
    "whole": {},
    "adapters": {"model": {"policy_lora": 2, "critic_lora": 2}},
    "side critic": {"model": {"critic_kind": "side"}},
    "ahead": AHEAD,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_attributes_that_change_in_a_step_are_saved_or_recomputed(base: Path, tmp_path: Path, phase: str, kind: str):
    run = toys.toy_run(base, tmp_path / "run", KL, {"trainer": {"pretraining_steps": 2}}, KINDS[kind])
    run.hand_over()
    loop.evaluate_policy(run)
    if phase == "train":
        loop.pretrain_critic(run)
        loop.train_step(run)  # caches and first moments exist from here on
        changed = changed_over(lambda: loop.train_step(run), run)
    else:
        changed = changed_over(lambda: loop.pretrain_critic(run), run)
    run.source.close()
    run.folder.close()
    assert any(path.startswith("state.") for path in changed)
    assert (kind == "ahead" and phase == "train") == any(path.startswith("source._waiting") for path in changed)
    assert any(path.startswith("critic.network.model.") for path in changed)
    policy = {path for path in changed if path.startswith("policy.network.model.") and "._parameters." in path}
    assert bool(policy) == (phase == "train")
    known = (*SAVED, *MADE_AGAIN)
    if kind == "adapters":  # a checkpoint has no base model, so none may change
        parts = [path for path in changed if path.startswith("policy.network.model.") and "._parameters." in path]
        assert all(".lora_" in path for path in parts)
    # the same objects are reached by other names, too: the objectives hold the networks
    assert {path for path in changed if not path.startswith(known)} == set()


NEW = {
    "a list": ([1], lambda x: x.append(2)),
    "a queue": (deque([1]), lambda x: x.append(2)),
    "a dictionary": ({}, lambda x: x.update(a=1)),
    "a tensor": (torch.zeros(2), lambda x: x.add_(1)),
    "chance": (random.Random(0), lambda x: x.random()),
    "torch's chance": (torch.Generator(), lambda x: torch.rand(1, generator=x)),
}


@pytest.mark.parametrize("kind", NEW)
def test_the_search_finds_a_new_attribute(base: Path, tmp_path: Path, kind: str):
    value, change = NEW[kind]
    run = toys.toy_run(base, tmp_path / "run")
    run.forgotten = {"deep": [value]}
    changed = changed_over(lambda: change(value), run)
    run.folder.close()
    assert changed
    assert all(path.startswith("forgotten.deep.0") for path in changed)


def test_a_step_leaves_global_random_states_unchanged(base: Path, tmp_path: Path):
    run = toys.toy_run(base, tmp_path / "run", {"trainer": {"pretraining_steps": 1}})
    before = torch.get_rng_state(), repr(random.getstate()), repr(np.random.get_state())
    runs.finish(run, report=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(random.getstate()), repr(np.random.get_state()))


# --------------------------------------------------------------------------- nothing is idle


OF_A_RESUME = ("critic loaded", "resumed")
"""Events that tell of the resume itself."""


def signature(folder: Path) -> dict[str, Any]:
    """What a run leaves, without clocks."""
    found: dict[str, Any] = {}
    for name in ("metrics.jsonl", "evaluations.jsonl", "events.jsonl"):
        text = re.sub(r"/\S*/(whole|again|without)", "RUN", (folder / name).read_text())
        lines = [json.loads(line) for line in text.splitlines()]
        timeless = [
            {
                k: v
                for k, v in line.items()
                if k != "time" and not k.startswith(("time/", "throughput/", "mfu/", "memory/", "step_time"))
            }
            for line in lines
        ]
        found[name] = [line for line in timeless if line.get("event") not in OF_A_RESUME]
    newest = checkpoint.newest(folder / "checkpoints", print)
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    del state["log_bytes"]
    found["state"] = state
    for path in newest.rglob("*.safetensors"):
        found[str(path.relative_to(newest))] = checkpoint.sha256(path)
    return found


def spoiled_losses(run: Run) -> None:
    """Numbers that are never finite from the second joint step on."""
    real = run.policy.objective.loss

    class Spoiled(type(run.policy.objective)):
        def loss(self, micro, weights):
            part = real(micro, weights)
            return part if run.state.step == 0 else dataclasses.replace(part, loss=part.loss + float("nan"))

    run.policy.objective = Spoiled(run.policy.objective.policy, run.policy.objective.algorithm)


def small_memory(run: Run) -> None:
    """Memory for 60 tokens."""
    real = run.policy.objective.loss

    class Small(type(run.policy.objective)):
        def loss(self, micro, weights):
            if sum(len(t) for t in micro.tokens) > 60:
                raise torch.OutOfMemoryError("made up")
            return real(micro, weights)

    run.policy.objective = Small(run.policy.objective.policy, run.policy.objective.algorithm)


def never_right(run: Run) -> None:
    """A verifier that nothing pleases."""
    run.task.verify = lambda prompt, response: Verdict("wrong", "no", "no_answer")


LONG_PATIENCE = {"trainer": {"pretraining_steps": 6, "pretraining_patience": 2, "pretraining_lr": 0.0}}
"""A critic that never learns: its first explained variance stays the best."""
ALWAYS = {"guards": {"clipped_ratio_above": 0.0, "patience": 2}}
SPIKES = {"guards": {"grad_norm_above": 1.0001}, "trainer": {"steps": 7}}
ROLLBACK = {"guards": {"clipped_ratio_above": 0.0, "patience": 2, "action": "rollback", "max_rollbacks": 1}}

MEAN_START = {"algorithm": {"credit": {"head": {"start": "mean"}}}, "trainer": {"critic_lr": 0.0}}
"""A critic that never learns: its head would be set to the mean target again."""
FITTED = {"algorithm": {"credit": {"baseline": "fitted"}}}

# piece of state, the checkpoint to resume from, settings under which it matters, and what is done to the run
FIELDS: dict[str, tuple[str, dict[str, Any], Callable[[Run], None] | None]] = {
    "phase": ("step_000001", {}, None),
    "evaluated": ("pretrain_000000", {}, None),
    "pretrain_step": ("pretrain_000001", {}, None),
    "step": ("step_000001", {}, None),
    "gradient_steps": ("step_000001", {}, None),
    "reference_age": ("step_000001", {}, None),
    "prompts_seen": ("step_000001", {}, None),
    "num_samples": ("step_000001", {}, None),
    "num_tokens": ("step_000001", {}, None),
    "skipped_in_a_row": ("step_000002", {"trainer": {"steps": 5}}, spoiled_losses),
    "explained_variance": ("pretrain_000002", {}, None),
    "best_explained_variance": ("pretrain_000002", LONG_PATIENCE, None),
    "best_pretrain_step": ("pretrain_000002", LONG_PATIENCE, None),
    "recent": ("step_000005", SPIKES, None),
    "streaks": ("step_000001", ALWAYS, None),
    "verdicts": ("step_000001", {"guards": {"same_outcome_steps": 2}}, never_right),
    "mixture": ("step_000001", FITTED, None),
    "head_started": ("step_000001", MEAN_START, None),
    "rollbacks": ("step_000001", ROLLBACK, None),
    "micro_batch_tokens": ("step_000001", {}, small_memory),
    "log_bytes": ("step_000001", {}, None),
}
FIELDS |= dict.fromkeys(["policy", "policy_optimizer", "critic", "critic_optimizer"], ("step_000001", {}, None))
FIELDS["waiting_rollout"] = ("step_000001", AHEAD, None)
FIELDS["reference"] = ("step_000002", {}, None)  # it has been refreshed by then


def finish(run: Run, meddle: Callable[[Run], None] | None) -> None:
    if meddle:
        meddle(run)
    try:
        runs.finish(run, report=False)
    except DivergedError as error:  # some of these runs are meant to
        with (run.folder.path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "ended", "message": str(error)}) + "\n")


def resumed(folder: Path, piece: str | None, meddle: Callable[[Run], None] | None, fresh: Run | None) -> Any:
    """What the run leaves when it goes on from the folder's newest checkpoint without one piece of its state."""
    run = runs.resume(folder, SilentView(), task=toys.EchoTask())
    if piece == "log_bytes":
        run.folder.cut_logs({})
    elif piece is not None and hasattr(run.state, piece):
        setattr(run.state, piece, getattr(State(), piece))
    elif piece == "waiting_rollout":
        run.source.restart(None)
    elif piece == "reference":
        run.reference.model.load_state_dict(fresh.reference.model.state_dict())
    elif piece is not None:
        name = piece.removesuffix("_optimizer")
        one, other = getattr(run, name), getattr(fresh, name)
        if piece.endswith("optimizer"):
            one.optimizer.state.clear()
        else:
            one.model.load_state_dict(other.model.state_dict())
    finish(run, meddle)
    return signature(folder)


class Killed:
    """Runs that were never killed, and what a kill right after each of their saves would have left."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root
        self.found: dict[str, Any] = {}

    def of(self, edge: str, layers: dict[str, Any], meddle: Callable[[Run], None] | None) -> tuple[Path, Any]:
        """The folder of a run killed right after it saved `edge`, and what it would have left in the end."""
        name = f"{getattr(meddle, '__name__', '')}{abs(hash(json.dumps(layers)))}"
        folder = self.root / name / "whole"
        if name not in self.found:
            with pytest.MonkeyPatch.context() as patch:
                run = toys.toy_run(self.base, folder, KL, layers)
                patch.setattr(checkpoint, "save", partial(self._save_and_keep, checkpoint.save, folder))
                finish(run, meddle)
            self.found[name] = signature(folder)
        killed = folder.with_name(edge)
        if f"{name}/{edge}" not in self.found:
            copy_of(killed, folder.with_name("again"))
            again = resumed(folder.with_name("again"), None, meddle, None)
            assert again == self.found[name]
            shutil.rmtree(folder.with_name("again"))
            self.found[f"{name}/{edge}"] = True
        return killed, self.found[name]

    def _save_and_keep(self, save, folder: Path, root: Path, name: str, write, **options) -> Path:
        saved = save(root, name, write, **options)
        shutil.rmtree(folder.with_name(name), ignore_errors=True)
        copy_of(folder, folder.with_name(name))
        return saved


@pytest.fixture(scope="module")
def killed(base: Path, tmp_path_factory) -> Killed:
    return Killed(base, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("piece", list(FIELDS))
def test_a_resume_without_one_piece_of_the_state_differs(killed: Killed, tmp_path: Path, piece: str):
    edge, layers, meddle = FIELDS[piece]
    folder, expected = killed.of(edge, layers, meddle)  # without anything left out it is the same
    fresh = toys.toy_run(killed.base, tmp_path / "fresh", KL, layers)
    fresh.folder.close()
    copy_of(folder, tmp_path / "without")
    try:
        found = resumed(tmp_path / "without", piece, meddle, fresh)
    except VapoError as error:  # not going on at all shows, too
        found = error
    assert found != expected


def copy_of(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to)


def test_the_list_of_pieces_is_complete():
    assert set(FIELDS) >= {f.name for f in dataclasses.fields(State)}
