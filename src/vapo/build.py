"""From a configuration to running objects. The only module that knows all rooms.

Everything cheap is checked before any weights load.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.algo.presets import Gae, LengthAdaptive
from vapo.config import SIZED_BY, Config, Layer, TaskConfig, flatten, read_yaml, resolve
from vapo.environment import environment
from vapo.errors import CheckpointError, ConfigError, DivergedError, ModelError, StoppedError, VerifierBrokenError
from vapo.evals.evaluate import RANKS, EvaluationResult, count, evaluate
from vapo.evals.ranking import last_values
from vapo.evals.samples import SampleFile
from vapo.ground import Ground, close, ground, with_whole_paths
from vapo.models.backbone import checkpoint_gradients
from vapo.models.loading import load_critic, load_policy, value_head
from vapo.models.lora import add_lora
from vapo.models.networks import Critic, Policy, choose_layout
from vapo.models.saving import save_model
from vapo.reports.curves import curves_png
from vapo.reports.page import write_report
from vapo.rollout.torch_engine import TorchEngine
from vapo.tasks.catalog import is_known
from vapo.trainer import checkpoint, snapshot
from vapo.trainer.learner import Learner
from vapo.trainer.loop import train as run_loop
from vapo.trainer.objectives import CriticObjective, Objective, PolicyObjective, RewardModelObjective
from vapo.trainer.observer import Observer
from vapo.trainer.record import LOCK, RunFolder
from vapo.trainer.run import Run
from vapo.trainer.watch import Watchdog
from vapo.types import Progress, Task, stable_hash

TOKENS_AT_ONCE = 16_384
"""Tokens of one forward pass where a critic reads samples."""
LEFTOVERS = (LOCK, "environment.json", ".environment.json.tmp", ".config.yaml.tmp")
"""What a run leaves that was killed before it began."""
TINY = 10_000_000
"""Parameters below which one CPU thread is the fastest."""


def check_folder(path: Path) -> None:
    """Raise ConfigError unless `path` is a new or empty folder that can be written; leaves nothing behind."""
    if path.exists() and (not path.is_dir() or any(p.name not in LEFTOVERS for p in path.iterdir())):
        raise ConfigError(
            f"The run directory {path} is not empty. Choose another --run-dir, or go on with: vapo resume {path}"
        )
    parent = next(p for p in [path, *path.parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"Cannot write to {parent}, where the run directory {path} would be. Choose another --run-dir."
        )


def check_disk(run: Run, path: Path, checkpoints: int) -> None:
    """Raise ConfigError unless so many checkpoints, and the finished models, have room where `path` is or will be."""
    needed = checkpoints * snapshot.size(run) + sum(
        4 * n.model.num_parameters() for n in (run.policy, run.critic) if n is not None
    )
    free = shutil.disk_usage(next(p for p in [path, *path.absolute().parents] if p.exists())).free
    if free < needed:
        raise ConfigError(
            f"The run needs about {needed / 1e9:.1f} GB for checkpoints and models, and {path} has {free / 1e9:.1f} GB "
            "free. Free space, lower checkpoint.keep, or choose another --run-dir."
        )


def build(
    config: Config,
    run_dir: Path,
    observer: Observer,
    *,
    fresh: bool = True,
    task: Task | None = None,
    allow_change: bool = False,
) -> Run:
    """All objects of a run. A fresh one begins its folder once everything has loaded; otherwise the newest
    healthy checkpoint is restored; with settings other than the checkpoint's only if `allow_change`."""
    run = _begun(config, run_dir, observer, task) if fresh else _restored(config, run_dir, observer, task, allow_change)
    if run.critic is not None:
        run.folder.event("critic loaded", origin=run.critic.origin)
        observer.note(f"critic: {run.critic.origin}")
    _warn_about_lambda(run)
    return run


