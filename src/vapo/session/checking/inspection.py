"""The checks of `vapo check`, in the order in which a run would meet their subjects."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from vapo.errors import ConfigError, VapoError, counted
from vapo.hub import unreachable
from vapo.models.pretrained import count_parameters
from vapo.reports.formatting import duration, short_count
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.rollout.vllm_environment import check_environment
from vapo.session.build import lambda_warning
from vapo.session.checking.finding import Finding, Outcome, error, of_error, ok, skipped, warning
from vapo.session.checking.known_answers import check_answers
from vapo.session.checking.short_run import NAME as STEPS
from vapo.session.checking.short_run import check_steps, short_config
from vapo.session.config import Config
from vapo.session.inputs import Inputs, close_task, read_inputs, with_whole_paths
from vapo.session.path_checks import check_policy, check_task_files
from vapo.session.planning.hardware import Cluster, this_machine
from vapo.session.planning.plan_words import advice_words, gb, verdict_words
from vapo.session.planning.planned import RunPlan, plan_run
from vapo.session.planning.published import model_config, recipe_parameters
from vapo.session.scaling import placement_of, shares_device
from vapo.session.sizing import Fit, fitted, rate_warnings
from vapo.tasks.catalog import DATA_TASKS
from vapo.tasks.full_task import Caution
from vapo.types import Prompt

LATER = ("data", "prompts", "verifier", STEPS)
"""Checks that need data and tokenizer."""
LONGEST_S = 600.0
"""Seconds that the two steps may take by the plan; else they are left out."""
SHORT_STEPS = 4
"""Value pretraining, two steps and the evaluations are counted as so many steps."""
SHOWN = 1500
"""Characters of the first prompt that are shown, at most."""
COMPARED = 5000
"""Training prompts that are looked for among the held-out ones, at most."""


@dataclass
class Inspection:
    """The checks of one configuration. Iterate: each finding comes as soon as it is known."""

    config: Config
    offline: bool = False
    cluster: Cluster | None = None
    """Where it is to run; None is this machine."""
    run_dir: Path = Path("runs")
    steps: bool = True
    """Whether to take the two steps."""
    _here: RunPlan | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Finding]:
        yield from self._settings()
        yield from self._software()
        try:
            check_task_files(self.config)
        except VapoError as problem:
            yield from self._without_task(problem)
            return
        model = list(self._model())
        yield from model
        if any(finding.outcome is Outcome.ERROR for finding in model):
            yield from (skipped(check, "the model cannot be read") for check in ("memory", "disk", *LATER))
            return
        yield from self._machines()
        if why := self._needs_hub():
            yield from self._memory()
            yield from (skipped(check, why) for check in LATER)
            return
        yield from self._with_inputs()

    def _without_task(self, problem: VapoError) -> Iterator[Finding]:
        """The checks that are left where the task, an option of it or a file that it names is not there."""
        why = "the task cannot be read"
        if self.config.sections.model.policy == "builtin":  # the task decides which model that is
            yield from (skipped(check, why) for check in ("model", "memory", "disk"))
        else:
            model = list(self._model())
            yield from model
            if not any(finding.outcome is Outcome.ERROR for finding in model):
                yield from self._machines()
                yield from self._memory()
        yield of_error("data", problem)
        yield from (skipped(check, why) for check in LATER if check != "data")

    def _settings(self) -> Iterator[Finding]:
        yield ok("settings", self.config.label)
        for note in self.config.notes:
            yield warning("settings", note)

    def _software(self) -> Iterator[Finding]:
        engine, model = self.config.sections.rollout.engine, self.config.sections.model
        found = {name: _version(name) for name in ("torch", "transformers")}
        words = ", ".join([f"Python {sys.version.split()[0]}", *(f"{name} {v}" for name, v in found.items())])
        yield ok("software", words)
        if isinstance(engine, VllmEngineSettings):
            try:
                notes = check_environment(engine)
                yield warning("software", notes[0]) if notes else ok("software", "vLLM is there")
            except ConfigError as problem:
                yield self._missing(problem)
        if (model.policy_lora or model.critic_lora) and find_spec("peft") is None:
            yield error("software", "adapters need peft, which is not installed", "pip install 'vapo[lora]'")
        if self.config.sections.scale.backend == "ray" and find_spec("ray") is None:
            yield self._missing(ConfigError("scale.backend=ray needs Ray. Install it: pip install 'vapo[ray]'"))

    def _missing(self, problem: ConfigError) -> Finding:
        """What is not installed here: an error where the run begins here, else a warning."""
        finding = of_error("software", problem)
        return warning(finding.check, f"here: {finding.found}", finding.fix) if self.offline else finding

    def _model(self) -> Iterator[Finding]:
        model = self.config.sections.model
        try:
            if model.policy == "builtin":
                check_policy(self.config)
                yield ok("model", "the base model that ships for the task")
                return
            found, origin = model_config(model.policy, offline=self.offline, trust_remote_code=model.trust_remote_code)
        except VapoError as problem:
            yield of_error("model", problem)
            return
        yield ok("model", f"{type(found).__name__} of {short_count(count_parameters(found))} parameters, from {origin}")

    def _memory(self, inputs: Inputs | None = None) -> Iterator[Finding]:
        asked = self.cluster
        scale = self.config.sections.scale
        if asked is None and scale.backend == "ray" and scale.gpus_per_node:
            yield skipped("memory", "say for which GPUs: --cluster 16x8xH100")
            return
        try:
            plan = plan_run(self.config, asked or this_machine(), offline=self.offline, **lengths_of(inputs))
        except VapoError as problem:
            yield of_error("memory", problem)
            return
        self._here = plan if asked is None else None
        words = f"{plan.cluster.name}: {verdict_words(plan)}"
        if plan.fits:
            yield ok("memory", words)
        else:
            yield error("memory", words, " ".join(advice_words(plan)))
        yield ok("time", f"{plan.cluster.name}: at least {duration(plan.step_seconds)} a step, by operations and bytes")
        yield self._disk(plan.disk, here=asked is None)

    def _machines(self) -> Iterator[Finding]:
        """Placement, machines, GPUs and their software, where Ray runs them."""
        scale = self.config.sections.scale
        try:
            shares_device(self.config)
            if scale.backend != "ray":
                return
            placement_of(self.config)
        except VapoError as problem:
            yield of_error("placement", problem)
            return
        yield ok(
            "placement", f"{scale.training_ranks} ranks and {counted(scale.rollout_workers, 'engine')} have places"
        )
        if self.offline:
            yield skipped("machines", "--offline asks no cluster")
            return
        from vapo.scale import cluster as ray_cluster  # imports Ray's parts, so only for a run with Ray

        processes = scale.training_ranks + scale.rollout_workers + scale.verifier_workers
        wanted = ray_cluster.Wanted(processes, scale.nodes, scale.gpus_per_node, scale.address, 0)
        try:
            ray_cluster.Cluster(wanted).close()
        except VapoError as problem:
            yield of_error("machines", problem)
        else:
            yield ok("machines", f"the cluster answers: {counted(scale.nodes, 'machine')}, with the same software")

    def _needs_hub(self) -> str:
        """Why data and tokenizer cannot be read: they are on the hub, which is not asked or does not answer."""
        sections = self.config.sections
        task, model = sections.task, sections.model
        options = {**DATA_TASKS[task.name][1], **task.options} if task.name in DATA_TASKS else task.options
        sources = [model.policy, model.critic, options.get("data"), options.get("eval_data")]
        remote = [s for s in sources if isinstance(s, str) and s != "builtin" and not Path(s).exists()]
        if not remote:
            return ""
        if self.offline:
            return f"--offline, and {remote[0]} is on the hub"
        why = unreachable()
        return f"{why}, and {remote[0]} is there" if why else ""

    def _with_inputs(self) -> Iterator[Finding]:
        config = with_whole_paths(self.config)
        try:
            inputs = read_inputs(config)
        except VapoError as problem:
            yield of_error("data", problem)
            return
        try:
            # the sizes that the run would take: the two steps take them, too
            of_recipe = recipe_parameters(config, offline=self.offline)
            limit = inputs.decoding.max_tokens
            config, _ = fitted(config, Fit(inputs.task.name, inputs.parameters, limit, of_recipe))
            yield from self._of_inputs(config, inputs)
            yield from self._memory(inputs)
        finally:
            close_task(inputs.task)
        if self.steps:
            yield from self._steps(config, inputs)

    def _of_inputs(self, config: Config, inputs: Inputs) -> Iterator[Finding]:
        train, heldout = inputs.train_prompts, inputs.heldout_prompts
        yield ok("data", f"{counted(len(train), 'training prompt')}, {len(heldout):,} held out")
        for note in (*inputs.task.notes, *inputs.notes):
            yield warning("data", note) if isinstance(note, Caution) else ok("data", note)
        yield from _of_prompts(inputs)
        yield from check_answers(inputs.task, heldout)
        for message in (lambda_warning(config, inputs.decoding.max_tokens), *rate_warnings(config, inputs.parameters)):
            if message is not None:
                yield warning("sizes", message)

    def _disk(self, needed: int, *, here: bool) -> Finding:
        if not here:
            return ok("disk", f"{gb(needed)} GB for checkpoints and models, on the disk that all machines share")
        parent = next(path for path in [self.run_dir, *self.run_dir.absolute().parents] if path.exists())
        free = shutil.disk_usage(parent).free
        words = f"{gb(needed)} GB for checkpoints and models, {gb(free)} GB free"
        if needed > free:
            return error("disk", words, "Free space, lower checkpoint.keep, or train adapters (model.policy_lora).")
        if needed > free / 2:
            return warning("disk", words, "Lower checkpoint.keep, or choose another disk.")
        return ok("disk", words)

    def _steps(self, config: Config, inputs: Inputs) -> Iterator[Finding]:
        """Two real steps, where this machine can take them."""
        try:
            machine, lengths = this_machine(), lengths_of(inputs)
            here = self._here or plan_run(short_config(config), machine, offline=self.offline, advise=False, **lengths)
        except VapoError as problem:
            yield of_error(STEPS, problem)
            return
        if not here.fits:
            yield skipped(STEPS, f"not on this machine: {verdict_words(here)}")
            return
        sampled, few = here.config.algorithm.sampling.samples, short_config(config).algorithm.sampling.samples
        seconds = SHORT_STEPS * here.step_seconds * few / sampled
        if seconds > LONGEST_S:
            yield skipped(STEPS, f"they would take about {duration(seconds)} on this machine")
            return
        yield from check_steps(config)


def lengths_of(inputs: Inputs | None) -> dict[str, Any]:
    """What a plan takes of the inputs, where there are some."""
    if inputs is None:
        return {}
    return {"prompt_tokens": inputs.train_prompts.longest(), "response_tokens": inputs.decoding.max_tokens}


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of what the tokenizer does not know; None where it knows every text. Some say it in their table only."""
    if tokenizer.unk_token_id is not None:
        return int(tokenizer.unk_token_id)  # type: ignore[arg-type]
    table: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(table, "unk_token", None)
    return tokenizer.get_vocab().get(name) if isinstance(name, str) else None


