"""Our rollouts and steps beside those of TRL, vLLM and transformers: one core, the same models, rounds in turn.

python benchmarks/peers --quick              about 12 minutes; the environments are built before, once
python benchmarks/peers --rows 'step-*' --peers vapo trl --rounds 5
python benchmarks/peers --list
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from environments import NAMES, command
from rows import PEERS, ROWS, Row, Side
from table import page, section
from workers import WARM_TOKENS, Options, Worker, WorkerError

from models import matrix_parameters, model_folder, workload

HERE = Path(__file__).resolve().parent
ALONE_MODELS = {"memory.py": "3M-150k", "ragged_cost.py": "3M", "gae.py": "3M"}
"""The models of the scripts that measure alone; the last one needs none."""
FRESH = ("memory.py",)
"""Those of them that need a new process for each round."""
QUICK = {"rounds": 3, "seconds": 720.0}
SMOKE = (16, 32)
"""Responses, and tokens of the longest, with `--smoke`."""

Found = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the most telling rows, 3 rounds, 12 minutes at most")
    parser.add_argument("--smoke", action="store_true", help="tiny rows, one round: shows that all parts work")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="rows by name, * allowed; default: all")
    parser.add_argument("--sizes", nargs="+", metavar="MODEL", help="only rows of these models, such as 3M 20M-150k")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, help="default 5; 3 with --quick")
    parser.add_argument("--seconds", type=float, help="begin no row and no round after so many; default: no limit")
    parser.add_argument("--slow", type=float, default=30.0, help="a side whose round takes longer has only that one")
    parser.add_argument("--patience", type=float, default=600.0, help="stop a worker without an answer for so long")
    parser.add_argument("--core", type=int, default=(os.cpu_count() or 1) - 1, help="the core all workers run on")
    parser.add_argument("--threads", type=int, default=1, help="with more than one, no core is chosen")
    parser.add_argument("--cache", type=Path, default=Path("build/peers"), help="environments, models, logs")
    parser.add_argument(
        "--environment", nargs="+", metavar="NAME=FOLDER", default=[], help="one that is there: trl, trl-ppo, vllm"
    )
    parser.add_argument("--tune", action="store_true", help="first try every side's settings, one round each")
    parser.add_argument("--out", type=Path, help="default results.json beside this; rows measured replace those there")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    return parser.parse_args()


def chosen_rows(arguments: argparse.Namespace) -> list[Row]:
    """The rows to measure, in order; ends with exit code 2 if a pattern or a size names none."""
    for pattern in arguments.rows or []:
        if not any(fnmatch(row.name, pattern) for row in ROWS):
            raise SystemExit(f"--rows {pattern} names no row. There are: {', '.join(row.name for row in ROWS)}")
    for size in arguments.sizes or []:
        if not any(row.model == size for row in ROWS):
            raise SystemExit(
                f"--sizes {size} is no model. There are: {', '.join(sorted({r.model for r in ROWS} - {''}))}"
            )
    return [
        replace(row, samples=min(row.samples, SMOKE[0]), tokens=min(row.tokens, SMOKE[1])) if arguments.smoke else row
        for row in ROWS
        if (not arguments.rows or any(fnmatch(row.name, pattern) for pattern in arguments.rows))
        and (not arguments.sizes or row.model in arguments.sizes)
        and (not arguments.quick or arguments.rows or row.quick)
    ]


def options_of(arguments: argparse.Namespace) -> Options:
    given = {}
    for word in arguments.environment:
        name, _, folder = word.partition("=")
        if name not in NAMES or not Path(folder).is_dir():
            raise SystemExit(f"--environment {word}: give NAME=FOLDER, with a folder that is there. Names: {NAMES[1:]}")
        given[name] = Path(folder).absolute()
    core = arguments.core if arguments.threads == 1 else None
    return Options(core, arguments.threads, arguments.cache.absolute(), given, arguments.patience)


def start(script: str, environment: str, job: Found, options: Options) -> Worker:
    python, variables = command(environment, options.cache, options.given)
    return Worker(python, variables, HERE / script, job, options)


class Comparison:
    """The sides of one row, with their processes."""

    def __init__(self, row: Row, sides: list[Side], options: Options):
        self.row, self.sides, self.options = row, sides, options
        folder = model_folder(row.model, options.cache)
        self.parameters = matrix_parameters(folder)
        self.work = workload(row.model, folder, row.lengths, row.samples, row.tokens) | {"model": str(folder)}
        self.found: dict[str, Found] = {}
        self._workers: dict[tuple[str, str, str], Worker] = {}

    def begin(self, settings: dict[str, Found]) -> None:
        """Start every process and warm it up; `settings` by label, else each side's first choice."""
        for side in self.sides:
            key = _process(side)
            own = settings.get(side.label, side.choices[0])
            self.found[side.label] = {"settings": own, "rounds": []}
            try:
                if key not in self._workers:
                    self._workers[key] = self._start(side, own)
                self._workers[key].round(side.variant, WARM_TOKENS)
                self.found[side.label]["name"] = self._workers[key].facts["name"]
            except (WorkerError, subprocess.CalledProcessError) as error:
                self._give_up(side, error)

    def rounds(self, count: int, slow_s: float, deadline: float) -> None:
        """Ask each side in turn, `count` times; the first round runs past the deadline, too."""
        for number in range(count):
            if number and time.monotonic() > deadline:
                break
            for side in self.sides:
                own = self.found[side.label]
                if "fault" in own or (own["rounds"] and own["rounds"][-1]["seconds"] > slow_s):
                    continue
                try:
                    figures = self._workers[_process(side)].round(side.variant)
                except WorkerError as error:
                    self._give_up(side, error)
                    continue
                own["rounds"].append(figures)
                speed = figures["tokens"] / figures["seconds"]
                print(f"{self.row.name} {number + 1}: {side.label}: {figures['seconds']:.2f} s, {speed:,.0f} tokens/s",
                      flush=True)  # fmt: skip

    def check_tokens(self) -> None:
        """Sides with other numbers of tokens than were asked for have a fault: they did other work."""
        if self.work["lengths"]:
            for own in self.found.values():
                if any(r["tokens"] != sum(self.work["lengths"]) for r in own["rounds"]):
                    own["fault"] = f"sampled {own['rounds'][0]['tokens']} tokens of {sum(self.work['lengths'])}"

    def end(self) -> None:
        for worker in self._workers.values():
            worker.stop()

    def _start(self, side: Side, settings: Found) -> Worker:
        variants = [other.variant for other in self.sides if _process(other) == _process(side)]
        job = {**self.work, "settings": settings, "how": side.how, "variants": variants}
        return start(side.script, side.environment, job, self.options)

    def _give_up(self, side: Side, error: Exception) -> None:
        print(f"{self.row.name}: {side.label}: {error}", file=sys.stderr, flush=True)
        self.found[side.label]["fault"] = str(error).split(" (/")[0]


