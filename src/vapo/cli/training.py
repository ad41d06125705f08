"""`vapo train`, `resume`, `make-base` and `report`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vapo.cli.closing import closing_words
from vapo.cli.options import (
    TRAIN_OPTIONS,
    DebugOption,
    JsonOption,
    ObserverOption,
    SetOption,
    view_for,
    with_own,
)
from vapo.errors import ConfigError, command, counted
from vapo.json_text import json_text
from vapo.session.signals import carry_out

if TYPE_CHECKING:
    from vapo.session.config import Config


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml]",
            help="What to train: a recipe (see `vapo recipes`) or your own file. Default: maze.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="The method: ppo, vc-ppo, grpo, dapo, vapo, vapo2, rloo, orz, sao, bpco, easyppo or justrl2. "
            "Default: the recipe's."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TECHNIQUE",
            help="Take a technique away; repeatable. Its field becomes plain PPO's: value-pretraining, decoupled-gae, "
            "length-adaptive-gae, token-level-loss, clip-higher, positive-lm, group-sampling. Or, for what vapo2 adds, "
            "VAPO's: group-baseline, share-lambda, mean-head.",
        ),
    ] = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw, 0 or more. Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps of joint training. Default: the recipe's.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all output; must be new or empty. Default: runs/<task>-<method>-seed<n>, with -2, "
            "-3, ... behind it if that is there."
        ),
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(help="Start from this saved critic (a run's critic/ folder) and skip value pretraining."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Measure where the time of a step goes, and trace one for Perfetto: a table, and files in "
            "RUN/profile/ (docs/speed.md). The numbers of the run stay the same.",
        ),
    ] = False,
    profile_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many steps --profile measures, 1 or more, after one to warm up and before one to trace. "
            "Implies --profile. Default: 1.",
        ),
    ] = None,
    observer: ObserverOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the resolved settings and their origins, and stop."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a policy, and a critic where the method has one, and show accuracy before and after."""
    from vapo.session.config import resolve
    from vapo.session.layers import Layer, Source, option_layer, set_layer, source_layers
    from vapo.session.path_checks import check_has_values, check_paths
    from vapo.session.run_dirs import check_folder, default_run_dir
    from vapo.tasks.verifiers.functions import check_function
    from vapo.trainer.profiler import check_steps

    layers = source_layers(source)
    options = {"--preset": preset, "--without": without, "--seed": seed, "--steps": steps}
    layers += [
        option_layer(option, TRAIN_OPTIONS[option], value) for option, value in options.items() if value is not None
    ]
    if critic is not None:
        starts_from_it = {"model": {"critic": critic}, "trainer": {"pretraining_steps": 0}}
        layers.append(Layer(Source.OPTION, "--critic", starts_from_it))
    layers += [set_layer(text) for text in set_ or []]
    config = resolve(layers)
    path = run_dir or default_run_dir(config)
    check_folder(path)
    check_paths(config)
    if critic is not None:
        check_has_values(critic)

    if observer is not None:
        check_function(observer, "--observer")
    profiled = profile_steps or int(profile)
    if profiled:
        check_steps(config.sections.trainer.steps, profiled)

    from vapo.session import lifecycle  # imports torch, so only after what is cheap to check

    if dry_run:
        _show_settings(config, as_json)
        return
    with view_for(as_json) as view:
        told = with_own(view, observer)
        begin = partial(lifecycle.begin, config, path, told)
        restart = partial(lifecycle.resume, path, told)
        carry_out(
            lambda: lifecycle.profiled(begin(), profiled, view.show),
            lambda run, on_new: lifecycle.finish_through(run, restart, on_new),
        )
    again = ["train", *([source] if source else [])]
    again += [part for text in set_ or [] for part in ("--set", text)]
    again += [part for option, value in (("--seed", seed), ("--steps", steps)) if value is not None
              for part in (option, str(value))]  # fmt: skip
    closing_words(path, as_json, again)


