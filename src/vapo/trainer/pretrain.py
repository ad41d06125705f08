"""Value pretraining: fit the critic to the returns of the fixed initial policy, before joint training.

VAPO §4.1: sample from a fixed policy and regress the critic onto Monte-Carlo returns until value loss is low and
explained variance is high. (The paper says "sufficiently low" of both.)

The policy does not change, so earlier responses stay valid: each step learns from its own responses and from a draw of
the earlier ones. The critic would overfit a few hundred responses repeated five times in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from vapo.algo import explained_variance
from vapo.algo.method import Gae
from vapo.errors import DivergedError, counted
from vapo.metrics import EventName, Phase
from vapo.rollout.collect import tally
from vapo.trainer import outcomes, snapshot
from vapo.trainer.batch import Batch, collate, concatenate, critic_passes
from vapo.trainer.credit import start_head, with_held_values, with_returns
from vapo.trainer.feature_cache import FeatureCache
from vapo.trainer.guards import apply_alarms, new_alarms
from vapo.trainer.learn import learn
from vapo.trainer.measure import residual_explained_variance, rollout_figures, value_figures
from vapo.trainer.memory import within_memory
from vapo.trainer.pricing import price
from vapo.trainer.replay import ReplayPool, Rows, drawn_from, remove_pool
from vapo.trainer.rollouts import PretrainingSource, Rollout, check_age, consume
from vapo.trainer.run import Run
from vapo.trainer.scoring import score
from vapo.types import stable_hash

NOT_READY = "critic_not_ready"
"""The name of the alarm for a critic that explains less than `trainer.pretraining_ready` when pretraining ends."""
BAD_STEPS_TO_STOP = 3
"""Steps in a row with skipped gradient steps before a run stops."""


def pretrain_critic(run: Run) -> None:
    """Run what is left of value pretraining; returns at once if the method has none. Ends in Phase.TRAIN.

    Exactly `pretraining_steps` steps, unless `pretraining_patience` says to stop sooner.
    """
    state, credit = run.state, run.algorithm.credit
    if not isinstance(credit, Gae) or credit.pretraining_steps == 0 or run.critic is None:
        state.phase = Phase.TRAIN
        return
    run.observer.phase(Phase.PRETRAIN, state.pretrain_step, credit.pretraining_steps)
    source = run.pretraining_source
    # The policy is fixed and each sample has its seed, so a resume samples the same responses.
    judged = source.heldout(state)
    heldout, verdicts = _collated(run, judged), tally(judged.drawn)
    replays = run.settings.pretraining_passes > 1
    cache = None
    if "features" in run.critic.reads:
        again = replays or credit.critic_updates > 1
        cache = FeatureCache(run.policy, run.feature_bytes if again else 0)
        heldout = cache.with_features(heldout)  # judged after every step
    same = outcomes.sameness(verdicts) if run.algorithm.reward.by == "verdict" else None
    if same and state.pretrain_step == 0 and run.settings.steps == 0:  # no evaluation raised this alarm
        run.alarm(outcomes.lesson(verdicts, "to held-out prompts", run.task.name), name=same)
    pool = ReplayPool(run.folder.path, run.alarm) if replays else None
    if pool is not None:
        pool.restore(state.pretrain_step, lambda step: _collated(run, source.at(step, state)))
    while state.pretrain_step < credit.pretraining_steps and not _out_of_patience(run):
        _pretraining_step(run, source, heldout, pool, cache)
    source.close()  # what was sampled ahead, where patience ended it
    ready, reached = run.settings.pretraining_ready, state.explained_variance
    # a critic beside the group's mean may begin knowing nothing
    if credit.baseline == "none" and (reached is None or reached < ready):
        scores = [e.verdict.score or 0.0 for e in judged.drawn if e.verdict.valid]
        if same:
            lesson = outcomes.lesson(verdicts, "to held-out prompts", run.task.name)
            advice = f"No outcome differs from another. {lesson}"
        elif run.algorithm.reward.by == "score" and scores and max(scores) - min(scores) <= outcomes.EQUAL:
            where = "to held-out prompts"
            lesson = outcomes.lesson_of_scores(outcomes.EQUAL_SCORES, verdicts, where, scores[0])
            advice = f"No outcome differs from another. {lesson}"
        else:
            advice = (
                f"Held-out explained variance ended {'undefined' if reached is None else f'at {reached:.2f}'}, wanted "
                f"{ready:.2f}. Pretrain longer (trainer.pretraining_steps, trainer.pretraining_passes), raise "
                "trainer.pretraining_lr, or check that a critic can predict success on this task."
            )
        run.alarm(f"The critic is not ready. {advice}", name=NOT_READY)
    elif reached is not None and reached >= ready:
        run.observer.note(f"the critic is ready: held-out explained variance {reached:.2f}, wanted {ready:.2f}")
    state.phase = Phase.TRAIN
    state.recent.clear()  # the alarms of joint training count its own steps only
    state.streaks.clear()
    run.folder.event(EventName.PRETRAINING_FINISHED, steps=state.pretrain_step, explained_variance=reached)
    if snapshot.save(run):  # if the disk refuses, the newest checkpoint still needs the pool
        remove_pool(run.folder.path)


def pool_bytes(run: Run) -> int:
    """About the most bytes that the replay pool takes on disk: token ids, mask, log-probabilities and returns."""
    credit = run.algorithm.credit
    if not isinstance(credit, Gae) or run.settings.pretraining_passes == 1:
        return 0
    prompt, response = len(run.train_prompts[0].token_ids), run.decoding.max_tokens
    return credit.pretraining_steps * run.algorithm.sampling.samples * (8 * (prompt + response) + 9 * response)


def replayed(batch: Batch, earlier: Sequence[Rows], count: int, generator: torch.Generator) -> Batch:
    """`batch` with up to `count` responses drawn from `earlier`, none twice."""
    drawn = drawn_from(earlier, count, generator)
    return batch if drawn is None else concatenate([batch, drawn])


def _pretraining_step(
    run: Run, source: PretrainingSource, heldout: Batch, pool: ReplayPool | None, cache: FeatureCache | None
) -> None:
    """Do one step, replay from the pool, and add the step's own responses to it."""
    state, credit, clock = run.state, run.algorithm.credit, run.clock()
    assert isinstance(credit, Gae)
    assert run.critic is not None
    step = state.pretrain_step
    rollout = source.next(state)
    check_age(rollout, state, source.max_age)
    consume(state, rollout)
    clock.add(rollout.seconds)
    batch = _collated(run, rollout)
    start_head(run, batch)

    def shuffle(what: str) -> torch.Generator:
        return torch.Generator().manual_seed(stable_hash(run.seed, "pretrain", what, step))

    with clock.time("update"):
        wanted = run.settings.pretraining_lr
        lr = run.algorithm.optimization.critic_lr if wanted is None else wanted
        count = (run.settings.pretraining_passes - 1) * len(batch)
        learned = replayed(batch, pool.batches if pool else [], count, shuffle("replay"))
        if run.settings.pretraining_at == "end":  # so that a minibatch of unfinished responses makes no step
            learned = replace(learned, mask=learned.mask & ~learned.truncated[:, None])
        passes, parts = critic_passes(learned, run.algorithm)
        update = learn(
            run.critic,
            learned,
            parts=parts,
            passes=passes,
            lr=lr,
            generator=lambda i: shuffle("shuffle" if i == 0 else f"shuffle {i}"),
            attempt=partial(within_memory, run, "critic"),
            prepare=None if cache is None else cache.with_features,
        )
    run.keep_skipped(f"pretrain_{step + 1:06d}_critic", update.bad)
    with clock.time("evaluate"):
        heldout_figures = _judged(run, heldout, credit.gamma)

    state.pretrain_step += 1
    at_end = run.settings.pretraining_at == "end"
    residual = heldout_figures.get("value/residual_explained_variance")
    explained = heldout_figures["value/end_explained_variance" if at_end else "value/explained_variance"]
    explained = explained if residual is None else residual
    state.explained_variance = explained if math.isfinite(explained) else None
    best = -math.inf if state.best_explained_variance is None else state.best_explained_variance
    if state.explained_variance is not None and explained > best:
        state.best_explained_variance, state.best_pretrain_step = explained, state.pretrain_step
    count_skips(run, update.skipped)
    metrics = {
        "phase": Phase.PRETRAIN,
        "step": state.pretrain_step,
        **rollout_figures(batch),
        **outcomes.figures_of(tally(rollout.drawn)),
        **outcomes.reward_figures(rollout.drawn),
        **({} if run.turns is None else outcomes.turn_figures(rollout.drawn)),
        **update.figures,
        "pretrain/value_loss": update.figures.get("value/loss"),
        **{name.replace("value/", "pretrain/"): value for name, value in heldout_figures.items()},
        "lr/critic": lr,
        "skipped": update.skipped,
        "pretrain/gradient_steps": update.gradient_steps,
        "num_samples": state.num_samples,
        "num_tokens": state.num_tokens,
    }
    last = state.pretrain_step == credit.pretraining_steps or _out_of_patience(run)
    if rollouts_are_due(state.pretrain_step, run.settings.save_rollouts_every, last=last):
        read = batch if cache is None else cache.with_features(batch)
        scored = within_memory(run, "score", partial(score, critic=run.critic), read)
        run.save_rollouts(f"pretrain_{state.pretrain_step:06d}", rollout.episodes, scored)
    metrics |= clock.figures(
        sampled_tokens=rollout.num_tokens, learned_tokens=learned.num_tokens, matrix_rate=run.matrix_rate
    )
    run.log(metrics)
    # A rollback would sample the same responses again: the policy is fixed.
    alarms = new_alarms(metrics, state, run.guards, algorithm=run.algorithm, task=run.task.name)
    apply_alarms(run, alarms, may_roll_back=False)
    if pool is not None:
        pool.add(batch)  # before the checkpoint, which counts on it
    snapshot.save_if_due(run, state.pretrain_step)


