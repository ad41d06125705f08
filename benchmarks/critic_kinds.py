"""What kinds of critics explain after value pretraining on the same responses, and what that costs on one CPU core.

    python benchmarks/critic_kinds.py --base FOLDER [--steps 12] [--samples 64] [--passes 6] [--kinds full side]

FOLDER holds a base model of the maze (`vapo make-base`); `builtin` is the shipped one. Every kind of critic gets the
responses of the same steps, the same replays, and is judged on the same held-out responses. Rates are the defaults for
the sizes of the networks, unless `--lr side=3e-3` says otherwise. Writes critic_kinds.md and critic_kinds.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vapo.bases.shipped import builtin_model
from vapo.reports.live import SilentView
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.session.lifecycle import begin
from vapo.trainer.pretrain import pretrain_critic
from vapo.trainer.rollouts import PretrainingSource, Rollout
from vapo.trainer.run import Run
from vapo.trainer.state import State

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full critic", {}),
    "frozen": ("frozen attention", {"algorithm": {"credit": {"frozen": ["*self_attn*"]}}}),
    "lora": ("adapters of rank 8", {"model": {"critic_lora": 8}}),
    "small": ("the shipped base of 0.1M parameters", {"model": {"critic": str(builtin_model("maze"))}}),
    "side": ("side critic", {"model": {"critic_kind": "side"}}),
}


class Shared:
    """The responses of value pretraining, sampled once for all runs: the policy and the seed are the same."""

    max_age = 0

    def __init__(self) -> None:
        self.kept: dict[str, Rollout] = {}
        self.source: PretrainingSource | None = None

    def next(self, state: State) -> Rollout:
        """See `PretrainingSource`."""
        return self.at(state.pretrain_step, state)

    def at(self, step: int, state: State) -> Rollout:
        """See `PretrainingSource`."""
        assert self.source is not None
        if (key := str(step)) not in self.kept:
            self.kept[key] = self.source.at(step, state)
        return self.kept[key]

    def heldout(self, state: State) -> Rollout:
        """See `PretrainingSource`."""
        assert self.source is not None
        if "heldout" not in self.kept:
            self.kept["heldout"] = self.source.heldout(state)
        return self.kept["heldout"]


def run_of(kind: str, options: argparse.Namespace, folder: Path) -> Run:
    """A run that will pretrain a critic of this kind, and do no more."""
    settings = {
        "task": {"name": "maze"},
        "model": {"policy": options.base},
        "algorithm": {"preset": "vapo", "alpha": 0.5},
        "trainer": {
            "steps": 0, "samples_per_step": options.samples, "group_size": 8, "minibatch_size": options.minibatch,
            "pretraining_steps": options.steps, "pretraining_passes": options.passes, "save_rollouts_every": 0,
        },
        "evaluation": {"every": 0, "prompts": 4, "samples_per_prompt": 1},
        "checkpoint": {"every": 0},
        "guards": {"watchdog": False},
        "scale": {"threads": 1},
    }  # fmt: skip
    if kind == "side" and options.side_updates > 1:
        parts = options.passes * options.samples // options.side_minibatch
        credit = {"critic_updates": options.side_updates, "critic_minibatches": parts}
        settings["algorithm"] = {**settings["algorithm"], "credit": credit}
    rate = options.lr.get(kind)
    layers = [file_layer("sizes", settings), file_layer("kind", KINDS[kind][1])]
    if rate is not None:
        layers.append(file_layer("rate", {"trainer": {"pretraining_lr": rate}}))
    return begin(resolve(layers), folder / kind, SilentView())


def rate_of(text: str) -> tuple[str, float]:
    kind, _, rate = text.partition("=")
    return kind, float(rate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--minibatch", type=int, default=32)
    parser.add_argument("--side-updates", type=int, default=4, help="passes of the side critic over what a step draws")
    parser.add_argument("--side-minibatch", type=int, default=128)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--lr", nargs="*", type=rate_of, default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("critic_kinds.md"))
    options = parser.parse_args()
    options.lr = dict(options.lr)
    torch.set_num_threads(1)
    shared, rows = Shared(), []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            run = run_of(kind, options, Path(folder))
            assert run.critic is not None
            shared.source = run.pretraining_source
            run.pretraining_source = shared
            run.hand_over()
            if not shared.kept:
                began = time.process_time()
                shared.heldout(run.state)
                for step in range(options.steps):
                    shared.at(step, run.state)
                print(f"sampled in {time.process_time() - began:.0f} s", flush=True)
            parameters, policy = run.critic.published_bytes // 4, run.policy.published_bytes // 4
            began = time.process_time()
            pretrain_critic(run)
            seconds = time.process_time() - began
            run.folder.close()
            run.engine.close()
            lines = [json.loads(line) for line in (Path(folder) / kind / "metrics.jsonl").read_text().splitlines()]
            course = [line["pretrain/explained_variance"] for line in lines]
            rows.append({"kind": kind, "parameters": parameters, "share": parameters / policy, "seconds": seconds,
                         "lr": lines[-1]["lr/critic"], "explained_variance": course})  # fmt: skip
            print(kind, " ".join(f"{value:.3f}" for value in course), f"{seconds:.0f} s", flush=True)
    heldout = shared.kept["heldout"].drawn
    right = sum(episode.verdict.right for episode in heldout) / len(heldout)
    lines = [
        "# What kinds of critics learn in value pretraining",
        "",
        f"`python benchmarks/critic_kinds.py`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread, on "
        f"the maze: a policy of {policy / 1e6:.1f}M parameters right in {right:.0%} of {len(heldout)} responses; "
        f"{options.steps} steps of {options.samples} responses, {options.passes} passes, minibatches of "
        f"{options.minibatch} (side critic: {options.side_updates} times the updates, of {options.side_minibatch}), "
        "one seed. Seconds are of processor time, held-out judgements included.",
        "",
        "| critic | parameters / policy's | rate | held-out explained variance, by thirds | best | seconds |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        course = row["explained_variance"]
        thirds = ", ".join(f"{course[len(course) * third // 3 - 1]:.3f}" for third in (1, 2, 3))
        lines.append(
            f"| {KINDS[row['kind']][0]} | {row['share']:.1%} | {row['lr']:g} | {thirds} | {max(course):.3f} | "
            f"{row['seconds']:.0f} |"
        )
    options.out.write_text("\n".join([*lines, ""]))
    about = {key: value for key, value in vars(options).items() if key not in ("out", "base", "kinds")}
    options.out.with_suffix(".json").write_text(
        json.dumps({**about, "policy_parameters": policy, "right": right, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
