"""The training loop. Numbers in comments are the steps of the paper's algorithm box; no method is named here."""

from __future__ import annotations

from typing import Any

import torch

from vapo.algo.method import Gae
from vapo.errors import AbandonedError, EngineError, RankError, command
from vapo.metrics import EvaluationLabel, Phase
from vapo.rollout.collect import tally
from vapo.trainer import outcomes, snapshot
from vapo.trainer.batch import Batch, collate
from vapo.trainer.credit import assign_credit, critic_share, new_mixture, start_head
from vapo.trainer.guards import apply_alarms, new_alarms
from vapo.trainer.measure import rollout_figures, scoring_figures
from vapo.trainer.pretrain import count_skips, pretrain_critic, rollouts_are_due
from vapo.trainer.pricing import price
from vapo.trainer.replay import remove_pool
from vapo.trainer.rollouts import check_age, consume
from vapo.trainer.run import Run
from vapo.trainer.updates import score_others, score_policy, update
from vapo.types import Episode


def run_loop(run: Run) -> None:
    """Train to the last step, from wherever the run's state stands.

    Raises StoppedError after an orderly stop, DivergedError, VerifierBrokenError.
    """
    run.hand_over()
    if run.state.phase != Phase.PRETRAIN:
        remove_pool(run.folder.path)  # of a run that was killed right after pretraining
    if run.state.phase == Phase.TRAIN:
        run.observer.phase(Phase.TRAIN, run.state.step, run.settings.steps)
    try:
        while run.state.phase != Phase.DONE:
            run.profiler.turn(next_is_a_step=next_is_a_step(run))
            advance(run)
        run.profiler.turn(next_is_a_step=False)
    except AbandonedError:  # sampling, judging or evaluation was dropped, before any of the state moved
        snapshot.save(run)
        snapshot.raise_stopped(run)
    except (EngineError, RankError) as error:
        raise type(error)(
            f"{error} Go on from the last checkpoint with: {command('resume', run.folder.path)}"
        ) from error


def advance(run: Run) -> None:
    """Do what comes next: an evaluation that is due, value pretraining, a joint step, or the end."""
    state, steps = run.state, run.settings.steps
    if evaluation_is_due(run):
        evaluate_policy(run)
        if state.step == 0:
            snapshot.save(run)
    elif state.phase == Phase.PRETRAIN:
        pretrain_critic(run)
        run.observer.phase(Phase.TRAIN, state.step, steps)
    elif state.step < steps:
        train_step(run)
    else:
        state.phase = Phase.DONE
        snapshot.save(run, at_the_end=True)
        remove_pool(run.folder.path)  # the save after pretraining may have failed


def next_is_a_step(run: Run) -> bool:
    """Whether `advance` will do a joint step."""
    joint = run.state.phase == Phase.TRAIN and run.state.step < run.settings.steps
    return joint and not evaluation_is_due(run)


