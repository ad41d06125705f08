"""One table of metrics: what runs write is in it, what is in it runs write, and the page is printed from it."""

from __future__ import annotations

import ast
import doctest
import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
import vapo
from vapo import json_text
from vapo.metrics import EVALUATION, EVENTS, METRICS, PLACE, Phase, line_names, metric, metric_called, metric_table
from vapo.metrics.metric import ON_GPU
from vapo.metrics.metrics_page import metrics_page
from vapo.session import lifecycle as runs
from vapo.trainer.record import RunFolder
from vapo.types import Prompt, Reply, Verdict

ROOT = Path(vapo.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
RUNS = [
    ("ppo", {}),
    ("vc-ppo", {}),
    ("grpo", {}),
    ("dapo", {}),
    ("vapo", {}),
    ("vapo", {"trainer": {"steps": 0, "pretraining_at": "end"}}),
    ("vapo", {"algorithm": {"credit": {"baseline": "group"}, "sampler": {"kind": "truncated"}}}),
    ("vapo", {"algorithm": {"credit": {"baseline": "fitted"}, "truncated": "drop-from-policy"}}),
]
"""Settings that write every metric between them."""


class InParts(toys.EchoTask):
    """Its verdicts say what their scores are made of."""

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        verdict = super().verify(prompt, response)
        return replace(verdict, parts={"digit": float(verdict.right)})


class InTurns(InParts):
    """Asks once more whatever the first turn is."""

    max_turns = 2

    def environment(self, prompt: Prompt, seed: int) -> Again:
        return Again()


class Again:
    def reset(self) -> str:
        return ""

    def step(self, response: str) -> Reply:
        return Reply("x")

    def close(self) -> None:
        pass


def test_docs_metrics_md_equals_the_generated_page():
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_page(), (
        "Print it again: python -m vapo.metrics docs/metrics.md"
    )


@pytest.mark.parametrize("module", [line_names, metric, metric_table, json_text])
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_an_unknown_metric_raises_an_error_with_its_name():
    with pytest.raises(KeyError, match="value/los is not in the table"):
        metric_called("value/los")


@pytest.mark.slow
def test_runs_write_exactly_the_metrics_of_the_table(tmp_path: Path):
    base, written = toys.toy_base(tmp_path / "base"), defaultdict(set)
    evaluation: set[str] = set()
    for number, (preset, layer) in enumerate(RUNS):
        path = tmp_path / f"run-{number}"
        task = InTurns() if number in (0, 4) else InParts()
        runs.finish(toys.toy_run(base, path, layer, preset=preset, task=task), report=False)
        for line in lines(path / "metrics.jsonl"):
            for key in line.keys() - PLACE.keys():
                written[metric_table.family_of(key)].add(line["phase"])
        evaluation.update(*(line.keys() for line in lines(path / "evaluations.jsonl")))
        assert {line["event"] for line in lines(path / "events.jsonl")} <= EVENTS.keys()
    here = {name: row for name, row in METRICS.items() if torch.cuda.is_available() or row.where != ON_GPU}
    assert dict(written) == {name: set(row.phases) for name, row in here.items()}
    assert evaluation == EVALUATION.keys()


def test_metric_names_in_the_code_are_in_the_table():
    # a figure or an alarm that asks for a name which nothing writes stays empty without a word
    families = tuple(dict.fromkeys(name.split("/")[0] + "/" for name in METRICS if "/" in name))
    unknown = []
    for path in sorted(
        [*(ROOT / "reports").rglob("*.py"), *(ROOT / "study").rglob("*.py"), ROOT / "trainer/guards.py"]
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(families):
                name = re.sub(r"/\d+$", "/*", node.value)
                if (
                    name not in METRICS
                    and f"{name}/*" not in METRICS
                    and f"{name}*" not in METRICS
                    and name not in families
                ):
                    unknown.append(f"{path.relative_to(ROOT)}: {node.value}")
    assert not unknown


METRIC_LINES = ("m", "metrics", "self.metrics", "row")
"""Names that a line of metrics.jsonl has in the code that reads one."""
WITH_METRIC_NAMES = {"metric_called": 0, "column": 1, "_curve": 2, "Alarm": 1, "_remember": 1}
"""Functions that take a metric's name, and at which place."""


def metric_names_read(source: str) -> list[str]:
    """Constants by which the code reads a metric: `line.get(name)`, `column(rows, name)` and the like."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        if isinstance(function, ast.Attribute) and name == "get" and ast.unparse(function.value) in METRIC_LINES:
            found += node.args[:1]
        elif name in WITH_METRIC_NAMES:
            place = WITH_METRIC_NAMES[name]
            found += node.args[place : place + 1]
    return [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_metrics_without_a_family_are_read_by_names_of_the_table():
    read = {
        (str(path.relative_to(ROOT)), name)
        for path in [*(ROOT / "reports").rglob("*.py"), *(ROOT / "study").rglob("*.py"), ROOT / "trainer/guards.py"]
        for name in metric_names_read(path.read_text(encoding="utf-8"))
        if "/" not in name
    }
    assert {name for _, name in read} >= {"accuracy", "reward", "entropy", "num_samples", "step_time"}
    assert [(path, name) for path, name in sorted(read) if name not in METRICS.keys() | PLACE.keys()] == []


def test_each_phase_has_a_name_for_people_and_old_names_are_accepted():
    assert [phase.words for phase in Phase] == ["value pretraining", "training", "done"]
    assert Phase("pretrain") == "pretrain"  # what checkpoints and logs hold


def test_json_has_null_for_nan_and_infinity():
    nested = {"intervals": {"maj": (math.nan, 1.0)}, "right": [1, 2], "x": -math.inf, "y": None, "z": "NaN"}
    assert json.loads(json_text.json_text(nested)) == {
        "intervals": {"maj": [None, 1.0]}, "right": [1, 2], "x": None, "y": None, "z": "NaN",
    }  # fmt: skip


def test_no_line_of_a_run_contains_nan(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.evaluation({"avg": math.nan, "intervals": {"maj": (math.nan, math.nan)}})
    folder.close()
    (line,) = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert line == '{"avg": null, "intervals": {"maj": [null, null]}}'


# the pipe to a verifier's process: a gold answer that is infinite arrives as it is
OWN_JSON = {"tasks", "rollout/vllm_worker.py"}


def test_every_json_is_written_by_one_function():
    others = []
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT)
        if place.name == "json_text.py" or {place.parts[0], str(place)} & OWN_JSON:
            continue
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        others += [
            str(place) for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f) in ("json.dumps", "json.dump")
        ]
    assert not others


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
