"""`vapo fork` and `pretrain-critic`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vapo.cli.closing import without_settings
from vapo.cli.options import DebugOption, JsonOption, SetOption, view_for
from vapo.errors import ConfigError, VapoError, command
from vapo.json_text import json_text
from vapo.session.signals import carry_out

if TYPE_CHECKING:
    from vapo.trainer.run import Run


def fork(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[
        int | None,
        typer.Option(min=1, help="The joint step to go on from; its checkpoint must be kept. Default: the newest."),
    ] = None,
    set_: SetOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the new run. Default: RUN-fork, with a number.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go on from a checkpoint of a run under other settings, as a run of its own: `--set trainer.actor_lr=1e-5`.

    The run that it comes from stays as it is.
    """
    from vapo.algo.sizes import sizes_of
    from vapo.session.forking import checkpoint_of
    from vapo.session.forking import fork as copy_run
    from vapo.session.layers import set_layer
    from vapo.session.run_dirs import check_folder, check_run, load_run_config, refuse_other_task

    run = run.resolve()
    changes = [set_layer(text) for text in set_ or []]
    check_run(run)
    config = load_run_config(run, changes)
    refuse_other_task(run, config)
    name = checkpoint_of(run, step, config.sections.trainer.steps, sizes_of(config.algorithm).pretraining_steps or 0)
    path = run_dir or _free(run)
    check_folder(path)

    from vapo.session import lifecycle  # imports torch, so only after what is cheap to check

    with view_for(as_json) as view:
        restart = partial(lifecycle.resume, path, view)

        def begin() -> Run:
            copy = copy_run(run, name, path)
            try:
                return restart(changes=changes, allow_change=True)
            except BaseException:  # the copy is of no use: the next try begins anew
                copy.remove()
                raise

        carry_out(
            begin,
            lambda run, on_new: lifecycle.finish_through(run, restart, on_new),
        )
    if as_json:
        print(json_text({"run": str(path), "from": str(run), "checkpoint": name}))
    else:
        Console(soft_wrap=True).print(_next(run, path), highlight=False, markup=False)


def _next(run: Path, path: Path) -> str:
    """The command that shows both runs: a comparison, unless they are one method with one seed, or cannot be one."""
    from vapo.study.comparison.compared_runs import read_compared_runs

    try:
        read_compared_runs([run, path])
    except VapoError:
        return f"Read both {command('view', run, path)}"
    return f"Compare   {command('compare', run, path)}"


def pretrain_critic(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE|FILE.yaml]", help="As for `vapo train`. Default: maze."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Rollout steps of value pretraining. Default: the recipe's.")
    ] = None,
    reward_model: Annotated[
        bool, typer.Option("--reward-model", help="Learn the outcome after the last token only: a reward model.")
    ] = False,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw, 0 or more. Default: 0.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for all output; must be new or empty.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fit a critic to a fixed policy, and train no policy: the critic of `vapo train --critic RUN/critic`."""
    from vapo.session.config import resolve
    from vapo.session.layers import Layer, Source, option_layer, set_layer, source_layers
    from vapo.session.path_checks import check_paths
    from vapo.session.run_dirs import check_folder, default_run_dir

    layers = source_layers(source)
    only = {"trainer": {"steps": 0, **({"pretraining_at": "end"} if reward_model else {})}}
    layers.append(Layer(Source.OPTION, "pretrain-critic", only))
    for option, key, value in (("--steps", "trainer.pretraining_steps", steps), ("--seed", "seed", seed)):
        if value is not None:
            layers.append(option_layer(option, key, value))
    config = resolve([*layers, *(set_layer(text) for text in set_ or [])])
    if joint := config.sections.trainer.steps:  # with 0 the settings are refused for a method without a critic
        raise ConfigError(
            f"vapo pretrain-critic trains no policy, and trainer.steps={joint} would train one. Leave trainer.steps "
            "out (--steps is the length of value pretraining), or take `vapo train`."
        )
    path = run_dir or default_run_dir(config)
    check_folder(path)
    check_paths(config)

    from vapo.session import lifecycle  # imports torch, so only after what is cheap to check

    with view_for(as_json) as view:
        restart = partial(lifecycle.resume, path, view)
        carry_out(
            lambda: lifecycle.begin(config, path, view),
            lambda run, on_new: lifecycle.finish_through(run, restart, on_new),
        )
    if as_json:
        print(json_text({"run": str(path), "critic": str(path / "critic")}))
        return
    settings = [part for text in set_ or [] for part in ("--set", text)]
    # a later --set of these would win over what --critic says
    settings = without_settings(settings, ["trainer.steps", "trainer.pretraining_", "model.critic"])
    again = ["train", *([source] if source else []), *settings, "--critic", path / "critic"]
    Console(soft_wrap=True).print(
        f"Critic    {path / 'critic'}\nJudge it  {command('critic', path)}\nUse it    {command(*again)}",
        highlight=False,
        markup=False,
    )


def _free(run: Path) -> Path:
    """RUN-fork, or with the first number behind it that is free."""
    path, number = run.with_name(f"{run.resolve().name}-fork"), 1
    while path.exists():
        number += 1
        path = run.with_name(f"{run.resolve().name}-fork-{number}")
    return path
