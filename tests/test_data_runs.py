"""A user's own problems and verifier, from the command line: train, resume from elsewhere, evaluate with the critic."""

from __future__ import annotations

import gzip
import json
import sys
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import toys
from command_line import sets, vapo
from vapo.errors import ConfigError
from vapo.models.tokens import plain_text, render
from vapo.reports.live import SilentView
from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.session import lifecycle
from vapo.session.config import resolve
from vapo.session.inputs import RenderedPrompts, with_whole_paths
from vapo.session.layers import file_layer
from vapo.session.layers import set_layer as config_layer
from vapo.session.run_dirs import load_run_config
from vapo.types import Prompt

VERIFIER = """
from what_lies_beside import FIRST

def names_the_digit(response, answer):
    return answer in response.split()[:FIRST]

def the_longest(completions, completion_ids, trainer_state, **kwargs):
    longest = max(len(ids) for ids in completion_ids)
    if len(completions) > 2 and trainer_state.global_step > 1:
        raise RuntimeError("only two steps were asked for")
    return [float(len(ids) == longest) for ids in completion_ids]
"""
SMALL = [
    "trainer.steps=2", "trainer.samples_per_step=16", "trainer.group_size=4", "trainer.minibatch_size=8",
    "trainer.pretraining_steps=1", "trainer.pretraining_heldout=8", "evaluation.every=0", "evaluation.prompts=4",
    "evaluation.samples_per_prompt=2", "checkpoint.every=1", "scale.threads=1", "algorithm.alpha=2.0",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    toys.toy_base(tmp_path / "base")
    (tmp_path / "mine.py").write_text(VERIFIER)
    (tmp_path / "what_lies_beside.py").write_text("FIRST = 4\n")
    rows = [{"problem": f"{i} x", "answer": str(i)} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[6:]))
    return tmp_path


TASK = [
    "task.name=math", "task.verifier=mine.py:names_the_digit", "task.verifier_workers=1", "task.template='{problem}'",
        "task.max_response_tokens=8"]  # fmt: skip


def test_a_run_with_custom_problems_and_verifier_trains_resumes_and_evaluates(
    place, monkeypatch, capsys, tmp_path_factory
):
    data = ["task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", *sets(*TASK, *data, *SMALL)) == 0
    assert "math: 6 training problems, 4 held out" in capsys.readouterr().out
    metrics = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["phase"] for m in metrics] == ["pretrain", "train", "train"]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (place / "run" / "checkpoints" / "step_000002").rename(elsewhere / "later")
    assert vapo(monkeypatch, "resume", str(place / "run")) == 0
    capsys.readouterr()
    again = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {k: v for k, v in m.items() if not k.startswith(("time/", "throughput/", "mfu/", "memory/", "step_time"))}
        for m in (*metrics, *again)
    ]
    assert timeless[:3] == timeless[3:]

    monkeypatch.chdir(place)
    judge = ["--task", "math", "--data", "test.jsonl", "--critic", "run/critic", "-k", "4", "--json"]
    assert vapo(monkeypatch, "eval", "run/policy", *judge, "--out", "kept", *sets(*TASK[1:])) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] == 4
    assert 0 <= result["ranking"]["best-of-n"]["score"] <= 1
    assert set(result["ranking"]["best-of-n"]["best_of"]) == {"1", "2", "4"}
    assert counted_again(place / "kept" / "samples.jsonl") == pytest.approx((result["avg"], *result["pass"].values()))
    assert vapo(monkeypatch, "eval", "run/policy", *judge, "--out", "kept", *sets(*TASK[1:])) == 0
    assert json.loads(capsys.readouterr().out)["per_prompt"] == result["per_prompt"]
    assert vapo(monkeypatch, "eval", "run", "--critic", "run/critic", "-k", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["model"]) == ("math", "run/policy")
    assert (told["per_prompt"], told["ranking"]) == (result["per_prompt"], result["ranking"])