def _show_settings(config: Config, as_json: bool) -> None:
    """Run all cheap checks; print the settings with their origins, and the resulting method."""
    from vapo.reports.live import NotesOnStderr
    from vapo.session import lifecycle
    from vapo.session.foresight import plan_of
    from vapo.session.inputs import close_task

    config, inputs = lifecycle.prepare(config, NotesOnStderr())
    close_task(inputs.task)
    plan = plan_of(config, inputs)
    if as_json:
        print(
            json_text({**config.as_dict(), "label": config.label, "method": config.effective()["algorithm"]}, indent=1)
        )
    else:
        print(config.to_yaml(), end="")
        print("\n".join(f"# {line}" for line in ["", *config.method_yaml().removeprefix("# ").splitlines()]))
        print(f"#\n# {plan.step_words()}; {plan.size_words()}")


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    set_: SetOption = None,
    allow_change: Annotated[
        bool,
        typer.Option("--allow-change", help="Accept settings that alter what a step does."),
    ] = False,
    observer: ObserverOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Continue a run where it stopped, exactly: same metrics and weights as if it had never stopped.

    `--set trainer.steps=200` makes it longer.
    """
    from vapo.session.layers import set_layer
    from vapo.session.path_checks import check_paths_of_run
    from vapo.session.run_dirs import config_to_resume

    changes = [set_layer(text) for text in set_ or []]
    check_paths_of_run(config_to_resume(run, changes=changes), run)

    from vapo.session import lifecycle  # imports torch, so only after what is cheap to check

    with view_for(as_json) as view:
        restart = partial(lifecycle.resume, run, with_own(view, observer))
        carry_out(
            partial(restart, changes=changes, allow_change=allow_change),
            lambda resumed, on_new: lifecycle.finish_through(resumed, restart, on_new),
        )
    closing_words(run, as_json)


def make_base(
    task: Annotated[str, typer.Argument(help="A built-in task (see `vapo tasks`).")] = "maze",
    out: Annotated[Path, typer.Option(help="New or empty folder for the model.")] = Path("base"),
    seed: Annotated[int, typer.Option(help="Seed of weights and traces; 0 made the shipped one.", min=0)] = 0,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="A task option, like --set side=7; repeatable."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="NAME=VALUE",
            help="Size or training of the base, like --recipe hidden_size=160 --recipe layers=4 (1M parameters) or "
            "--recipe steps=2000 (a weaker base); repeatable.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where it trains: cpu, or cuda for larger models; they give other weights.")
    ] = "cpu",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the base model of a built-in task, from noisy traces and a seed (about 4 minutes on one core)."""
    from vapo.session.layers import set_layer
    from vapo.session.run_dirs import check_output_folder
    from vapo.tasks.registry import make_task

    check_output_folder(out)
    chosen: dict[str, Any] = {}
    for text in options or []:
        chosen |= set_layer(text, example="side=7").values
    replaced: dict[str, Any] = {}
    for text in recipe or []:
        replaced |= set_layer(text, "--recipe", "layers=4").values
    traced = make_task(task, **chosen)

    from vapo.bases.base_model import base_recipe  # imports torch, so only after what is cheap to check
    from vapo.bases.base_model import make_base as make

    with view_for(as_json) as view:
        made = make(
            traced,
            seed,
            out,
            on_progress=lambda phase, done, total, _: view.progress(phase, done, total),
            threads=1,  # another number of threads gives other weights
            recipe=base_recipe(traced, replaced),
            device=device,
        )
    if as_json:
        print(json_text(made))
        return
    measured = made["measured"]
    Console(soft_wrap=True).print(
        f"{made['parameters']:,} parameters in {out}; right on {measured['success']:.1%} of {measured['prompts']} "
        f"held-out prompts x {counted(measured['samples_per_prompt'], 'sample')}, mean length "
        f"{measured['mean_length']:.0f}.\n"
        f"Train on it with: {train_command(task, options or [], out)}",
        markup=False,
    )


def train_command(task: str, options: Sequence[str], policy: Path) -> str:
    """The command that trains a base model on a built-in task with these options (`side=7`), from the recipe of the
    task's name if there is one."""
    from vapo.session.layers import recipes

    words = [task] if task in recipes() else ["--set", f"task.name={task}"]
    for setting in (*(f"task.{option}" for option in options), f"model.policy={policy}"):
        words += ["--set", setting]
    return command("train", *words)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write RUN/report.html again: curves, settings, evaluations, and the rollouts token by token."""
    from vapo.reports.page import write_report

    try:
        page = write_report(run)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {run / 'report.html'}: {error.strerror or error}. Copy the run elsewhere."
        ) from error
    if as_json:
        print(json_text({"run": str(run), "report": str(page)}))
        return
    Console(soft_wrap=True).print(f"Report: {page}", markup=False)
