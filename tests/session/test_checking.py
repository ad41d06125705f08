"""`vapo check` finds each planted mistake, says what to do about it, and leaves a healthy configuration alone."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import toys
from vapo import cli
from vapo.chaos.faults import spoil_gradient_step
from vapo.cli.planning import _print_finding
from vapo.errors import ConfigError
from vapo.session import lifecycle
from vapo.session.checking import inspection
from vapo.session.checking.finding import Finding, Outcome, of_error
from vapo.session.checking.inspection import Inspection
from vapo.session.checking.known_answers import check_answers
from vapo.session.checking.short_run import NAME as STEPS
from vapo.session.checking.short_run import _of_lines, check_steps, short_config
from vapo.session.config import Config, resolve
from vapo.session.inputs import close_task
from vapo.session.layers import file_layer, recipe_layer, set_layer
from vapo.session.planning.hardware import Cluster, Device
from vapo.session.rendered_prompts import RenderedPrompts
from vapo.session.sizing import OUTCOME_REACH
from vapo.tasks.catalog import check_task, find_task
from vapo.tasks.full_task import FullTask
from vapo.tasks.problem_options import CHECKABLE
from vapo.types import Prompt, Verdict

TASK = """
import sys
sys.path.insert(0, {tests!r})
from toys import EchoTask
from vapo.types import Prompt, Verdict

def echo(train_ids="train", word="x"):
    task = EchoTask()
    if train_ids == "heldout":
        task.train = task.heldout
    task.train = [Prompt(p.id, p.text.replace("x", word), p.answer) for p in task.train]
    task.heldout = [Prompt(p.id, "7 " + p.text if train_ids == "train" else p.text, p.answer) for p in task.heldout]
    return task
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toys.toy_base(tmp_path_factory.mktemp("base"))
    (folder / "echo.py").write_text(TASK.format(tests=str(Path(toys.__file__).parent)))
    return folder


def of(base: Path, *assignments: str) -> Config:
    named = [f"task.name={base / 'echo.py'}:echo", "algorithm.alpha=100", *assignments]
    return resolve([file_layer("toy", toys.toy_config(base).as_dict()), *map(set_layer, named)])


def found(config: Config, **how: Any) -> list[Finding]:
    return list(Inspection(config, **{"steps": False, **how}))


def bad(findings: list[Finding]) -> dict[str, str]:
    """What is no `ok`, with its fix, by check."""
    return {f.check: f"{f.outcome}: {f.found} {f.fix}" for f in findings if f.outcome is not Outcome.OK}


# --------------------------------------------------------------------------- the verifier


def verifier_findings(verify: Any, *, answers: tuple[Any, ...] = (1, 2, 3), **parts: Any) -> dict[str, str]:
    prompts = [Prompt(f"p{i}", f"{i} x", answer) for i, answer in enumerate(answers)]
    task = FullTask("mine", prompts, prompts, 8, verify, **parts)
    return bad(check_answers(task, RenderedPrompts(tuple(prompts), lambda prompt: prompt)))


def boxed(prompt: Prompt, response: str) -> Verdict:
    return Verdict("right" if response == f"\\boxed{{{prompt.answer}}}" else "wrong", "another answer")


def test_a_verifier_that_knows_right_from_wrong_is_fine():
    assert verifier_findings(boxed) == {}


def test_a_verifier_that_accepts_garbage_is_an_error():
    said = verifier_findings(lambda prompt, response: Verdict("right"))
    assert "0 of 9 garbage responses wrong, 9 right; the first: '' for prompt p0" in said["verifier on garbage"]
    assert said["verifier on garbage"].startswith("error")


def test_a_verifier_that_refuses_gold_is_an_error_where_the_form_is_known():
    def never(prompt: Prompt, response: str) -> Verdict:
        return Verdict("wrong", "no")

    math = verifier_findings(never, options=SimpleNamespace(verifier="math"))
    assert "error: 0 of 3 gold answers right; the first that is wrong: prompt p0, no" in math["verifier on gold"]
    # a task of one's own may want another form than \boxed{}
    assert verifier_findings(never)["verifier on gold"].startswith("warning")


