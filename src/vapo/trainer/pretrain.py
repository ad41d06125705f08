"""Value pretraining: fit the critic to what the fixed initial policy really earns, before it may judge.

VAPO §4.1: keep sampling from a fixed policy, regress the critic onto Monte-Carlo returns, go on until value
loss and explained variance are good. (The paper says "sufficiently low" of both; explained variance must
of course become high.)
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vapo.algo.presets import Algorithm, Fixed, Gae
from vapo.errors import DivergedError
from vapo.trainer import snapshot
from vapo.trainer.batch import Batch, collate, num_minibatches
from vapo.trainer.credit import assign_credit
from vapo.trainer.measure import rollout_figures, value_figures
from vapo.trainer.run import Clock, Run
from vapo.trainer.sampling import check_verdicts, rollout, stream
from vapo.trainer.scoring import score
from vapo.types import stable_hash

BAD_STEPS_TO_STOP = 3
"""Steps in a row with numbers that are not finite before a run gives up."""


def pretrain_critic(run: Run) -> None:
    """Run what is left of value pretraining; returns at once if the method has none. Ends in phase "train".

    Exactly `pretraining_steps` steps, unless `pretraining_patience` says to stop sooner.
    """
    state, credit = run.state, run.algorithm.credit
    if not isinstance(credit, Gae) or credit.pretraining_steps == 0 or run.critic is None:
        state.phase = "train"
        return
    run.observer.phase("value pretraining", state.pretrain_step, credit.pretraining_steps)
    heldout = _heldout_batch(run)
    while state.pretrain_step < credit.pretraining_steps and not _out_of_patience(run):
        _pretraining_step(run, heldout)
    ready, reached = run.settings.pretraining_ready, state.explained_variance
    if reached is None or reached < ready:
        message = (
            "The critic is not ready: held-out explained variance ended "
            f"{'undefined (equal outcomes)' if reached is None else f'at {reached:.2f}'}, "
            f"wanted {ready:.2f}. Pretrain longer (trainer.pretraining_steps, "
            "trainer.pretraining_passes), raise trainer.pretraining_lr, or check that success can be foreseen."
        )
        run.observer.alarm(message)
        run.folder.event("alarm", message=message)
    state.phase = "train"
    if run.critic_learner is not None:
        run.folder.event("pretraining finished", steps=state.pretrain_step, explained_variance=reached)
    snapshot.save(run)


def monte_carlo(algorithm: Algorithm) -> Algorithm:
    """The method with λ = 1 for the critic: returns are what was earned, whatever the critic says."""
    assert isinstance(algorithm.credit, Gae)
    truncated = "zero" if algorithm.truncated == "bootstrap" else algorithm.truncated
    credit = replace(algorithm.credit, critic_lambda=Fixed(1.0), policy_lambda=Fixed(1.0), whiten=False)
    return replace(algorithm, credit=credit, truncated=truncated)


def _pretraining_step(run: Run, heldout: Batch) -> None:
    state, credit, clock = run.state, run.algorithm.credit, Clock()
    assert isinstance(credit, Gae)
    assert run.critic is not None
    assert run.critic_learner is not None
    step = state.pretrain_step
    sampling = run.algorithm.sampling
    prompts = stream(
        run.train_prompts,
        seed=run.seed,
        name="pretrain",
        position=step * sampling.prompts,
        count=sampling.prompts,
    )
    episodes = rollout(run, prompts, per_prompt=sampling.per_prompt, step=f"pretrain {step}", clock=clock)
    check_verdicts(episodes, run.settings.max_invalid_ratio)
    batch = collate(episodes, run.algorithm, max_response_tokens=run.decoding.max_tokens)
    with clock.time("score"):
        batch = score(batch, policy=None, critic=run.critic, micro_batch_tokens=run.settings.micro_batch_tokens)
        batch = assign_credit(batch, monte_carlo(run.algorithm))
    with clock.time("update"):
        wanted = run.settings.pretraining_lr
        lr = run.critic_learner.lr if wanted is None else wanted
        update = run.critic_learner.learn(
            batch,
            parts=num_minibatches(batch, run.algorithm),
            passes=run.settings.pretraining_passes,
            lr=lr,
            generator=lambda i: torch.Generator().manual_seed(stable_hash(run.seed, "pretrain shuffle", step, i)),
        )
    with clock.time("evaluate"):
        judged = score(heldout, policy=None, critic=run.critic, micro_batch_tokens=run.settings.micro_batch_tokens)
        assert judged.old_values is not None
        heldout_figures = value_figures(judged.old_values, judged.outcomes, judged.mask, credit.gamma)

    state.pretrain_step += 1
    explained = heldout_figures["value/explained_variance"]
    state.explained_variance = explained if math.isfinite(explained) else None
    best = -math.inf if state.best_explained_variance is None else state.best_explained_variance
    if state.explained_variance is not None and explained > best:
        state.best_explained_variance, state.best_pretrain_step = explained, state.pretrain_step
    count_skips(run, update.skipped)
    metrics = {
        "phase": "pretrain",
        "step": state.pretrain_step,
        **rollout_figures(batch),
        **update.figures,
        "pretrain/value_loss": update.figures.get("value/loss"),
        **{name.replace("value/", "pretrain/"): value for name, value in heldout_figures.items()},
        "lr/critic": lr,
        "skipped": update.skipped,
        "num_samples": state.num_samples,
        "num_tokens": state.num_tokens,
    }
    if (every := run.settings.save_rollouts_every) and step % every == 0:
        run.folder.rollouts(f"pretrain_{state.pretrain_step:06d}", episodes, batch, run.token_texts)
    metrics |= clock.figures(
        sampled_tokens=batch.num_tokens, learned_tokens=batch.num_tokens * run.settings.pretraining_passes
    )
    run.folder.metrics(metrics)
    run.observer.step(metrics)
    due = run.saving.every and state.pretrain_step % run.saving.every == 0
    if due or run.stop_requested:
        snapshot.save(run)
    run.stop_if_requested()


def count_skips(run: Run, skipped: int) -> None:
    """Raise DivergedError after several steps in a row that lost updates to NaN or inf."""
    run.state.skipped_in_a_row = run.state.skipped_in_a_row + 1 if skipped else 0
    if skipped:
        message = f"{skipped} gradient steps were skipped: their gradient was not finite."
        run.folder.event("alarm", message=message)
        run.observer.alarm(message)
    if run.state.skipped_in_a_row >= BAD_STEPS_TO_STOP:
        raise DivergedError(
            f"Gradients were not finite in {BAD_STEPS_TO_STOP} steps in a row. Start again with a lower "
            "trainer.actor_lr and trainer.critic_lr."
        )


def _heldout_batch(run: Run) -> Batch:
    """Judged responses of the fixed policy to held-out prompts; drawn again, identically, after a resume."""
    count = min(run.settings.pretraining_heldout, len(run.heldout_prompts))
    prompts = [run.heldout_prompts[i] for i in range(count)]
    per_prompt = max(1, run.settings.pretraining_heldout // count)
    samples, tokens = run.state.num_samples, run.state.num_tokens
    episodes = rollout(run, prompts, per_prompt=per_prompt, step="pretrain held-out", clock=Clock())
    run.state.num_samples, run.state.num_tokens = samples, tokens  # they are not trained on
    check_verdicts(episodes, run.settings.max_invalid_ratio)
    return collate(episodes, run.algorithm, max_response_tokens=run.decoding.max_tokens)


def _out_of_patience(run: Run) -> bool:
    patience = run.settings.pretraining_patience
    waited = run.state.pretrain_step - run.state.best_pretrain_step
    return patience > 0 and run.state.pretrain_step > 0 and waited >= patience