def _begun(config: Config, run_dir: Path, observer: Observer, task: Task | None) -> Run:
    """A new run, its folder begun."""
    check_folder(run_dir)
    config = config if task else with_whole_paths(config)
    run = _assemble(config, None, observer, task)
    with _let_go_on_error(run, run_dir):
        check_disk(run, run_dir, run.saving.keep + 1)
        run.folder = RunFolder(run_dir)
        check_folder(run_dir)  # loading takes a while; somebody else may have been here
        run.folder.write_text("environment.json", json.dumps(environment(), indent=1))
        run.folder.write_text("config.yaml", config.to_yaml())  # last: from here on it is a run
    return run


def _restored(config: Config, run_dir: Path, observer: Observer, task: Task | None, allow_change: bool) -> Run:
    """A run as its newest healthy checkpoint has it, or as it began if there is none."""
    folder = RunFolder(run_dir)
    try:
        saved = checkpoint.newest(folder.checkpoints, observer.alarm)
        damaged = sorted(path.name for path in folder.checkpoints.glob("*.corrupt"))
        if saved is None and damaged:
            raise CheckpointError(
                f"No checkpoint of {run_dir} is healthy ({', '.join(damaged)}). Start a new run elsewhere, or remove "
                f"{folder.checkpoints} to start this one over, logs included."
            )
        changed = snapshot.changes(config.as_dict(), saved) if saved else []
        if changed and not allow_change:
            raise ConfigError(
                f"These settings are not those of {saved}, and they alter results: {'; '.join(changed)}. "
                "Set them back, or mean it: vapo resume --allow-change."
            )
        run = _assemble(config, saved, observer, task)
    except BaseException:
        folder.close()
        raise
    run.folder = folder
    with _let_go_on_error(run, run_dir):
        check_disk(run, run_dir, 1)
        snapshot.restore(run, saved)
        if run.state.step > run.settings.steps:
            raise ConfigError(
                f"{run_dir} has done {run.state.step} steps, so trainer.steps={run.settings.steps} is behind it. "
                f"Set trainer.steps to {run.state.step} or more."
            )
        folder.write_text("config.yaml", config.to_yaml())
        if changed:
            folder.event("settings changed", changes=changed)
            snapshot.save(run)  # under the new settings, so that the next resume need not be told again
            observer.alarm(f"Goes on under other settings: {'; '.join(changed)}")
    observer.note(f"resumed from {saved.name}" if saved else "no checkpoint found: starting over")
    return run


@contextmanager
def _let_go_on_error(run: Run, run_dir: Path) -> Iterator[None]:
    """Close what the run holds if it cannot begin; a disk that refuses becomes words."""
    try:
        yield
    except BaseException as error:
        run.engine.close()
        if hasattr(run, "folder"):
            run.folder.close()
        close(run.task)
        if isinstance(error, OSError) and checkpoint.refused(error):
            raise ConfigError(f"Cannot write to {run_dir}: {error}. Free space, or mend its permissions.") from error
        raise


def _assemble(config: Config, saved: Path | None, observer: Observer, task: Task | None) -> Run:
    """The run's objects without a folder; networks come from `saved` if there is a checkpoint."""
    base = ground(config, task, saved, on_progress=observer.progress)
    try:
        tell(base, observer)
        return _on_ground(config, base, observer)
    except BaseException:
        close(base.task)
        raise