def test_a_verifier_that_breaks_is_an_error():
    def breaks(prompt: Prompt, response: str) -> Verdict:
        raise ZeroDivisionError("oh")

    said = verifier_findings(breaks)
    assert "raised ZeroDivisionError: oh" in said["verifier on gold"]
    assert said["verifier on gold"].startswith("error")
    assert "9 invalid" in said["verifier on garbage"]


@pytest.mark.parametrize("verifier", CHECKABLE)
def test_the_answers_of_a_data_task_are_judged(verifier: str, tmp_path: Path):
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": str(tmp_path / "rows.jsonl"), "heldout": 8, "verifier": verifier, "verifier_workers": 1}
    task = check_task(find_task("math", options))
    try:
        prompts = RenderedPrompts(tuple(task.train), lambda prompt: prompt)
        findings = check_answers(task, prompts)
    finally:
        close_task(task)
    assert [(f.check, f.outcome) for f in findings] == [
        ("verifier on gold", Outcome.OK),
        ("verifier on garbage", Outcome.OK),
    ]


def test_an_environment_judges_its_own_episodes():
    said = verifier_findings(boxed, environment=lambda prompt, seed: None, verify_groups=lambda *_: [])
    assert said == {"verifier": "skipped: the task's environment judges its own episodes, which need a policy "}


def test_problems_without_short_answers_are_judged_on_garbage_only():
    assert verifier_findings(boxed, answers=({"cases": []},))["verifier on gold"].startswith("skipped")


# --------------------------------------------------------------------------- a configuration


def test_a_healthy_configuration_passes(base: Path, tmp_path: Path):
    findings = found(of(base), run_dir=tmp_path / "runs")
    # gold answers in a box are not the form of this task
    assert set(bad(findings)) <= {"verifier on gold"}, bad(findings)
    assert {"settings", "software", "model", "memory", "time", "disk", "data", "prompts", "verifier on garbage"} <= {
        f.check for f in findings
    }


def test_prompts_of_one_text_are_other_problems_where_an_environment_hides_the_answer():
    class Rendered(list):
        def longest(self) -> int:
            return 2

    def prompts(*answers: str) -> Rendered:
        return Rendered(Prompt(f"p-{answer}", "break it", answer, token_ids=(4, 5)) for answer in answers)

    def leaks(environment: object) -> list[str]:
        inputs = SimpleNamespace(
            tokenizer=toys.tokenizer(),
            train_prompts=prompts("a", "b"),
            heldout_prompts=prompts("b", "c"),
            decoding=SimpleNamespace(max_tokens=8),
            task=SimpleNamespace(environment=environment),
        )
        return [f.found for f in inspection._of_prompts(inputs) if "also held out" in f.found]

    assert leaks(lambda prompt, seed: None) == ["1 training prompt of the first 2 is also held out"]
    assert leaks(None) == ["2 training prompts of the first 2 are also held out"]