def _judged(run: Run, heldout: Batch, gamma: float) -> dict[str, float]:
    """How well the critic predicts held-out outcomes; for a reward model also at the last token."""
    at_end = run.settings.pretraining_at == "end"
    judged = within_memory(run, "score", partial(score, critic=run.critic, final_values=at_end), heldout)
    credit = run.algorithm.credit
    assert isinstance(credit, Gae)
    if not at_end:
        judged = with_held_values(judged, credit)
    figures = value_figures(judged, gamma)
    if judged.critic_shift is not None:
        figures["value/residual_explained_variance"] = residual_explained_variance(judged)
    if judged.final_values is not None:
        learned = judged.mask.any(-1) & ~judged.truncated  # what the reward model learns from
        targets = judged.critic_outcomes[:, None]
        explained = explained_variance(judged.final_values[:, None], targets, learned[:, None], exact=True)
        figures["value/end_explained_variance"] = float(explained)
    return figures


def _collated(run: Run, rollout: Rollout) -> Batch:
    """The rollout's batch with Monte-Carlo returns."""
    prices = price(rollout.drawn, run.algorithm, max_response_tokens=run.decoding.max_tokens)
    return with_returns(collate(rollout.drawn, prices), run.algorithm)


def rollouts_are_due(step: int, every: int, *, last: bool) -> bool:
    """Whether a step (from 1) of a phase saves its responses: the first, every `every`-th and the last do."""
    return every > 0 and (step == 1 or step % every == 0 or last)


def count_skips(run: Run, skipped: int) -> None:
    """Raise DivergedError after several steps in a row that lost updates to NaN or inf."""
    run.state.skipped_in_a_row = run.state.skipped_in_a_row + 1 if skipped else 0
    if skipped:
        run.alarm(
            f"{counted(skipped, 'gradient step')} skipped: the loss or gradient was not finite. What there was to "
            f"learn from is kept in {run.folder.path / 'skipped'}."
        )
    if run.state.skipped_in_a_row >= BAD_STEPS_TO_STOP:
        raise DivergedError(
            f"Gradients were not finite in {BAD_STEPS_TO_STOP} steps in a row. Start again with a lower "
            "trainer.actor_lr and trainer.critic_lr."
        )


def _out_of_patience(run: Run) -> bool:
    patience = run.settings.pretraining_patience
    waited = run.state.pretrain_step - run.state.best_pretrain_step
    return patience > 0 and run.state.pretrain_step > 0 and waited >= patience