def _on_ground(config: Config, base: Ground, observer: Observer) -> Run:
    """The run's objects on checked ground: networks, learners, engine."""
    sections, algorithm = config.sections, config.algorithm
    settings, optimization = sections.trainer, algorithm.optimization
    torch.manual_seed(sections.seed)
    trust, autocast = sections.model.trust_remote_code, sections.model.dtype == "bfloat16"
    device = best_device()
    model = _moved(load_policy(base.policy_source, trust_remote_code=trust), device)
    set_threads(sections.scale.threads, model)
    # a copy of its own, so that what is sampled from is a version that was handed over, never one half-updated
    sampler = copy.deepcopy(model).requires_grad_(False)
    sampler = _moved(sampler, torch.bfloat16) if autocast else sampler
    policy = Policy(model, choose_layout(model, settings.layout), base.decoding.temperature, autocast)
    reference = replace(policy, model=copy.deepcopy(model).requires_grad_(False)) if algorithm.kl.coef > 0 else None
    if sections.model.policy_lora:
        add_lora(model, sections.model.policy_lora, sections.model.lora_alpha)
    if sections.model.gradient_checkpointing:
        checkpoint_gradients(model)

    def learner(name: str, objective: Objective, lr: float) -> Learner:
        return Learner(
            name,
            objective,
            lr=lr,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            micro_batch_tokens=settings.micro_batch_tokens,
        )

    critic = critic_learner = None
    if isinstance(algorithm.credit, Gae):
        network, origin = load_critic(base.critic_source, trust_remote_code=trust)
        network = _moved(network, device)
        if sections.model.critic_lora:
            add_lora(network, sections.model.critic_lora, sections.model.lora_alpha, keep=value_head(network))
        if sections.model.gradient_checkpointing:
            checkpoint_gradients(network)
        critic = Critic(network, choose_layout(network, settings.layout), autocast, origin)
        at_end = settings.pretraining_at == "end"
        objective = RewardModelObjective(critic) if at_end else CriticObjective(critic, algorithm.credit)
        critic_learner = learner("critic", objective, optimization.critic_lr)

    engine = TorchEngine(sampler, slots=sections.rollout.slots)
    evaluation = sections.evaluation
    evaluation_set = fingerprint(base, evaluation.prompts, evaluation.temperature, evaluation.top_p)

    def evaluate_now(k: int, on_progress: Progress) -> dict[str, Any]:
        result = evaluate_prompts(
            base,
            engine,
            evaluation.prompts,
            k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            seed=sections.seed,
            on_progress=on_progress,
        )
        return {**result.summary(), "set": evaluation_set, **result.tallies()}

    return Run(
        config=config.as_dict(),
        seed=sections.seed,
        algorithm=algorithm,
        settings=settings,
        guards=sections.guards,
        saving=sections.checkpoint,
        evaluation=evaluation,
        decoding=base.decoding,
        task=base.task,
        train_prompts=base.train_prompts,
        heldout_prompts=base.heldout_prompts,
        tokenizer=base.tokenizer,
        policy=policy,
        critic=critic,
        reference=reference,
        policy_learner=learner("policy", PolicyObjective(policy, algorithm), optimization.actor_lr),
        critic_learner=critic_learner,
        engine=engine,
        evaluate=evaluate_now,
        observer=observer,
    )


def fingerprint(base: Ground, num_prompts: int, temperature: float, top_p: float) -> str:
    """A short hash of what a score was measured on; scores with different ones cannot be compared."""
    prompts = [base.heldout_prompts[i] for i in range(min(num_prompts, len(base.heldout_prompts)))]
    how = (base.task.name, base.decoding.max_tokens, temperature, top_p)
    return f"{stable_hash(*how, *(part for p in prompts for part in (p.id, p.text))):016x}"


def evaluate_prompts(
    base: Ground,
    engine: TorchEngine,
    num_prompts: int,
    k: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
    on_progress: Progress,
    kept: SampleFile | None = None,
    critic: Critic | None = None,
    ranks: Sequence[str] = RANKS,
) -> EvaluationResult:
    """avg@k and companions on the first held-out prompts of the task; with a critic, what its ranking adds."""
    chosen = [base.heldout_prompts[i] for i in range(min(num_prompts, len(base.heldout_prompts)))]
    prompts = list({prompt.id: prompt for prompt in chosen}.values())  # a neighbour of one too long may come twice
    episodes = evaluate(
        engine,
        prompts,
        base.task,
        k=k,
        how=replace(base.decoding, temperature=temperature, top_p=top_p),
        decode=lambda ids: str(base.tokenizer.decode(list(ids), skip_special_tokens=True)),
        seed=seed,
        kept=kept,
        on_progress=partial(on_progress, "evaluating"),
    )
    values = None if critic is None else last_values(critic, episodes, tokens_at_once=TOKENS_AT_ONCE)
    return count(episodes, k=k, answer_of=getattr(base.task, "final_answer", None), values=values, ranks=ranks)