def test_planted_mistakes_are_found(base: Path, monkeypatch: pytest.MonkeyPatch):
    leak = bad(found(of(base, "task.train_ids=heldout")))
    assert "8 training prompts of the first 8 are also held out" in leak["prompts"]
    unknown = bad(found(of(base, "task.word=hello")))
    assert "does not know some of their text" in unknown["prompts"]
    absurd = bad(found(of(base, "trainer.actor_lr=1.0")))
    assert "trainer.actor_lr=1 is" in absurd["sizes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    full = bad(found(of(base)))
    assert full["disk"].startswith("error")
    assert "lower checkpoint.keep" in full["disk"]


def test_a_cluster_that_is_too_small_is_an_error_with_what_fits(base: Path):
    device = Device("small", 1.501e9 / 0.95, 1e12, 1e9, 1e9)
    said = bad(found(of(base), cluster=Cluster(1, 1, device)))
    assert "error: small: It does not fit" in said["memory"]
    assert "--set" in said["memory"] or "Nothing that was tried" in said["memory"]


def test_a_model_that_is_not_there_ends_the_checks(base: Path):
    said = bad(found(of(base, "model.policy=./nowhere")))
    assert "error: Cannot load the model: ./nowhere does not exist. Check the path." in said["model"]
    assert said["data"] == "skipped: the model cannot be read "


def test_a_task_that_fails_is_an_error(base: Path):
    assert "error" in bad(found(of(base, "task.nonsense=1")))["data"]


def test_a_data_file_that_is_not_there_is_an_error_and_no_data_set_of_the_hub(base: Path):
    findings = found(resolve([set_layer(f"model.policy={base}"), set_layer("task={name: math, data: none.jsonl}")]))
    said = bad(findings)
    assert said["data"] == "error: There is no file none.jsonl. Check the path."
    assert [said[check] for check in ("prompts", "verifier", STEPS)] == ["skipped: the task cannot be read "] * 3
    assert next(f for f in findings if f.check == "model").outcome is Outcome.OK


def test_a_task_without_a_shipped_base_is_an_error_of_the_model(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    findings = found(resolve([set_layer(f"task={{name: math, data: {tmp_path / 'data.jsonl'}}}")]))
    assert "error: No base model ships for task 'math'" in bad(findings)["model"]
    assert [f.check for f in findings].count("model") == 1
    option = bad(found(resolve([set_layer("task.sidde=4")])))
    assert "has no option 'sidde'" in option["data"]
    assert option["model"] == "skipped: the task cannot be read "


def test_ranks_without_a_place_are_an_error(base: Path):
    scale = "scale={backend: ray, nodes: 1, gpus_per_node: 2, training_ranks: 4}"
    said = bad(found(of(base, scale), offline=True))
    assert "asks for 4 GPUs and has 2" in said["placement"]
    assert said["memory"].startswith("skipped: say for which GPUs")


def test_offline_needs_no_hub():
    said = bad(found(resolve([recipe_layer("vapo-qwen2.5-7b")]), offline=True))
    assert not [check for check, words in said.items() if words.startswith("error")], said
    assert "Qwen/Qwen2.5-7B is on the hub" in said["data"]


def test_an_error_is_split_into_what_is_wrong_and_the_fix():
    split = of_error("x", ConfigError("a.b=1 is wrong. It is 2 here. Set a.b=2."))
    assert (split.found, split.fix) == ("a.b=1 is wrong. It is 2 here.", "Set a.b=2.")
    assert of_error("x", ConfigError("wrong")).found == "wrong"
    split = of_error(
        "x", ConfigError("2 rows are bad. The first:\n  row 1: empty. Why\n  row 2: odd", fix="Is it? Fix it.")
    )
    assert (split.found, split.fix) == (
        "2 rows are bad. The first:\n  row 1: empty. Why\n  row 2: odd",
        "Is it? Fix it.",
    )
    split = of_error("x", ConfigError("2 rows. The first:\n  row 1: empty. Why\nIs it in another? Name it."))
    assert (split.found, split.fix) == ("2 rows. The first:\n  row 1: empty. Why", "Is it in another? Name it.")
    assert str(ConfigError("a is wrong.", fix="Set b.")) == "a is wrong. Set b."


def test_the_fix_of_a_list_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]):
    rows = ConfigError("2 rows are bad. The first:\n  row 1: empty\n  row 2: odd", fix="Fix them.")
    _print_finding(Console(), of_error("data", rows))
    _print_finding(Console(), of_error("data", ConfigError("a is wrong. Set b.")))
    printed = capsys.readouterr().out
    assert printed.splitlines()[2:] == ["  row 2: odd", "  → Fix them.", "error    data: a is wrong. → Set b."]