def _of_prompts(inputs: Inputs) -> Iterator[Finding]:
    """How a prompt is rendered, and whether training prompts are held out as well."""
    tokenizer, train = inputs.tokenizer, inputs.train_prompts
    first = train[0]
    text = _shortened(str(tokenizer.decode(list(first.token_ids))))
    limit = counted(inputs.decoding.max_tokens, "token")
    yield ok(
        "prompts", f"up to {counted(train.longest(), 'token')}, responses up to {limit}; {first.id} reads {text!r}"
    )
    unknown = unknown_id(tokenizer)
    if unknown is not None and any(unknown in train[i].token_ids for i in range(min(64, len(train)))):
        yield warning(
            "prompts",
            "the tokenizer does not know some of their text: it became the unknown token",
            "Take the model's own tokenizer, or mend the prompts.",
        )
    # an environment may hide what its prompts do not say: there, equal texts with other answers are other problems
    hides = inputs.task.environment is not None

    def problem(prompt: Prompt) -> tuple[str, str]:
        return str(prompt.text), repr(prompt.answer) if hides else ""

    held = {problem(inputs.heldout_prompts[i]) for i in range(min(COMPARED, len(inputs.heldout_prompts)))}
    same = 0
    if train is not inputs.heldout_prompts:
        same = sum(problem(train[i]) in held for i in range(min(COMPARED, len(train))))
    if same:
        yield warning(
            "prompts",
            f"{counted(same, 'training prompt')} of the first {min(COMPARED, len(train)):,} "
            f"{'is' if same == 1 else 'are'} also held out",
            "Take them out of one: the evaluation would count what was trained on.",
        )


def _shortened(text: str) -> str:
    """The text, without its middle if it is long."""
    cut = len(text) - SHOWN
    if cut <= 0:
        return text
    return f"{text[: SHOWN // 2]} ... {counted(cut, 'character')} ... {text[-SHOWN // 2 :]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