def evaluate_model(
    config: Config, num_prompts: int | None, observer: Observer, out: Path | None = None, ranks: Sequence[str] = ()
) -> EvaluationResult:
    """The evaluation that the configuration's model, task and evaluation sections describe.

    Samples are kept in the folder `out`, and taken from there if they are. With `ranks`, model.critic picks among
    the samples.
    """
    sections, evaluation = config.sections, config.sections.evaluation
    k, trust = evaluation.samples_per_prompt, sections.model.trust_remote_code
    base = ground(config, to_train=False, on_progress=observer.progress)
    engine = None
    try:
        tell(base, observer)
        kept = SampleFile(out, _about(config, base)) if out else None
        model = _moved(load_policy(base.policy_source, trust_remote_code=trust), best_device())
        set_threads(sections.scale.threads, model)
        critic = None
        if ranks:
            network, origin = load_critic(base.critic_source, trust_remote_code=trust)
            observer.note(f"critic: {origin}")
            if "value head set to 0" in origin:
                raise ModelError(f"{base.critic_source} is no trained critic. Give the critic/ folder of a run.")
            if "weighted-vote" in ranks and not hasattr(base.task, "final_answer"):
                observer.note(f"{base.task.name} has no short final answers, so there is no vote to weigh")
            network = _moved(network, best_device()).requires_grad_(False)
            critic = Critic(network, choose_layout(network, sections.trainer.layout), origin=origin)
        engine = TorchEngine(model.requires_grad_(False), slots=sections.rollout.slots)
        observer.phase("evaluating", 0, 1)
        result = evaluate_prompts(
            base,
            engine,
            num_prompts or len(base.heldout_prompts),
            k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            seed=sections.seed,
            on_progress=observer.progress,
            kept=kept,
            critic=critic,
            ranks=ranks,
        )
        if result.invalid_ratio > sections.trainer.max_invalid_ratio:
            raise VerifierBrokenError(
                f"The verifier could not judge {result.invalid_ratio:.0%} of the responses; the limit is "
                f"trainer.max_invalid_ratio={sections.trainer.max_invalid_ratio}. With --out, samples.jsonl has the "
                "reasons."
            )
        return result
    finally:
        if engine:
            engine.close()
        close(base.task)


def _about(config: Config, base: Ground) -> dict[str, Any]:
    """What samples that are kept depend on; of anything else they are none."""
    evaluation, folder = config.sections.evaluation, Path(base.policy_source)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    prompts = [base.heldout_prompts[i] for i in range(len(base.heldout_prompts))]
    return {
        "model": base.policy_source,
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "task": base.task.name,
        "task options": {key: str(value) for key, value in config.sections.task.options.items()},
        "prompts and gold answers": f"{stable_hash(*((p.id, p.token_ids, p.answer) for p in prompts)):016x}",
        "samples": evaluation.samples_per_prompt,
        "temperature": evaluation.temperature,
        "top-p": evaluation.top_p,
        "max_response_tokens": base.decoding.max_tokens,
        "seed": config.sections.seed,
    }


def tell(base: Ground, observer: Observer) -> None:
    """What the task has to say about its problems, and which prompts were left out."""
    for note in getattr(base.task, "notes", []):
        observer.note(note)
    for name, prompts in (("training", base.train_prompts), ("held-out", base.heldout_prompts)):
        if prompts.too_long:
            observer.note(f"{prompts.too_long} {name} prompts are too long and left out")


def default_run_dir(config: Config) -> Path:
    """runs/<task>-<method>-seed<n>, with a number behind it if that is taken; never outside of runs/."""
    method = "-without-".join([config.preset, *config.without])
    stem = re.sub(r"[^\w.-]+", "-", f"{config.sections.task.name}-{method}-seed{config.sections.seed}").lstrip(".-")
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def with_task(config: Config, task: Task | None) -> Config:
    """The configuration under the name of the task that is really used."""
    if task is None:
        return config
    sections = config.sections.model_copy(update={"task": TaskConfig(name=task.name)})
    return replace(config, sections=sections, origins={**config.origins, "task.name": "task object"})