def train_step(run: Run) -> None:
    """Do one joint step: sample, judge, score, assign credit, update, hand over the policy, log."""
    for begins in run.on_step:
        begins()
    state, algorithm, clock = run.state, run.algorithm, run.clock()

    # 1. Sample groups of responses from the current policy; let the verifier judge them.
    rollout = run.source.next(state)
    age = check_age(rollout, state, run.source.max_age)
    consume(state, rollout)
    clock.add(rollout.seconds)
    prices = price(rollout.drawn, algorithm, max_response_tokens=run.decoding.max_tokens)
    drawn = collate(rollout.drawn, prices)
    figures: dict[str, Any] = rollout_figures(drawn)
    figures |= outcomes.figures_of(tally(rollout.drawn)) | outcomes.reward_figures(rollout.drawn)
    if run.turns is not None:
        figures |= outcomes.turn_figures(rollout.drawn)
    figures["rollout/staleness"] = age
    figures["sampling/kept_ratio"] = len(rollout.kept) / len(drawn)
    learned = 0
    if rollout.kept:
        # 2. Score the responses before any update, and assign credit.
        batch = drawn.select(torch.tensor(rollout.kept))
        start_head(run, batch)
        learned = batch.num_tokens * algorithm.optimization.epochs
        with clock.time("score"):
            batch, gap = score_policy(run, batch)
            batch, begun = score_others(run, batch)
            mixture = (state.mixture[0], state.mixture[1])
            batch = assign_credit(batch, algorithm, mixture)
        figures |= gap | scoring_figures(batch, algorithm)
        if isinstance(credit := algorithm.credit, Gae) and credit.baseline in ("fitted", "gated"):
            figures["credit/critic_share"] = critic_share(batch)
            if credit.baseline == "fitted":
                state.mixture = list(new_mixture(batch, mixture))

        # 3. One optimizer step per minibatch, for each network.
        with clock.time("update"):
            for network in run.learners:
                figures |= update(run, network, batch, begun if network is run.critic else None)
        count_skips(run, sum(figures[f"skipped/{network.name}"] for network in run.learners))
        save_rollouts_if_due(run, rollout.episodes, batch)

    # 4. Hand over the new policy and log what happened.
    state.step += 1
    refresh_reference_if_due(run)
    with clock.time("rollout_wait"):
        run.source.settle()
    with clock.time("hand_over"):
        run.hand_over()
    figures |= {"num_samples": state.num_samples, "num_tokens": state.num_tokens}
    figures |= {"gradient_steps": state.gradient_steps}
    figures |= clock.figures(sampled_tokens=rollout.num_tokens, learned_tokens=learned, matrix_rate=run.matrix_rate)
    run.log({"phase": Phase.TRAIN, "step": state.step, **figures})
    kept, wanted = len(rollout.kept), algorithm.sampling.samples
    alarms = new_alarms(figures, state, run.guards, kept=kept, wanted=wanted, algorithm=algorithm, task=run.task.name)
    if apply_alarms(run, alarms):
        return
    snapshot.save_if_due(run, state.step)


def evaluation_is_due(run: Run) -> bool:
    """Whether to evaluate now: before the first joint step, after the last, and every `evaluation.every`; once each."""
    state, steps, every = run.state, run.settings.steps, run.evaluation.every
    due = state.step in (0, steps) or (every > 0 and state.step % every == 0)
    return steps > 0 and due and state.evaluated < state.step


def evaluate_policy(run: Run) -> None:
    """Evaluate the engine's policy on held-out prompts; write the result to evaluations.jsonl."""
    state, settings, clock = run.state, run.evaluation, run.clock()
    label = {0: EvaluationLabel.BEFORE, run.settings.steps: EvaluationLabel.AFTER}.get(
        state.step, EvaluationLabel.DURING
    )
    k = (settings.final_samples_per_prompt if label == EvaluationLabel.AFTER else None) or settings.samples_per_prompt
    with clock.time("evaluate"):
        result = {"step": state.step, "label": label, **run.evaluate(k, run.progress)}
    result["time/evaluate"] = clock.seconds["evaluate"]
    state.evaluated = state.step
    run.folder.evaluation(result)
    run.observer.evaluation(result)
    same = outcomes.sameness(result["verdicts"])
    if label == EvaluationLabel.BEFORE and same and run.algorithm.reward.by == "verdict":
        run.alarm(outcomes.lesson(result["verdicts"], "before training", run.task.name), name=same)


def refresh_reference_if_due(run: Run) -> None:
    """Set the KL reference to the current policy every `kl.refresh_every` gradient steps (R1-Zero: 400)."""
    every = run.algorithm.kl.refresh_every
    if run.reference is not None and every and run.state.reference_age >= every:
        run.reference.copy_weights(run.policy.weights(merged=False))
        run.state.reference_age = 0


def save_rollouts_if_due(run: Run, episodes: list[Episode], batch: Batch) -> None:
    """Write the step's responses token by token, at the first, every n-th and the last step."""
    step = run.state.step + 1
    if rollouts_are_due(step, run.settings.save_rollouts_every, last=step == run.settings.steps):
        run.save_rollouts(f"step_{step:06d}", episodes, batch)