def test_a_reward_function_compares_the_responses_to_a_prompt_and_resumes_bit_for_bit(place, monkeypatch, capsys):
    (place / "train.jsonl").write_text(
        (place / "train.jsonl").read_text().splitlines()[0]
    )  # each step has it four times
    data = ["task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base"]
    judged = [*TASK, "task.verifier=mine.py:the_longest", "trainer.save_rollouts_every=1"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", *sets(*judged, *data, *SMALL)) == 0
    assert "math has one problem to train on" in capsys.readouterr().out
    rollouts = place / "run" / "rollouts" / "step_000002.jsonl.gz"
    before = gzip.decompress(rollouts.read_bytes())
    samples = [json.loads(line) for line in before.splitlines()]
    assert len(samples) == 16
    for group in (samples[i : i + 4] for i in range(0, 16, 4)):  # by group, though all are of one prompt
        lengths = [len(sample["tokens"]) for sample in group]
        assert [sample["verdict"] for sample in group] == ["right" if n == max(lengths) else "wrong" for n in lengths]
    (place / "run" / "checkpoints" / "step_000002").rename(place / "later")
    rollouts.unlink()
    assert vapo(monkeypatch, "resume", "run") == 0
    assert gzip.decompress(rollouts.read_bytes()) == before


def counted_again(samples: Path) -> tuple[float, ...]:
    """avg@4 and pass@1, 2, 4 by counting subsets of the samples on disk, with nothing of ours."""
    problems = [json.loads(line)["samples"] for line in samples.read_text().splitlines()[1:]]
    right = [[sample["verdict"] == "right" for sample in problem] for problem in problems]

    def passed(k: int) -> float:
        return mean(mean(any(subset) for subset in combinations(row, k)) for row in right)

    return mean(mean(row) for row in right), passed(1), passed(2), passed(4)


def test_a_hanging_verifier_stops_the_run_with_code_4(place, monkeypatch, capsys):
    (place / "slow.py").write_text(
        "import time\n\n"
        "def judge(response):\n    if 'boxed' not in response:\n        time.sleep(60)\n    return True\n"
    )
    task = [*TASK, "task.verifier=slow.py:judge", "task.verifier_timeout_s=0.05", "task.data=train.jsonl"]
    options = ["task.eval_data=test.jsonl", "model.policy=base", *SMALL, "evaluation.prompts=1"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", *sets(*task, *options)) == 4
    said = capsys.readouterr().err
    assert "no verdict within 0.05 s" in said
    judged = ["--task", "math", "--data", "test.jsonl", "-k", "2", *sets(*task[1:])]
    assert vapo(monkeypatch, "eval", "base", *judged) == 4
    said += capsys.readouterr().err
    assert "could not judge 100% of the responses" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "best-of-n"], "--rank needs the critic"),
        (
            ["--data", "test.jsonl", "--critic", "base", "--set", "rollout.max_response_tokens=8"],
            "its head is 0. Give the critic/ folder of a trained run",
        ),
        (["--rank", "worst-of-n", "--critic", "base"], "--rank takes best-of-n and weighted-vote"),
        (["--data", "none.jsonl"], "There is no file none.jsonl"),
        (["--data", "mine.py"], "mine.py is none of .jsonl"),
        (["--data", "test.jsonl", "--set", "task.verifier=mine.py:no"], "has no function 'no'"),
        (["--data", "test.jsonl", "--set", "task.verifier_timeout_s=0"], "verifier_timeout_s must be in"),
    ],
)
def test_a_mistake_in_an_evaluation_gives_an_error_of_one_line(place, monkeypatch, capsys, arguments, words):
    assert vapo(monkeypatch, "eval", "base", "--task", "math", *arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("key", ["verifier", "eval_data"])
def test_a_list_instead_of_a_name_gives_an_error_of_one_line(place, monkeypatch, capsys, key):
    data = ["task.data=train.jsonl", "model.policy=base", f"task.{key}=[a.py:b, c]"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", *sets(*TASK, *SMALL, *data)) == 2
    said = capsys.readouterr().err
    assert f"task.{key} takes text, got ['a.py:b', 'c']" in said
    assert "Traceback" not in said


def test_only_existing_files_become_absolute_paths(place):
    (place / "gsm8k").mkdir()
    (place / "test").mkdir()
    task = {"name": "gsm8k", "data": "train.jsonl", "eval_split": "test", "verifier": "mine.py:names_the_digit"}
    whole = with_whole_paths(resolve([file_layer("t", {"task": task, "model": {"policy": "base"}})])).sections
    assert whole.task.name == "gsm8k"
    assert whole.task.options == {
        "data": str(place / "train.jsonl"), "eval_split": "test", "verifier": f"{place / 'mine.py'}:names_the_digit"
    }  # fmt: skip
    assert whole.model.policy == str(place / "base")
    named = with_whole_paths(resolve([file_layer("t", {"task": {"name": "mine.py:make"}})])).sections
    assert named.task.name == f"{place / 'mine.py'}:make"
    assert named.model.policy == "builtin"


def test_the_interpreter_of_vllm_gets_its_whole_path_and_stays_a_link(place):
    (place / "venv").mkdir()
    (place / "venv" / "python").symlink_to(sys.executable)

    def python(given: str) -> str | None:
        engine = with_whole_paths(
            resolve([file_layer("t", {"rollout": {"engine": {"kind": "vllm", "python": given}}})])
        )
        assert isinstance(engine.sections.rollout.engine, VllmEngineSettings)
        return engine.sections.rollout.engine.python

    assert python("venv/python") == str(place / "venv" / "python")
    assert python("python3") == "python3"


def test_a_run_on_a_task_object_resumes_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = toys.toy_base(tmp_path / "base").relative_to(tmp_path)
    short = {"trainer": {"steps": 1}, "model": {"critic": str(base)}}
    lifecycle.finish(toys.toy_run(base, tmp_path / "run", short), report=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    longer = [config_layer("trainer.steps=2")]
    lifecycle.finish(lifecycle.resume(tmp_path / "run", SilentView(), toys.EchoTask(), changes=longer), report=False)
    model = load_run_config(tmp_path / "run").sections.model
    assert (model.policy, model.critic) == (str(tmp_path / "base"),) * 2


def test_a_module_of_this_folder_becomes_its_file_and_an_installed_one_of_its_name_stays(place):
    for name in ("found_by_folder", "json", "in_package"):
        (place / f"{name}.py").write_text("def judge(response, answer):\n    return True\n")
    names = ["found_by_folder:judge", "json:loads", "not_here:judge", "package.in_package:judge"]

    def verifiers() -> list[Any]:
        settings = [{"task": {"name": "math", "data": "train.jsonl", "verifier": name}} for name in names]
        return [with_whole_paths(resolve([file_layer("t", s)])).sections.task.options["verifier"] for s in settings]

    assert verifiers() == [f"{place / 'found_by_folder.py'}:judge", *names[1:]]
    task = with_whole_paths(resolve([file_layer("t", {"task": {"name": "found_by_folder:judge"}})])).sections.task
    assert task.name == f"{place / 'found_by_folder.py'}:judge"


def prompts(*lengths: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"p{i}", "x", token_ids=(2,) * n) for i, n in enumerate(lengths))


def as_is(prompt: Prompt) -> Prompt:
    return prompt


def test_too_long_prompts_are_left_out_and_many_of_them_raise():
    rendered = RenderedPrompts(prompts(*[3] * 150, 9), as_is, max_tokens=8)
    assert (len(rendered), rendered.too_long) == (150, 1)
    with pytest.raises(ConfigError, match="2 of 12 prompts are too long, first p10 with 9 tokens: lower it"):
        RenderedPrompts(prompts(*[3] * 10, 9, 9), as_is, max_tokens=8, advice="lower it")


def test_generated_prompts_that_are_too_long_are_replaced_by_the_next_that_fits():
    lazy: Any = list(prompts(3, 9, 9, 4))
    rendered = RenderedPrompts(lazy, as_is, max_tokens=8)
    assert [rendered[i].id for i in range(4)] == ["p0", "p3", "p3", "p3"]
    with pytest.raises(ConfigError, match="too long"):
        RenderedPrompts(list(prompts(9)), as_is, max_tokens=8)[0]


def test_messages_become_plain_text_or_go_through_the_chat_template():
    words = toys.tokenizer()
    prompt = Prompt("p", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 x"}))
    assert plain_text(prompt.text) == "Be brief.\n\nProblem: 2 x\n\nSolution:"
    plain = render(words, prompt)
    assert plain.token_ids == tuple(words(plain_text(prompt.text))["input_ids"])
    with pytest.raises(ConfigError, match=r"no chat template. Set model.prompt_format=plain"):
        render(words, prompt, "chat")
    words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}x"
    assert render(words, prompt).token_ids != plain.token_ids
    assert render(words, prompt, "plain").token_ids == plain.token_ids


def given_a_template(base: Path, template: str) -> None:
    words = toys.tokenizer()
    words.chat_template = template
    words.save_pretrained(base)


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_SYSTEM, "System role not supported. Leave out the system message (task.system, or the one in the data)"),
        ("{{ missing.x }}", "'missing' is undefined."),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_chat_template_that_raises_ends_the_run_with_its_message(
    place, monkeypatch, capsys, template, words, command
):
    given_a_template(place / "base", template)
    (place / "base" / "model.safetensors").write_bytes(b"not weights")  # it is said before they load
    arguments = sets(*TASK, "task.system=Be brief.")
    if command == "train":
        arguments += sets("task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base", *SMALL)
    else:
        arguments = ["base", "--task", "math", "--data", "test.jsonl", *arguments]
    assert vapo(monkeypatch, command, *arguments) == 2
    told = capsys.readouterr().err
    assert "refuses prompt math/" in told
    assert words in told
    assert "model.prompt_format=plain" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("more", "times"), [([], 1), (["model.prompt_format=plain"], 0)])