def train(config: Config, run_dir: Path, observer: Observer, task: Task | None = None) -> Run:
    """Build and carry out a new run; ends with policy/, critic/, report.html and curves.png in its folder."""
    return finish(build(with_task(config, task), run_dir, observer, task=task))


def finish(run: Run, *, report: bool = True) -> Run:
    """Train to the end and write what the user takes away: models, and the report unless told otherwise."""
    guards, path = run.guards, run.folder.path
    try:
        if guards.watchdog:
            run.watch = Watchdog(path, factor=guards.stuck_factor, floor_s=guards.stuck_floor_s)
        run_loop(run)
        run.watch.beat("writing the models and the report")
        _publish(run.policy.model, run.tokenizer, path / "policy")
        if run.critic is not None:
            _publish(run.critic.model, run.tokenizer, path / "critic")
        if report:
            curves_png(path, path / "curves.png")
            write_report(path)
    except DivergedError as error:
        run.folder.event("diverged", message=str(error))  # a comparison counts it
        raise
    except (OSError, SafetensorError) as error:
        if not checkpoint.refused(error):
            raise
        raise StoppedError(
            f"Cannot write to {path}: {error}. Free space or mend its permissions, then: vapo resume {path}"
        ) from error
    finally:
        run.watch.close()
        run.engine.close()
        run.folder.close()
        close(run.task)
    return run


def _publish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A finished model under its name, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(model, tokenizer, temporary)
    checkpoint.remove(folder)
    temporary.rename(folder)


def resume(
    run_dir: Path,
    observer: Observer,
    task: Task | None = None,
    *,
    changes: Sequence[Layer] = (),
    allow_change: bool = False,
) -> Run:
    """A run as it stood at its newest checkpoint (or at its start, if it has none), ready for `finish`.

    `changes` are laid over its settings. Raises ConfigError if the folder is no run, a run on another task than the one
    given, or if settings that alter results have changed without `allow_change`.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.yaml. Check the path.")
    config = load_run_config(run_dir, changes)
    name = config.sections.task.name
    if task is None and not is_known(name):
        raise ConfigError(
            f"{run_dir} was trained on a task of your own, {name!r}. "
            "Resume it from Python: vapo.resume(run_dir, task=...)."
        )
    if task is not None and task.name != name:
        raise ConfigError(f"{run_dir} was trained on the task {name!r}, not on {task.name!r}. Give it that one.")
    return build(config, run_dir, observer, fresh=False, task=task, allow_change=allow_change)


def load_run_config(run_dir: Path, changes: Sequence[Layer] = ()) -> Config:
    """The configuration a run was started with, and what is laid over it."""
    path = run_dir / "config.yaml"
    for layer in changes:
        for key, _ in flatten(layer.values):
            if key in SIZED_BY:
                raise ConfigError(f"{key} only sizes a new run's method. To change this run's: {SIZED_BY[key]}.")
    return resolve([Layer("run", read_yaml(path)), *changes])


def set_threads(wanted: int | None, model: PreTrainedModel) -> None:
    """CPU threads for the model: the products of a tiny one are too small to share, and sharing costs more."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    most = int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1
    torch.set_num_threads(wanted or (1 if model.num_parameters() < TINY else most))


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _moved(model: PreTrainedModel, to: torch.device | torch.dtype) -> PreTrainedModel:
    # transformers hides the plain signature of `to` behind a decorator
    return cast(PreTrainedModel, torch.nn.Module.to(model, to))


def _warn_about_lambda(run: Run) -> None:
    """The paper's α belongs to thousands of tokens; on short responses it silently becomes one-step TD."""
    credit = run.algorithm.credit
    if isinstance(credit, Gae) and isinstance(credit.policy_lambda, LengthAdaptive):
        longest = run.decoding.max_tokens
        lam = max(0.0, 1 - 1 / (credit.policy_lambda.alpha * longest))
        if lam < 0.95:
            run.observer.alarm(
                f"alpha={credit.policy_lambda.alpha} gives lambda={lam:.2f} even at the length limit of {longest} "
                "tokens: credit will hardly reach past the last few. Raise algorithm.alpha until it is 0.98 or more."
            )
