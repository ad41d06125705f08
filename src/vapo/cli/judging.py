"""`vapo critic`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vapo.cli.options import DebugOption, JsonOption, SetOption, view_for
from vapo.errors import ConfigError, StoppedError, command
from vapo.json_text import flatten, json_text
from vapo.models.model_source import check_trained
from vapo.session.judge_options import FOLDER, PROMPTS, JudgeOptions, parse_fractions
from vapo.session.signals import InterruptedRunError, TerminatedError

if TYPE_CHECKING:
    from vapo.session.layers import Layer


def critic(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run directory or one of its checkpoints, with its policy and critic."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="In place of RUN: the policy, a model folder, a hub id, a .gguf file, or `builtin`."),
    ] = None,
    critic_: Annotated[
        str | None,
        typer.Option("--critic", help="The critic's folder. Default: the run's own; without one, the ceiling alone."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task whose held-out prompts are used (see `vapo tasks`), or a .yaml file that sets it up. "
            "Default: the run's own; the maze for `builtin`."
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(help=f"Use the first N held-out prompts. More narrow the intervals. Default: {PROMPTS}, or all."),
    ] = None,
    responses: Annotated[
        int | None,
        typer.Option(
            "-g",
            "--responses",
            help="Responses to each prompt, 2 or more; each is cut at every position. Default: 4, or as many as the "
            "group of a residual critic had.",
        ),
    ] = None,
    continuations: Annotated[
        int,
        typer.Option(
            "-k",
            "--continuations",
            help="Continuations of each prefix, 2 or more. Their share of right ones is the Monte-Carlo value; all "
            "numbers are corrected for the noise of few.",
        ),
    ] = 8,
    at: Annotated[
        str, typer.Option(help="Where responses are cut, as fractions of their length in [0, 1); 0 is the prompt.")
    ] = "0,0.25,0.5,0.75,0.95",
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0)] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Problems for a data task (math, gsm8k, ...): .jsonl, .json, .csv, .parquet, or a hub id."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of continuations, results.json, picture and page; give it again to continue where it "
            "stopped. Default: critic_judgement/ in the run."
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Judge the run along training: at its start, at each kept checkpoint whose step is a multiple of N, "
            "and at its end (1: all that are kept). checkpoint.every and checkpoint.keep say which a run keeps.",
        ),
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Is a critic worth it on this task, and is this one any good? Its values against Monte-Carlo values.

    Responses to held-out prompts are cut at several positions, and each prefix is continued several times: the share of
    right continuations estimates the true value of that state. The share of the outcomes' variance that true values
    explain is the ceiling: what the text so far can tell. The critic's explained variance, bias, error, calibration and
    ranking stand beside it. A run without a critic (GRPO, DAPO) gets the ceiling: what a critic could add.

    The same command resumes where it stopped. Continuations belong to the policy, so another --critic is judged on the
    same ones. With --every the ceiling and the critic's share of it are drawn over the steps of training.
    """
    options = JudgeOptions(prompts, responses, continuations, parse_fractions(at))
    if (model is None) == (policy is None):
        raise ConfigError("vapo critic takes a run directory, or --policy FOLDER in its place: give one of both.")
    if model is not None and not Path(model).is_dir():
        raise ConfigError(f"There is no run directory {model}. Check the path, or name a policy with --policy.")
    if every is not None and (model is None or critic_ is not None):
        raise ConfigError(
            "--every judges the checkpoints of a run, each with its own critic: give a run and no others."
        )
    if critic_ is not None:
        check_trained(critic_)
    from vapo.session.layers import set_layer
    from vapo.session.unused import JUDGEMENT_OPTIONS, option_instead

    changes = [set_layer(text) for text in set_ or []]
    for layer in changes:
        if why := option_instead(dict(flatten(layer.values)), JUDGEMENT_OPTIONS):
            raise ConfigError(f"{layer.place} {why}")
    from vapo.reports.critic_files import PAGE, PICTURE, RESULTS
    from vapo.reports.critic_tables import judgement_tables
    from vapo.session.judged_critic import judge_models, judged_models

    settings = {"seed": seed, "task": {} if data is None else {"eval_data": data}}
    if every is not None and model is not None:
        _judge_training(Path(model), every, options, task, settings, changes, out, as_json)
        return
    models = judged_models(model, policy, critic_, task, settings, changes, out)
    with naming_the_command(models.out), view_for(as_json) as view:
        for note in models.policy.notes:
            view.note(note)
        _, results = judge_models(models, options, view)
    if as_json:
        print(json_text(results))
        return
    console = Console()
    for table in judgement_tables(results):
        console.print(table)
    console.print(results["conclusion"], style="bold", markup=False)
    Console(soft_wrap=True).print(
        f"\nPage      {models.out / PAGE}\nPicture   {models.out / PICTURE}\nNumbers   {models.out / RESULTS}",
        markup=False,
    )


def _judge_training(
    run: Path,
    every: int,
    options: JudgeOptions,
    task: str | None,
    settings: dict[str, Any],
    changes: list[Layer],
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge the checkpoints of a run; print their table and where the files are."""
    from vapo.reports.training_files import PAGE, PICTURE, TRAINING, training_table
    from vapo.session.judged_training import judge_training

    folder = out or run / FOLDER
    with naming_the_command(folder), view_for(as_json) as view:
        course = judge_training(run, every, options, view, task=task, settings=settings, changes=changes, out=folder)
    if as_json:
        print(json_text(course))
        return
    console = Console()
    console.print(training_table(course))
    console.print(course["conclusion"], style="bold", markup=False)
    Console(soft_wrap=True).print(
        f"\nPage      {folder / PAGE}\nPicture   {folder / PICTURE}\nNumbers   {folder / TRAINING}",
        markup=False,
    )


@contextmanager
def naming_the_command(folder: Path) -> Iterator[None]:
    """Within: a stop by a signal says where finished prompts are kept, and how to go on."""
    again = f"Stopped; finished prompts are kept in {folder}. Go on with: {command(*sys.argv[1:])}"
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(again) from None
    except TerminatedError:
        raise StoppedError(again) from None