def test_the_first_prompt_is_shown_whole_and_a_long_one_without_its_middle(base: Path):
    words = " ".join("x" * 30)
    [shown] = [f.found for f in found(of(base, f"task.word={words}")) if f.check == "prompts"]
    assert re.search(rf" reads '\d {words}'$", shown), shown
    assert inspection._shortened("x" * 1500) == "x" * 1500
    cut = inspection._shortened("a" * 800 + "b" * 801)
    assert cut == "a" * 750 + " ... 101 characters ... " + "b" * 750


# --------------------------------------------------------------------------- two steps


def test_two_steps_are_taken_saved_and_resumed(base: Path):
    findings = check_steps(of(base))
    assert findings[0].outcome is Outcome.OK, findings
    assert "for 8 responses each; a checkpoint of" in findings[0].found


def test_losses_that_are_not_finite_are_an_error(base: Path, monkeypatch: pytest.MonkeyPatch):
    def spoiled(*arguments: Any) -> Any:
        run = begin(*arguments)
        spoil_gradient_step(run, "policy", 1, "loss", math.nan, times=10**6)
        return run

    begin = lifecycle.begin
    monkeypatch.setattr(lifecycle, "begin", spoiled)
    found = check_steps(of(base))[0]
    assert (found.outcome, found.found) == (Outcome.ERROR, "not finite: skipped/policy")
    line = {
        "step_time": 1.0,
        "loss/kl": None,
        "value/loss": 0.5,
        "skipped/policy": 0,
        "advantages/variance_ratio": None,
    }
    assert _of_lines([{**line, "step": 1}, {**line, "step": 2}], 8, 1).found == "not finite: loss/kl"


def test_two_steps_that_fail_are_an_error(base: Path):
    # nothing that is judged is valid
    (base / "broken.py").write_text((base / "echo.py").read_text() + BROKEN)
    findings = check_steps(of(base, f"task.name={base / 'broken.py'}:broken"))
    assert findings[0].outcome is Outcome.ERROR
    assert "could not be judged" in findings[0].found or "invalid" in findings[0].found


BROKEN = """
class Broken(EchoTask):
    def verify(self, prompt, response):
        return Verdict("invalid", "no judge")

def broken():
    return Broken()
"""


def test_the_two_steps_take_the_sizes_of_the_run(base: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[Config] = []
    monkeypatch.setattr(inspection, "check_steps", lambda config: taken.append(config) or [])
    own = {key: value for key, value in toys.toy_config(base).as_dict().items() if key != "algorithm"}
    config = resolve([file_layer("toy", own), set_layer(f"task.name={base / 'echo.py'}:echo")])
    said = bad(found(config, steps=True))
    limit = config.sections.rollout.max_response_tokens or 8
    assert taken[0].as_dict()["algorithm"]["alpha"] == OUTCOME_REACH / limit
    assert not [words for words in said.values() if "alpha" in words]


def test_a_short_run_keeps_the_method(base: Path):
    config = of(base, "algorithm.preset=vapo2")
    short = short_config(config)
    assert short.label == config.label
    assert (short.algorithm.sampling.samples, short.sections.trainer.steps) == (8, 1)
    reward_model = of(base, "trainer.steps=0", "trainer.pretraining_at=end", "trainer.pretraining_steps=1")
    assert short_config(reward_model).sections.trainer.steps == 1
    alone = short_config(of(base, "algorithm.preset=ppo", "algorithm.alpha=null"))
    assert alone.algorithm.sampling.samples == 4


def test_the_command_has_exit_code_2_for_an_error(base: Path, monkeypatch, capsys):
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["vapo", "check", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert run("--set", "trainer.sped=1", "--json") == 2
    said = json.loads(capsys.readouterr().out)
    assert said[0]["outcome"] == "error"
    assert "trainer.sped" in said[0]["found"]
    assert run("--no-steps", "--set", "task.sidde=4") == 2
    assert capsys.readouterr().out.endswith(f"memory, disk, prompts, verifier, {STEPS}\n")
    assert run("--no-steps") == 0
    printed = capsys.readouterr().out
    assert "96 of 96 garbage responses wrong" in printed
    assert printed.endswith("0 errors, 0 warnings\n")
