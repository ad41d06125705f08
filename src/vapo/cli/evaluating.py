"""`vapo eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vapo.cli.options import DebugOption, JsonOption, SetOption, view_for
from vapo.errors import ConfigError
from vapo.json_text import flatten, json_text
from vapo.models.model_source import check_trained


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run directory, one of its checkpoints, a model folder, a hub id, a .gguf file, or `builtin`.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            help="The task whose held-out prompts are used (see `vapo tasks`), or a .yaml file that sets it up. "
            "Default: the run's own; the maze for `builtin`."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--samples", help="Samples per prompt, 1 or more.", min=1)] = 32,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.", min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling in (0, 1]; 0.7 is the paper's.")] = 0.7,
    prompts: Annotated[int | None, typer.Option(help="Use the first N prompts. Default: all.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0)] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Problems for a data task (math, gsm8k, ...): .jsonl, .json, .csv, .parquet, or a hub id."),
    ] = None,
    critic: Annotated[
        str | None, typer.Option(help="A trained critic that picks among the samples (a run's critic/ folder).")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(help="How the critic picks: best-of-n, weighted-vote, or both with a comma. Default: both."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the samples; give it again to continue where it stopped.")
    ] = None,
    set_: SetOption = None,
    per_problem: Annotated[bool, typer.Option("--per-problem", help="Also list every prompt.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """avg@k, pass@k and maj@k on held-out prompts, with 95 % bootstrap intervals over prompts.

    A run brings its task with the task's options, prompt format and response limit. The other defaults are the
    paper's protocol: 32 samples at temperature 1.0 and top-p 0.7. Training evaluates the plain policy (top-p 1.0),
    which scores lower. With --critic it also says what the critic's choice among the samples adds to one sample and
    to the majority.
    """
    from vapo.evals.statistics import RANKS
    from vapo.reports.tables import evaluation_table
    from vapo.session.evaluated_run import evaluation_config, find_model
    from vapo.session.layers import set_layer
    from vapo.session.path_checks import check_paths
    from vapo.session.unused import option_instead

    ranks = [name.strip() for name in rank.split(",")] if rank else list(RANKS) if critic else []
    if rank and not critic:
        raise ConfigError("--rank needs the critic that is to pick: --critic runs/NAME/critic.")
    if unknown := [name for name in ranks if name not in RANKS]:
        raise ConfigError(f"--rank takes {' and '.join(RANKS)}, got {unknown[0]!r}.")
    if critic is not None:
        check_trained(critic)
    changes = [set_layer(text) for text in set_ or []]
    for layer in changes:
        if why := option_instead(dict(flatten(layer.values))):
            raise ConfigError(f"{layer.place} {why}")
    found = find_model(model)
    settings = {
        "seed": seed,
        "model": {"policy": found.folder, "critic": critic},
        "task": {} if data is None else {"eval_data": data},
        "evaluation": {"samples_per_prompt": k, "temperature": temperature, "top_p": top_p},
    }
    config = evaluation_config(found, task, settings, changes)
    check_paths(config, to_train=False)

    from vapo.session.evaluation import evaluate_model  # imports torch, so only after what is cheap to check

    with view_for(as_json) as view:
        for note in found.notes:
            view.note(note)
        result = evaluate_model(config, prompts, view, out=out, ranks=ranks)
    summary = {"model": found.folder, "task": config.sections.task.name, "temperature": temperature, "top_p": top_p}
    summary |= result.summary()
    if as_json:
        print(json_text({**summary, "per_prompt": result.per_prompt}))
        return
    console = Console()
    console.print(evaluation_table(summary))
    if top_p != 1.0:
        console.print(f"top-p {top_p:g}; training evaluates the plain policy (--top-p 1.0).", style="dim")
    if per_problem:
        table = Table("prompt", "right", "of", "mean length", title="Per prompt")
        for row in result.per_prompt:
            table.add_row(escape(row["prompt_id"]), str(row["right"]), str(row["valid"]), f"{row['mean_length']:.0f}")
        console.print(table)
