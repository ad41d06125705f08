"""Measure how much the gradient of an optimizer step depends on the way its batch is cut, on real rollouts.

Samples one step's responses from the shipped base model, then takes the policy gradient (surrogate, LM term
and both) and the critic gradient with several micro-batch budgets, packed and padded, rows in two orders, and
prints the largest relative difference to the whole batch at once. Run: python benchmarks/invariance.py
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from vapo.algo.method import Gae
from vapo.models.networks import value_head
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import resolve
from vapo.session.layers import recipe_layer, set_layer
from vapo.trainer.batch import Batch, collate
from vapo.trainer.credit import assign_credit
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.objectives import CriticObjective, PolicyObjective
from vapo.trainer.pricing import price
from vapo.trainer.scoring import score

BUDGETS = (256, 1000, 4096)


def gradient(objective: PolicyObjective | CriticObjective, batch: Batch, tokens: int) -> torch.Tensor:
    owner = objective.policy if isinstance(objective, PolicyObjective) else objective.critic
    network = LocalNetwork("x", owner, objective=objective)
    network.accumulate(batch, micro_batch_tokens=tokens)
    return torch.cat([p.grad.double().flatten() for p in network.parameters if p.grad is not None])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = resolve([recipe_layer("maze"), set_layer("scale.threads=1")])
        run = runs.begin(config, Path(folder) / "run", SilentView())
        assert run.critic is not None
        torch.manual_seed(0)
        torch.nn.init.normal_(
            value_head(run.critic.model).weight, std=0.1
        )  # with a head at 0 the backbone has no gradient
        episodes = run.source.next(run.state).episodes
        batch = collate(episodes, price(episodes, run.algorithm, max_response_tokens=run.decoding.max_tokens))
        batch = score(batch, policy=run.policy, critic=run.critic, micro_batch_tokens=16384)
        batch = assign_credit(batch, run.algorithm)
        assert batch.advantages is not None
        silent = replace(batch, advantages=torch.zeros_like(batch.advantages))
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
        credit = run.algorithm.credit
        assert isinstance(credit, Gae)
        result = {"responses": len(batch), "tokens": batch.num_tokens, "right": int(batch.right.sum())}
        for name, data, mu in (("policy", batch, 0.0), ("positive-lm", silent, 0.1), ("both", batch, 0.1)):
            algorithm = replace(run.algorithm, positive_lm=mu)
            result[name] = largest(
                lambda layout, a=algorithm: PolicyObjective(replace(run.policy.network, layout=layout), a), data, order
            )
        critic = run.critic.network
        result["critic"] = largest(lambda layout: CriticObjective(replace(critic, layout=layout), credit), batch, order)
        run.folder.close()
        print(json.dumps(result, indent=1))


def largest(make, batch: Batch, order: torch.Tensor) -> float:
    whole = gradient(make("packed"), batch, 10**9)
    differences = [
        float((gradient(make(layout), rows, tokens) - whole).norm() / whole.norm())
        for layout in ("packed", "padded")
        for tokens in BUDGETS
        for rows in (batch, batch.select(order))
    ]
    return max(differences)


if __name__ == "__main__":
    main()