def test_a_missing_chat_template_is_noted_once(place, monkeypatch, capsys, more, times):
    data = ["task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", *sets(*TASK, *data, *SMALL, *more)) == 0
    told = capsys.readouterr().out
    assert told.count("the tokenizer has no chat template: messages become plain text") == times


@pytest.mark.parametrize("preset", ["vapo", "grpo"])
def test_a_run_without_right_answers_ends_with_advice(place, monkeypatch, capsys, preset):
    (place / "mine.py").write_text("def names_the_digit(response, answer):\n    return False\n")
    data = ["task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base"]
    assert vapo(monkeypatch, "train", "--run-dir", "run", "--preset", preset, *sets(*TASK, *data, *SMALL)) == 0
    told = capsys.readouterr().out
    assert "ALARM 0 of 8 responses before training are right: nothing to learn" in told
    assert "0 of 32 responses in all 2 steps are right: nothing to learn" in told
    assert "see what the critic is worth" not in told
    assert "retrain longer" not in told
    assert vapo(monkeypatch, "resume", "run") == 0
    assert "0 of 32 responses in all 2 steps are right: nothing to learn" in capsys.readouterr().out


def test_a_verifier_can_be_a_python_function(place: Path, monkeypatch):
    import importlib.util

    import vapo

    monkeypatch.syspath_prepend(place)
    spec = importlib.util.spec_from_file_location("mine", place / "mine.py")
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    options = {"verifier": mine.names_the_digit, "template": "{problem}", "max_response_tokens": 8}
    settings = resolve([file_layer("test", _assigned(SMALL))]).as_dict()
    settings = {key: settings[key] for key in ("trainer", "evaluation", "checkpoint", "scale")}
    data = {"data": str(place / "train.jsonl"), "eval_data": str(place / "test.jsonl")}
    config = {**settings, "model": {"policy": str(place / "base")}, "task": {"name": "math", **options, **data}}
    run = vapo.train({**config, "algorithm": {"alpha": 2.0}}, place / "run")
    assert "mine.py:names_the_digit" in (run / "config.yaml").read_text()
    result = vapo.evaluate(run / "policy", "math", k=2, task_options={**options, **data})
    assert result.prompts == 4
    assert result.invalid_ratio == 0
    with pytest.raises(ConfigError, match="plain function at the top"):
        vapo.train({**config, "task": {"name": "math", "verifier": lambda response, answer: True, **data}})


def _assigned(assignments: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        (section, rest), *_ = config_layer(assignment).values.items()
        values.setdefault(section, {}).update(rest)
    return values


@pytest.mark.parametrize("other", ["answer", "verifier", "nothing"])
def test_scores_with_other_answers_or_another_verifier_are_not_compared(place: Path, monkeypatch, capsys, other):
    files = ["task.data=train.jsonl", "task.eval_data=test.jsonl", "model.policy=base"]
    small = sets(*SMALL, *TASK, *files)
    assert vapo(monkeypatch, "train", *small, "--run-dir", "one") == 0
    if other == "answer":
        rows = (place / "test.jsonl").read_text().replace('"answer": "9"', '"answer": "8"')
        (place / "test.jsonl").write_text(rows)
    if other == "verifier":
        (place / "mine.py").write_text(VERIFIER.replace("names_the_digit", "names_it"))
        small += sets("task.verifier=mine.py:names_it")
    assert vapo(monkeypatch, "train", *small, "--run-dir", "two", "--seed", "1") == 0
    code = vapo(monkeypatch, "compare", "one", "two")
    assert code == (0 if other == "nothing" else 2)
    assert ("not evaluated on the same held-out prompts" in capsys.readouterr().err) == (other != "nothing")