def _process(side: Side) -> tuple[str, str, str]:
    return side.script, side.environment, side.how


def tuned(row: Row, sides: list[Side], options: Options, slow_s: float) -> dict[str, Found]:
    """The fastest settings of each side, by one round each; sides that share a process share their settings."""
    best: dict[tuple[str, str, str], tuple[float, Found]] = {}
    for choice in range(max(len(side.choices) for side in sides)):
        first = {_process(side): side for side in reversed(sides) if choice < len(side.choices)}
        comparison = Comparison(row, list(first.values()), options)
        try:
            comparison.begin({side.label: side.choices[choice] for side in first.values()})
            comparison.rounds(1, slow_s, 0.0)
        finally:
            comparison.end()
        for key, side in first.items():
            own = comparison.found[side.label]
            if "fault" not in own and own["rounds"][0]["seconds"] < best.get(key, (float("inf"),))[0]:
                best[key] = (own["rounds"][0]["seconds"], own["settings"])
    return {side.label: best[_process(side)][1] for side in sides if _process(side) in best}


def measure(row: Row, arguments: argparse.Namespace, options: Options, deadline: float) -> Found:
    """All figures of one row."""
    limit = start("limits.py", "vapo", {}, options)
    rate, torch = limit.round(""), limit.facts["torch"]
    limit.stop()
    found: Found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before",
        "threads": arguments.threads,
        "torch": torch,
        "rate": rate,
    }
    count = arguments.rounds
    if not row.sides:
        return found | {"rounds": alone(row, count, options, deadline)}
    sides = [side for side in row.sides if side.peer in arguments.peers]
    settings = tuned(row, sides, options, arguments.slow) if arguments.tune else {}
    comparison = Comparison(row, sides, options)
    try:
        comparison.begin(settings)
        comparison.rounds(count, arguments.slow, deadline)
    finally:
        comparison.end()
    comparison.check_tokens()
    found |= {
        "sides": comparison.found,
        "parameters": comparison.parameters,
        "prompt_tokens": sum(map(len, comparison.work["prompts"])),
    }
    return found


def alone(row: Row, count: int, options: Options, deadline: float) -> list[Found]:
    """The rounds of a script that compares by itself."""
    job = {"model": str(model_folder(ALONE_MODELS[row.kind], options.cache))}
    rounds: list[Found] = []
    worker = None
    while len(rounds) < count and (not rounds or time.monotonic() < deadline):
        if worker is None:
            worker = start(row.kind, "vapo", job, options)
            if row.kind not in FRESH:
                worker.round("")  # warm
        rounds.append(worker.round(""))
        if row.kind in FRESH or len(rounds) == count:
            worker.stop()
            worker = None
    if worker is not None:
        worker.stop()
    return rounds


def main() -> None:
    arguments = parse()
    rows, options = chosen_rows(arguments), options_of(arguments)
    arguments.rounds = arguments.rounds or (1 if arguments.smoke else QUICK["rounds"] if arguments.quick else 5)
    out = arguments.out or (options.cache / "smoke.json" if arguments.smoke else HERE / "results.json")
    if arguments.list:
        for row in rows:
            print(f"{'quick ' if row.quick else '      '}{row.title if row.sides else row.name}")
        return
    for name in {side.environment for row in rows for side in row.sides if side.peer in arguments.peers}:
        command(name, options.cache, options.given)  # built before the time begins to count
    limit_s = arguments.seconds or (QUICK["seconds"] if arguments.quick else float("inf"))
    deadline = time.monotonic() + limit_s
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for row in rows:
        if time.monotonic() > deadline:
            print(f"{row.name}: not begun: no time", flush=True)
            continue
        try:
            results[row.name] = measure(row, arguments, options, deadline)
        except (OSError, WorkerError, subprocess.CalledProcessError) as error:
            print(f"{row.name}: {error}", file=sys.stderr, flush=True)
            continue
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(page(results, ROWS), encoding="utf-8")
        print("\n".join(section(row, results[row.name])), flush=True)


if __name__ == "__main__":
    main()
