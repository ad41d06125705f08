"""The command line: parse, build, call. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vapo.errors import ConfigError, VapoError
from vapo.orderly import InterruptedRunError, carry_out, main_exit

if TYPE_CHECKING:
    from vapo.config import Layer
    from vapo.study.study import Study

app = typer.Typer(
    help="Reinforcement learning with a critic for reasoning language models: VAPO, PPO, VC-PPO, GRPO, DAPO.\n\n"
    "Start with [bold]vapo train[/bold]: it learns on a laptop in minutes, without a download.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, like --set trainer.actor_lr=1e-4; repeatable."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


@app.command()
def train(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml]",
            help="What to train: a recipe (see `vapo recipes`) or your own file. Default: maze.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The method: ppo, vc-ppo, grpo, dapo or vapo. Default: the recipe's.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TECHNIQUE",
            help="Put one of VAPO's seven techniques back to plain PPO; repeatable: value-pretraining, decoupled-gae, "
            "length-adaptive-gae, token-level-loss, clip-higher, positive-lm, group-sampling.",
        ),
    ] = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw, 0 or more. Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps of joint training. Default: the recipe's.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where everything is written; must be new or empty. Default: runs/<task>-<method>-seed<n>."),
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(help="Start from this saved critic (a run's critic/ folder) and skip value pretraining."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the resolved settings and their origins, and stop."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a policy, and a critic where the method has one, and show accuracy before and after."""
    from vapo import build
    from vapo.config import Layer, resolve, set_layer, source_layers

    layers = source_layers(source)
    options: list[tuple[str, str, Any]] = [
        ("--preset", "algorithm.preset", preset),
        ("--without", "algorithm.without", without),
        ("--seed", "seed", seed),
        ("--steps", "trainer.steps", steps),
    ]
    layers += [_layer(key, value, option) for option, key, value in options if value is not None]
    if critic is not None:
        layers.append(Layer("--critic", {"model": {"critic": critic}, "trainer": {"pretraining_steps": 0}}))
    layers += [set_layer(text) for text in set_ or []]
    config = resolve(layers)
    if critic is not None and config.algorithm.credit.kind != "gae":
        raise ConfigError(f"--critic has no use with the preset {config.preset}, which has no critic. Leave it out.")
    path = run_dir or build.default_run_dir(config)
    if dry_run:
        build.close(build.ground(config).task)
        build.check_folder(path)
        print(json.dumps(config.as_dict(), indent=1) if as_json else config.to_yaml(), end="")
        return
    with _view(as_json) as view:
        view.note(f"run directory: {path}")
        carry_out(lambda: build.build(config, path, view), build.finish)
    _closing_words(path, as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    set_: SetOption = None,
    allow_change: Annotated[
        bool,
        typer.Option("--allow-change", help="Accept settings that alter what a step does."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go on where a run stopped, exactly: same metrics, same weights as if it had never stopped.

    `--set trainer.steps=200` makes it longer.
    """
    from vapo import build
    from vapo.config import set_layer

    changes = [set_layer(text) for text in set_ or []]
    with _view(as_json) as view:
        carry_out(lambda: build.resume(run, view, changes=changes, allow_change=allow_change), build.finish)
    _closing_words(run, as_json)


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A run's policy/ folder, a checkpoint's, a hub id, a .gguf file, or `builtin`."),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="The task whose held-out prompts are used (see `vapo tasks`), or a .yaml file that sets it up: yours, "
            "or a run's config.yaml."
        ),
    ] = "maze",
    k: Annotated[int, typer.Option("-k", "--samples", help="Samples per prompt, 1 or more.", min=1)] = 32,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.", min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling in (0, 1]; 0.7 is the paper's.")] = 0.7,
    prompts: Annotated[int | None, typer.Option(help="Use the first so many prompts. Default: all.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0)] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Problems for a data task (math, gsm8k, aime24, ...): .jsonl, .json, .parquet, or a hub id."),
    ] = None,
    critic: Annotated[
        str | None, typer.Option(help="A trained critic that picks among the samples (a run's critic/ folder).")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(help="How the critic picks: best-of-n, weighted-vote, or both with a comma. Default: both."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the samples; give it again to go on where it stopped.")
    ] = None,
    set_: SetOption = None,
    per_problem: Annotated[bool, typer.Option("--per-problem", help="Also list every prompt.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """avg@k, pass@k and maj@k on held-out prompts, with 95 % bootstrap intervals over prompts.

    The defaults are the paper's protocol: 32 samples at temperature 1.0 and top-p 0.7. Training evaluates the
    plain policy (top-p 1.0), which scores lower. With --critic it also says what the critic's choice among the
    samples adds to one sample and to the majority.
    """
    from vapo import build
    from vapo.config import Layer, resolve, set_layer, source_layers
    from vapo.evals.evaluate import RANKS
    from vapo.reports.tables import evaluation_table

    ranks = [name.strip() for name in rank.split(",")] if rank else list(RANKS) if critic else []
    if rank and not critic:
        raise ConfigError("--rank needs the critic that is to pick: --critic runs/NAME/critic.")
    if unknown := [name for name in ranks if name not in RANKS]:
        raise ConfigError(f"--rank takes {' and '.join(RANKS)}, got {unknown[0]!r}.")
    in_file = task.endswith((".yaml", ".yml"))
    settings = {
        "seed": seed,
        "model": {"policy": model, "critic": critic},
        "task": {**({} if in_file else {"name": task}), **({} if data is None else {"eval_data": data})},
        "evaluation": {"samples_per_prompt": k, "temperature": temperature, "top_p": top_p},
    }
    layers = source_layers(task) if in_file else []
    config = resolve([*layers, Layer("eval", settings), *map(set_layer, set_ or [])])
    with _view(as_json) as view:
        result = build.evaluate_model(config, prompts, view, out=out, ranks=ranks)
    task = config.sections.task.name
    summary = {"model": model, "task": task, "temperature": temperature, "top_p": top_p, **result.summary()}
    if as_json:
        print(json.dumps(_without_nan({**summary, "per_prompt": result.per_prompt})))
        return
    console = Console()
    console.print(evaluation_table(summary))
    if per_problem:
        table = Table("prompt", "right", "of", "mean length", title="Per prompt")
        for row in result.per_prompt:
            table.add_row(row["prompt_id"], str(row["right"]), str(row["valid"]), f"{row['mean_length']:.0f}")
        console.print(table)


@app.command()
def ablate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY|FILE.yaml]",
            help="What to compare: a shipped study (maze, walk, chain, ...) or your own file. Default: maze.",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="smoke: one seed, 3 steps, no tuning; standard: at most 3 seeds on one base; full: all of the study."
        ),
    ] = "standard",
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="Only this row, like ppo or 'vapo without clip-higher'; repeatable. Default: all of the study.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, 1 or more. Default: the budget's.", min=1)] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Runs at the same time. Default: one per core.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; give it again to go on. Default: ablation/RECIPE-BUDGET.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and what is done of them, and stop.")] = (
        False
    ),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the paper's ladder and ablation table: methods x seeds x base models, and one page that compares them.

    Every cell is an ordinary run directory. Give the same command again to go on: finished cells are skipped,
    killed ones resume where they stopped.
    """
    from vapo.study.study import DEFAULT_STUDY, only_methods, read_study, with_seeds, within

    study = with_seeds(only_methods(within(read_study(source), budget), methods or []), seeds)
    name = Path(source or DEFAULT_STUDY).stem + ("-selection" if methods else "")
    folder = out or Path("ablation") / f"{study.recipe}-{budget}"
    if dry_run:
        _list_cells(study, folder, as_json)
        return
    from vapo.reports.study_view import study_view
    from vapo.study.runner import run_study

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # every way to stop lets the running cells save
    with study_view(silent=as_json) as view:
        try:
            results = run_study(
                study,
                folder,
                name=name,
                jobs=jobs,
                say=view.say,
                on_progress=view.progress,
                notes=[f"vapo ablate {source or DEFAULT_STUDY} --budget {budget}, ended {date.today()}"],
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "Stopped; the running cells saved. Give the same command again to go on."
            ) from None
    if as_json:
        print(json.dumps(results))
        return
    from vapo.reports.comparison import terminal_table

    table_console = Console()
    table_console.print(terminal_table(results, table_console.width))
    Console(soft_wrap=True).print(f"\nTable, figure, page and numbers: {folder / name}")


@app.command()
def chaos(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the trials, in about 3 minutes.")] = False,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Trials at the same time. Default: one per core.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of moments, files and bits.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder for chaos.json and chaos.md. Default: they are only shown.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Break small runs in every way we could think of and count those that did not come out bit for bit the same.

    Kills at random moments and at every step of a save, damaged checkpoints, full disks, SIGTERM, numbers that are not
    finite. About 20 minutes on two cores. Exit code 1 if anything failed; such runs are kept.
    """
    import tempfile

    from vapo.build import check_folder
    from vapo.chaos.suite import markdown, run_suite

    if out:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="vapo-chaos-"))
    with _view(as_json) as view:
        result = run_suite(work, quick=quick, jobs=jobs or os.cpu_count() or 1, seed=seed, on_progress=view.progress)
    failed = [detail for row in result["rows"] for detail in row["details"]]
    if out:
        (out / "chaos.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "chaos.md").write_text(markdown(result) + "\n")
    if as_json:
        print(json.dumps(result))
    else:
        console = Console()
        table = Table("fault", *(Column(name, justify="right") for name in ("trials", "failures", "95 % bound")))
        for row in result["rows"]:
            table.add_row(row["fault"], str(row["trials"]), str(row["failures"]), f"{row['bound']:.1%}")
        console.print(table)
        for detail in failed:
            console.print(detail, style="red", markup=False)
    if failed:
        raise VapoError(f"{len(failed)} trials failed; their runs are kept in {work}. The same again: --seed {seed}")
    shutil.rmtree(work, ignore_errors=True)


@app.command()
def recipes(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """What ships: one configuration per result we stand behind."""
    from vapo.config import recipes as shipped

    entries = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in shipped().items()}
    _print_names(entries, as_json, "recipe", "vapo train RECIPE")


@app.command()
def tasks(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """What can be trained on, with an example of each."""
    from vapo.tasks.catalog import DATA_TASKS, installed
    from vapo.tasks.gym import dataset_names
    from vapo.tasks.registry import BUILTIN, make_task

    console = Console()
    found: list[dict[str, Any]] = []
    for name in BUILTIN:
        task = make_task(name)
        prompt, response = task.example()
        found.append(
            {"task": name, "about": task.description, "train": len(task.train), "heldout": len(task.heldout),
             "prompt": prompt.text, "right response": response}
        )  # fmt: skip
    data = [{"task": name, "about": about} for name, (about, _) in DATA_TASKS.items()]
    plugins = [{"task": name, "about": f"installed, from {where}"} for name, where in installed().items()]
    gyms = dataset_names()
    if as_json:
        print(json.dumps([*found, *data, *plugins, *({"task": name} for name in gyms)]))
        return
    for entry in found:
        console.print(f"[bold]{entry['task']}[/bold]  {escape(entry['about'])}")
        console.print(f"  {entry['train']:,} training prompts, {entry['heldout']:,} held out")
        console.print(f"  prompt    [cyan]{escape(str(entry['prompt']))}[/cyan]")
        console.print(f"  response  {escape(entry['right response'])}\n")
    for entry in [*data, *plugins]:
        console.print(f"[bold]{entry['task']}[/bold]  {escape(entry['about'])}")
    if gyms:
        console.print(f"\n[bold]{len(gyms)} of reasoning-gym[/bold]  {escape(', '.join(gyms))}")
    else:
        console.print("\n[bold]reasoning-gym/...[/bold]  a hundred more, once installed: pip install 'vapo\\[tasks]'")
    console.print("\nTrain on one with: vapo train --set task.name=NAME --set model.policy=MODEL", soft_wrap=True)


@app.command("make-base")
def make_base(
    task: Annotated[str, typer.Argument(help="A built-in task (see `vapo tasks`).")] = "maze",
    out: Annotated[Path, typer.Option(help="New or empty folder for the model.")] = Path("base"),
    seed: Annotated[int, typer.Option(help="Seed of weights and traces; 0 made the shipped one.", min=0)] = 0,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="A task option, like --set side=7; repeatable."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a built-in task's base model again, from noisy traces and a seed (about 4 minutes on one core)."""
    from vapo.build import check_folder
    from vapo.config import set_layer
    from vapo.models.base import make_base as make
    from vapo.tasks.registry import make_task

    check_folder(out)
    chosen: dict[str, Any] = {}
    for text in options or []:
        chosen |= set_layer(text).values
    with _view(as_json) as view:
        made = make(
            make_task(task, **chosen),
            seed,
            out,
            on_progress=lambda phase, done, total, _: view.progress(phase, done, total),
            threads=1,  # other numbers of threads give other weights
        )
    if as_json:
        print(json.dumps(made))
        return
    measured = made["measured"]
    Console(soft_wrap=True).print(
        f"{made['parameters']:,} parameters in {out}; right on {measured['success']:.1%} of {measured['prompts']} "
        f"held-out prompts x {measured['samples_per_prompt']} samples, mean length {measured['mean_length']:.0f}.\n"
        f"Train on it with: vapo train --set task.name={task} --set model.policy={out}"
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")], debug: DebugOption = False
) -> None:
    """Write RUN/report.html again: curves, settings, evaluations, and the rollouts token by token."""
    from vapo.reports.page import write_report

    Console().print(f"Report: {write_report(run)}")


@app.command()
def compare(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Run directories, finished ones.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, table.md, curves.png and comparison.html.")
    ] = Path("comparison"),
    reference: Annotated[
        str, typer.Option(help="The method that differences are taken to; without any vapo, the first in the table.")
    ] = "vapo",
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="results.json", help="Make table and page again from this, without the runs."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put runs side by side: scores, paired differences and curves, with 95 % intervals over runs and prompts.

    Runs are compared by method, base and seed; they must share the task and the held-out evaluation.
    """
    from vapo.reports.comparison import compare as compare_runs
    from vapo.reports.comparison import read_results, terminal_table, write

    if bool(runs) == bool(from_):
        raise ConfigError(
            "vapo compare takes run directories, or --from results.json instead of them: give one of both."
        )
    if from_:
        results = read_results(from_)
        write(results, out)
    else:
        results = compare_runs(runs or [], out, reference=reference)
    if as_json:
        print(json.dumps(results))
        return
    console = Console(soft_wrap=True)
    table_console = Console()
    table_console.print(terminal_table(results, table_console.width))
    console.print(f"Page      {out / 'comparison.html'}\nTable     {out / 'table.md'}\nFigure    {out / 'curves.png'}")


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    main_exit(app)


def _list_cells(study: Study, folder: Path, as_json: bool) -> None:
    """Check the study and list its cells."""
    from vapo.study.cells import critic_cells, describe, run_cells, tuning_cells
    from vapo.study.runner import check, chosen_before, ended

    check(study, folder)
    trials = [cell for cells in tuning_cells(study, folder).values() for cell in cells]
    cells = [*critic_cells(study, folder), *trials, *run_cells(study, folder, chosen_before(folder))]
    if as_json:
        print(json.dumps([{**cell.card(), "folder": str(cell.folder), "ended": ended(cell)} for cell in cells]))
        return
    table = Table("cell", "kind", "ended", title=f"{len(cells)} cells in {folder}")
    for cell in cells:
        table.add_row(describe(cell), cell.kind, "yes" if ended(cell) else "")
    Console().print(table)


def _closing_words(path: Path, as_json: bool) -> None:
    """Accuracy before and after, where everything is, what to try next."""
    from vapo.reports.runfiles import read_run
    from vapo.reports.tables import before_after_table

    run = read_run(path)
    evaluations = run.evaluations
    preset = run.preset
    task = str(run.config.get("task", {}).get("name", "maze"))
    if as_json:
        told = [{k: v for k, v in e.items() if k not in ("right", "valid")} for e in evaluations]
        print(json.dumps({"run": str(path), "evaluations": told}))
        return
    console = Console(soft_wrap=True)
    console.print(before_after_table(evaluations))
    console.print(
        f"Curves    {path / 'curves.png'}\nReport    {path / 'report.html'}  (open it: every token, coloured by value)"
    )
    console.print(f"Model     {path / 'policy'}  (AutoModelForCausalLM.from_pretrained)\n")
    again = "vapo train" if task == "maze" else f"vapo train --set task.name={task}"
    console.print("Next, see what the critic is worth:", style="dim")
    console.print(f"  {again} --preset {'grpo' if preset != 'grpo' else 'vapo'}")
    if preset == "vapo":
        console.print(f"  {again} --without value-pretraining")


def _without_nan(value: Any) -> Any:
    """The same with null for nan, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _view(as_json: bool) -> Any:
    from vapo.reports.live import LiveView, SilentView

    return SilentView() if as_json else LiveView()


def _layer(key: str, value: Any, origin: str) -> Layer:
    from vapo.config import Layer

    for part in reversed(key.split(".")):
        value = {part: value}
    return Layer(origin, value)


def _print_names(entries: dict[str, str], as_json: bool, heading: str, use: str) -> None:
    if as_json:
        print(json.dumps(entries))
        return
    table = Table(heading, "what it is", box=None, padding=(0, 2, 0, 0))
    for name, about in entries.items():
        table.add_row(name, about)
    console = Console()
    console.print(table)
    console.print(f"\nUse one with: {use}")
