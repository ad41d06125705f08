"""What `vapo train` and `vapo resume` print at the end: the scores, the files, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vapo.cli.options import TRAIN_OPTIONS
from vapo.errors import ConfigError, command, counted
from vapo.json_text import flatten, json_text

if TYPE_CHECKING:
    from vapo.reports.runfiles import Record, RunFiles
    from vapo.reports.score_change import Direction


def closing_words(path: Path, as_json: bool, again: Sequence[str] = ()) -> None:
    """Print accuracy before and after, the output files, and what to do next; `again` is the command of the run."""
    from vapo.reports.live import best_effort_console
    from vapo.reports.runfiles import read_run
    from vapo.reports.tables import before_after_table

    run = read_run(path)
    critic = (path / "critic").is_dir()
    if as_json:
        shown = [{k: v for k, v in e.items() if k not in ("right", "valid")} for e in run.evaluations]
        print(json_text({"run": str(path), "evaluations": shown}))
        return
    adapter = path / "policy_adapter"
    lines = [
        f"Curves    {path / 'curves.png'}",
        f"Report    {path / 'report.html'}  (tokens coloured by {'value' if critic else 'advantage'})",
        f"Model     {path / 'policy'}  (AutoModelForCausalLM.from_pretrained)",
        *([f"Adapter   {adapter}  (PeftModel.from_pretrained)"] if adapter.is_dir() else []),
        f"Measure   {command('eval', path)}  (32 samples a problem)",
        "",
        *_next(run, again),
    ]
    console = best_effort_console()
    console.print(before_after_table(run.evaluations))
    console.print("\n".join(lines).rstrip(), soft_wrap=True, highlight=False, markup=False)


def _next(run: RunFiles, again: Sequence[str]) -> list[str]:
    """What to do next, by how the run went."""
    from vapo.reports.diagnosis import diagnose

    if lesson := _nothing_to_learn(run):
        return [lesson]
    went = _went(run.evaluations)
    if went == "rose":
        return _other_methods(run, again) if again else []
    faults = [finding for finding in diagnose(run) if finding.weight != "note"]
    lines = []
    if faults:
        names = ", ".join(dict.fromkeys(finding.name for finding in faults))
        lines = [f"Next, see what is wrong ({names}):", f"  {command('doctor', run.path)}"]
    elif went == "fell":
        lines = ["The score fell. Next, look for the reason:", f"  {command('doctor', run.path)}"]
    if went == "not told apart":
        steps = int((run.config.get("trainer") or {}).get("steps") or 0)
        lines += [f"{counted(steps, 'step')} moved the score less than the evaluation can tell. To train longer:"]
        lines += [f"  {_longer(run.path, steps)}"]
    return lines


def _longer(path: Path, steps: int) -> str:
    """The command that trains on after these steps: a run without checkpoints cannot be resumed."""
    from vapo.session.run_dirs import from_its_networks, kept_weights_only

    if kept_weights_only(path):
        return from_its_networks(path)
    return command("resume", path, "--set", f"trainer.steps={2 * steps}")


def _went(evaluations: Sequence[Record]) -> Direction | None:
    """How the held-out score went, as far as the evaluations before and after training tell; None if one is missing."""
    from vapo.reports.score_change import direction
    from vapo.reports.tables import first_and_last

    before, after = first_and_last(list(evaluations))
    return None if before is None or after is None else direction(before, after)


def _other_methods(run: RunFiles, again: Sequence[str]) -> list[str]:
    """The commands that say what the critic was worth."""
    from vapo.session.run_dirs import load_run_config

    critic = (run.path / "critic").is_dir()
    # GRPO has no fields of the critic's credit, and refuses a critic that is given
    others = [([*METHOD, *CRITIC], ["--preset", "grpo"]) if critic else (METHOD, ["--preset", "vapo"])]
    config = load_run_config(run.path)
    if config.algorithm.pretrains and not config.without and not config.changed:
        others.append(
            ([*METHOD, "trainer.pretraining_"], ["--preset", config.preset, "--without", "value-pretraining"])
        )
    words = [[*without_settings(again, dropped), *other] for dropped, other in others]
    lines = [f"  {command(*each)}" for each in words if _resolves(each)]
    return ["Next, see what the critic is worth:", *lines] if lines else []


METHOD = ["algorithm.preset", "algorithm.without"]
CRITIC = ["algorithm.credit", "model.critic", "model.critic_"]


def without_settings(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words of a command without `--set` of these settings and of those below them; a name that ends with _ stands
    for all that begin so."""
    from vapo.session.layers import set_layer

    def dropped(setting: str) -> bool:
        keys = [key for key, _ in flatten(set_layer(setting).values)]  # a mapping names several
        return any(
            key == name or key.startswith(name if name.endswith("_") else f"{name}.") for key in keys for name in names
        )

    kept: list[str] = []
    for word in words:
        if kept[-1:] == ["--set"] and dropped(word):
            kept.pop()
        else:
            kept.append(word)
    return kept


def _resolves(words: Sequence[str]) -> bool:
    """Whether the settings of a `train` command go together: a settings file may be for one method only."""
    from vapo.session.config import resolve
    from vapo.session.layers import option_layer, set_layer, source_layers

    source = words[1] if not words[1].startswith("--") else None
    given = list(words[1 if source is None else 2 :])
    options = list(zip(given[::2], given[1::2], strict=True))
    try:
        layers = source_layers(source)
        for option, value in options:
            if option == "--set":
                layers.append(set_layer(value))
            else:
                layers.append(option_layer(option, TRAIN_OPTIONS[option], [value] if option == "--without" else value))
        resolve(layers)
    except ConfigError:
        return False
    return True


def _nothing_to_learn(run: RunFiles) -> str:
    """Why the run had nothing to learn from, if its outcomes were all equal from the first step on."""
    from vapo.metrics import Phase
    from vapo.reports.runfiles import number
    from vapo.trainer import outcomes

    steps = run.phase(Phase.TRAIN) or run.phase(Phase.PRETRAIN)
    verdicts = Counter[str]()
    for figures in steps:
        verdicts.update(outcomes.tally_of(figures))
    whole = f"in all {len(steps)} steps" if len(steps) > 1 else "in the only step"
    reward = (run.config.get("algorithm") or {}).get("reward") or {}
    if reward.get("by") == "score":
        equal = steps and all(number(figures.get("reward_std")) <= outcomes.EQUAL for figures in steps)
        mean = number(steps[-1].get("reward")) if steps else 0.0
        return outcomes.lesson_of_scores(outcomes.EQUAL_SCORES, verdicts, whole, mean) if equal else ""
    task = (run.config.get("task") or {}).get("name", "")
    return outcomes.lesson(verdicts, whole, task) if outcomes.sameness(verdicts) else ""
