"""The networks' part in a joint step: what each scores before the update, and its update.

Nothing is computed twice that need not be (`trainer.scoring`). The sampler has said the policy's log-probabilities;
where a few responses show that they are the trainer's own, they stand for all. A critic whose targets do not depend on
its values gives those of its first minibatch in the pass that makes their gradient: both read the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vapo.algo import kl_divergence, masked, token_weights, weighted_sum
from vapo.algo.method import Algorithm, Fixed, Gae
from vapo.trainer.batch import Batch, critic_passes, minibatch_rows, num_minibatches
from vapo.trainer.credit import with_group_means, with_returns
from vapo.trainer.learn import learn
from vapo.trainer.measure import gap_figures
from vapo.trainer.memory import within_memory
from vapo.trainer.network import Gradient, Network
from vapo.trainer.run import Run
from vapo.trainer.scoring import score
from vapo.types import stable_hash

SAME_LOGP = 1e-4
"""Nats by which the sampler's log-probability of a token may differ from the trainer's and stand for it. It moves a
ratio by 1e-4; clipping begins at .2."""
PROBED = 16
"""One response in so many is scored to see whether they do."""
LEAST_PROBED = 4


def score_policy(run: Run, batch: Batch) -> tuple[Batch, dict[str, float]]:
    """The batch with `old_logp`, with `entropy` and the critic's `features` where all of it was scored, and how far the
    sampler is from the trainer."""
    reads = run.critic.reads if run.critic is not None else ()
    rows = probed_rows(batch, torch.Generator().manual_seed(stable_hash(run.seed, "probe", run.state.step)))
    if run.settings.scoring == "needed" and not reads and len(rows):
        probe = within_memory(run, "score", partial(score, policy=run.policy), batch.select(rows))
        figures = gap_figures(probe)
        if figures["sampler/logp_gap_max"] <= SAME_LOGP:
            return replace(batch, old_logp=batch.sampled_logp), figures
    batch = within_memory(run, "score", partial(score, policy=run.policy, reads=reads), batch)
    return batch, gap_figures(batch)


def probed_rows(batch: Batch, generator: torch.Generator) -> Tensor:
    """A few of the rows with a learned token, (n,)."""
    learned = batch.mask.any(-1).nonzero()[:, 0]
    count = max(LEAST_PROBED, len(learned) // PROBED)
    return learned[torch.randperm(len(learned), generator=generator)[:count]]


def score_others(run: Run, batch: Batch) -> tuple[Batch, Gradient | None]:
    """The batch with what critic and reference say of it, and the gradient of the critic's first minibatch, where it
    was made on the way."""
    bootstraps = run.algorithm.truncated == "bootstrap"
    rows = _first_minibatch(run, batch)
    if rows is None:
        what = partial(score, critic=run.critic, reference=run.reference, final_values=bootstraps)
        return within_memory(run, "score", what, batch), None
    assert run.critic is not None
    batch = with_group_means(within_memory(run, "score", partial(score, reference=run.reference), batch))
    others = torch.ones(len(batch), dtype=torch.bool)
    others[rows] = False
    values = torch.zeros(batch.mask.shape)
    if bool(others.any()):
        rest = within_memory(run, "score", partial(score, critic=run.critic), batch.select(others.nonzero()[:, 0]))
        assert rest.old_values is not None
        values[others, : rest.width] = rest.old_values
    first = with_returns(batch, run.algorithm).select(rows)
    gradient = within_memory(run, run.critic.name, run.critic.accumulate, first)
    assert gradient.values is not None
    values[rows, : first.width] = gradient.values
    return replace(batch, old_values=values), gradient


def targets_need_no_values(algorithm: Algorithm) -> bool:
    """Whether the critic learns outcomes only: λ 1, no value of a cut-off response, no clipping at earlier values."""
    credit = algorithm.credit
    return (
        isinstance(credit, Gae)
        and credit.critic_lambda == Fixed(1.0)
        and credit.value_clip is None
        and algorithm.truncated != "bootstrap"
    )


def update(run: Run, network: Network, batch: Batch, begun: Gradient | None = None) -> dict[str, float]:
    """Train one network on the batch; its figures, learning rate and skipped steps.

    `begun` is the gradient of its first minibatch, where the network holds it already.
    """
    state, optimization = run.state, run.algorithm.optimization
    is_policy = network is run.policy
    # a critic that was pretrained (at a constant rate) needs no warm-up any more; the policy's starts here
    rounds = (state.step if is_policy else state.serial) + 1
    peak = optimization.actor_lr if is_policy else optimization.critic_lr
    lr = peak * min(1.0, rounds / max(1, optimization.warmup_steps))
    if is_policy:
        passes, parts, batch = optimization.epochs, num_minibatches(batch, run.algorithm), batch.for_policy()
    else:
        passes, parts = critic_passes(batch, run.algorithm)
        passes *= optimization.epochs
    result = learn(
        network,
        batch,
        parts=parts,
        passes=passes,
        lr=lr,
        generator=partial(_shuffle, run, network),
        attempt=partial(within_memory, run, network.name),
        begun=begun,
    )
    run.keep_skipped(f"step_{state.step + 1:06d}_{network.name}", result.bad)
    figures = result.figures
    if is_policy:
        figures = {**figures, "kl/update": moved(run, batch)}
        state.gradient_steps += result.gradient_steps
        state.reference_age += result.gradient_steps
    name = "actor" if is_policy else "critic"
    return {**figures, f"lr/{name}": lr, f"skipped/{network.name}": result.skipped}


def moved(run: Run, batch: Batch) -> float:
    """How far the update moved the policy, KL[before | now] in nats a token (k3), on a few responses.

    The update's own passes cannot say: each reads the weights before its gradient step.
    """
    rows = probed_rows(batch, torch.Generator().manual_seed(stable_hash(run.seed, "moved", run.state.step)))
    if not len(rows):
        return 0.0
    before = batch.select(rows)
    now = within_memory(run, "score", partial(score, policy=run.policy), before)
    assert before.old_logp is not None
    assert now.old_logp is not None
    logp, old_logp = masked(now.old_logp, before.mask), masked(before.old_logp, before.mask)
    return float(weighted_sum(kl_divergence(old_logp, logp, estimator="k3"), token_weights(before.mask)))


def _first_minibatch(run: Run, batch: Batch) -> Tensor | None:
    """The rows of the critic's first minibatch, if its values may come from its update; else None."""
    if run.critic is None or run.settings.scoring != "needed" or not targets_need_no_values(run.algorithm):
        return None
    _, parts = critic_passes(batch, run.algorithm)
    rows = minibatch_rows(batch, parts, _shuffle(run, run.critic, 0))[0]
    return rows if bool(batch.mask[rows].any()) else None


def _shuffle(run: Run, network: Network, number: int) -> torch.Generator:
    """The generator that shuffles the batch for one pass of a network's update."""
    return torch.Generator().manual_seed(stable_hash(run.seed, "shuffle", network.name, run.state.step, number))
