"""From settings and inputs to a run's objects: networks, learners, engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vapo.algo.method import Gae, LengthAdaptive
from vapo.models.matrix_rate import matrix_rate
from vapo.models.placing import best_device, set_threads, split_threads, total_memory
from vapo.rollout.device_turn_engine import DeviceTurnEngine
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.engines import make_engine, sampler_of
from vapo.rollout.vllm_engine import LOG, agreed_gap
from vapo.rollout.weight_exchange import outline
from vapo.scale.cluster import Cluster
from vapo.session.config import Config
from vapo.session.evaluation import evaluate_heldout, fingerprint
from vapo.session.inputs import Inputs
from vapo.session.learners import KEPT_SHARE, learner_plan, load_base, load_learners, make_learners
from vapo.session.scaling import (
    shares_device,
    start_cluster,
    start_engines,
    start_ranks,
    start_verifiers,
    threads_of_each,
)
from vapo.trainer.ahead import AheadSource, FixedPolicyAheadSource
from vapo.trainer.network import Network
from vapo.trainer.observer import Observer
from vapo.trainer.run import Run
from vapo.trainer.sources import FixedPolicySource, SynchronousSource
from vapo.trainer.spans import Spans
from vapo.types import Progress


def assemble(config: Config, inputs: Inputs, observer: Observer, run_dir: Path) -> Run:
    """The run's objects, without a folder; `run_dir` is where it will be."""
    shares_device(config)  # raises before anything is loaded
    if config.sections.scale.backend == "local":
        return _assembled(config, inputs, observer, run_dir, None)
    cluster = start_cluster(config, observer)
    try:
        return _assembled(config, inputs, observer, run_dir, cluster)
    except BaseException:
        cluster.close()
        raise


def _assembled(config: Config, inputs: Inputs, observer: Observer, run_dir: Path, cluster: Cluster | None) -> Run:
    sections, algorithm = config.sections, config.algorithm
    settings = sections.trainer
    trust, autocast = sections.model.trust_remote_code, sections.model.half
    plan, spans = learner_plan(config, inputs), Spans(memory=True)
    device = best_device()
    model = load_base(plan, device if cluster is None else torch.device("cpu"))
    set_threads(sections.scale.threads, model)
    guards, engine_settings = sections.guards, sections.rollout.engine
    dtype = torch.bfloat16 if autocast else model.dtype
    if guards.logp_gap_above is None and not settings.max_staleness:  # older weights differ by more than rounding
        guards = replace(guards, logp_gap_above=agreed_gap(engine_settings, dtype))
    parameters = model.num_parameters()
    if cluster is not None:
        model = outline(model)  # the driver needs its structure; ranks and engines load weights of their own
    sampler = sampler_of(engine_settings, model, dtype)

    run: Run | None = None

    def alarm(message: str) -> None:
        observer.alarm(message) if run is None or not hasattr(run, "folder") else run.alarm(message)

    networks: Mapping[str, Network]
    engine: RolloutEngine
    if cluster is None:
        networks = make_learners(plan, model, spans).by_name
        weights = networks["policy"].weights()
        engine = make_engine(
            engine_settings, sampler, weights, log=run_dir / LOG, trust_remote_code=trust, on_alarm=alarm
        )
    else:
        inputs = start_verifiers(config, cluster, inputs, observer)
        threads = threads_of_each(sections.scale, parameters, sections.scale.training_ranks)
        networks = start_ranks(config, cluster, partial(load_learners, plan, threads=threads), spans)
        engine = start_engines(config, cluster, sampler, networks["policy"].weights(), run_dir / LOG)
    if shares_device(config):
        engine = DeviceTurnEngine(engine, networks["policy"].release)
    evaluation = sections.evaluation
    evaluation_set = fingerprint(inputs, evaluation.prompts, evaluation.temperature, evaluation.top_p)

    def evaluate_now(k: int, on_progress: Progress) -> dict[str, Any]:
        result = evaluate_heldout(
            inputs,
            engine,
            evaluation.prompts,
            k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            seed=sections.seed,
            on_progress=on_progress,
        )
        return {**result.summary(), "set": evaluation_set, **result.tallies()}

    run = Run(
        config=config.effective(),
        seed=sections.seed,
        algorithm=algorithm,
        settings=settings,
        guards=guards,
        saving=sections.checkpoint,
        evaluation=evaluation,
        decoding=inputs.decoding,
        task=inputs.task,
        turns=inputs.turns,
        train_prompts=inputs.train_prompts,
        heldout_prompts=inputs.heldout_prompts,
        tokenizer=inputs.tokenizer,
        policy=networks["policy"],
        critic=networks.get("critic"),
        reference=networks.get("reference"),
        engine=engine,
        evaluate=evaluate_now,
        observer=observer,
        spans=spans,
        matrix_rate=matrix_rate(device, torch.bfloat16 if autocast else torch.float32, torch.get_num_threads()),
    )
    if cluster is not None:
        run.matrix_rate *= sections.scale.training_ranks
        run.closing.append(cluster.close)
        cluster.restarts.on_alarm = alarm
    run.feature_bytes = int(KEPT_SHARE * total_memory())
    if settings.max_staleness:
        threads = split_threads()
        run.source = AheadSource(run, threads=threads)
        run.pretraining_source = FixedPolicyAheadSource(run, threads=threads)
    else:
        run.source, run.pretraining_source = SynchronousSource(run), FixedPolicySource(run)
    return run


def lambda_warning(config: Config, longest: int) -> str | None:
    """The warning where responses of `longest` tokens get a small λ: the paper's α is meant for thousands of tokens."""
    credit = config.algorithm.credit
    rule = credit.policy_lambda if isinstance(credit, Gae) else None
    if not isinstance(rule, LengthAdaptive):
        return None
    lam = max(0.0, 1 - 1 / (rule.alpha * longest))
    if lam >= 0.95:
        return None
    return (
        f"alpha={rule.alpha} gives lambda={lam:.2f} even at the length limit of {longest} tokens: the share "
        f"k={lam**longest:.0e} of the outcome reaches the first token. Raise algorithm.alpha (0.5 is k=0.14, 1.5 is "
        "k=0.51 at every length), or set algorithm.k=0.5 in its place."
    )
