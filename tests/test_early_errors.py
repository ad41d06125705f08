"""A user's mistakes that can be seen without torch are reported before torch loads, which takes seconds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vapo.session.config import resolve
from vapo.session.layers import recipe_layer

SCRIPT = """
import sys
from vapo import cli
for line in sys.stdin:
    sys.argv = ["vapo", *__import__("json").loads(line)]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    loaded = [name for name in ("torch", "transformers") if name in sys.modules]
    print("END", code, *loaded, file=sys.stderr, flush=True)
"""

MISTAKES = {
    "plan --cluster 8xB9000": ("no device is called 'B9000'. There are: H100", "cpu"),
    "make-base nosuch": ("There is no built-in task 'nosuch'. There are: maze", "codebreaker"),
    "train --set task.name=nosuch": ("There is no task 'nosuch'. There are: maze", "package.module:function"),
    "plan --cluster 8xH1000": ("no device is called 'H1000'", "There are: H100, H200"),
    # train
    "train --set model.policy=./nowhere": ("./nowhere does not exist", "Check the path"),
    "train --set model.policy=empty": ("empty has no config.json", "written by `save_pretrained`"),
    "train --set model.policy=none.gguf": ("none.gguf does not exist", "Check the path"),
    "train --set model.policy=notes.txt": ("notes.txt is a file", "Give the folder of a model"),
    "train --set model.policy=run": ("run is a run directory", "Give its policy/"),
    "train --critic ./nowhere": ("./nowhere does not exist", "Check the path"),
    """train --set "algorithm.credit.frozen=['*']" """: ("freezes the whole critic", "Name a part"),
    "train --set algorithm.credit.frozen=abc": ("takes a list of names, [a, b], got 'abc'", "vapo settings"),
    "train --set 'algorithm.credit.value_tokens={kind: anchors, fractions: .5}'": (
        "takes a list of numbers",
        "got 0.5",
    ),
    "train --set 'algorithm.credit.value_tokens={kind: anchors, fractions: [0, 0.5]}'": (
        "must be numbers in (0, 1], got [0.0, 0.5]",
        "SP3O uses",
    ),
    "train --set algorithm.credit.baseline=group --set trainer.group_size=1": (
        "needs at least 2 responses per prompt, got 1",
        "Raise trainer.group_size",
    ),
    "train --set 'algorithm.credit.head={kind: hl_gauss, low: 0.2, high: 1.2}'": (
        "does not hold the critic's targets",
        "Widen low and high",
    ),
    "train --set algorithm.k=0.5 --set algorithm.alpha=1": ("two rules for one lambda", "Set one of them"),
    "train --set task.name=mase": ("There is no task 'mase'", "did you mean 'maze'"),
    "train --set task.sidde=5": ("has no option 'sidde'", "did you mean 'side'"),
    "train --set task.side=50": ("task.side", "from 4 to 9"),
    "train --set task.side=7": ("made for other task options: side=7", "Make a base model"),
    "train --set task.name=walk --set task.name=math": ("no problems of its own", "task.data=FILE"),
    "train --set task.name=math --set task.data=none.jsonl": ("There is no file none.jsonl", "Check the path"),
    "train --set task.name=math --set task.data=notes.txt": ("notes.txt is none of .jsonl", "Convert it"),
    "train --set task.name=math --set task.data=data.jsonl": (
        "No base model ships for task 'math'",
        "Set model.policy",
    ),
    "train --set task.name=math --set task.data=data.jsonl --set task.verifier=none.py:f": (
        "task.verifier: there is no file none.py",
        "Check the path",
    ),
    "train --set task.name=math --set task.data=data.jsonl --set task.verifier=nosuch.module:f": (
        "no module 'nosuch'",
        "install it",
    ),
    "train --set task.name=math --set task.data=data.jsonl --set task.verifier=mats": (
        "'mats' is not known here",
        "Check the name",
    ),
    "train --set task.name=none.py:make": ("task.name: there is no file none.py", "Check the path"),
    "train --set task.name=nosuch.module:make": ("no module 'nosuch'", "install it"),
    "train --run-dir run": ("run is not empty", "vapo resume run"),
    "train none.yaml": ("none.yaml", "Check the path"),
    "train --set trainer.stepz=3": ("trainer.stepz", "did you mean 'steps'"),
    # resume
    "resume nowhere": ("nowhere is not a run directory", "Check the path"),
    "resume empty": ("empty is not a run directory", "Check the path"),
    "resume run --set trainer.stepz=3": ("trainer.stepz", "did you mean 'steps'"),
    "resume run-without-data": ("There is no file gone.jsonl", "Check the path"),
    # eval
    "eval ./nowhere": ("./nowhere does not exist", "Check the path"),
    "eval runs/nowhere": ("runs/nowhere does not exist", "Check the path"),
    "eval empty": ("empty has no config.json", "written by `save_pretrained`"),
    "eval run": ("neither a policy/ nor a healthy checkpoint", "vapo resume run"),
    "eval some/model": ("its task is not known", "--task maze"),
    "eval builtin --task mase": ("There is no task 'mase'", "did you mean 'maze'"),
    "eval builtin --task none.yaml": ("none.yaml", "Check the path"),
    "eval some/model --task math --data none.jsonl": ("There is no file none.jsonl", "Check the path"),
    "eval some/model --task math --data data.jsonl --set task.verifier=none.py:f": (
        "no file none.py",
        "Check the path",
    ),
    "eval builtin -k 0": ("-k", "at least 1"),
    "eval builtin -k many": ("-k", "takes a whole number"),
    "eval builtin --temperature -1": ("--temperature", "at least 0"),
    "eval builtin --top-p 2": ("evaluation.top_p must be in (0, 1]", "got 2"),
    "eval builtin --prompts 0": ("--prompts", "at least 1"),
    "eval builtin --seed -1": ("--seed", "at least 0"),
    "eval builtin --set evaluation.temperature=0.5": ("--set evaluation.temperature", "Use --temperature"),
    "eval builtin --set evaluation.top_p=1": ("--set evaluation.top_p", "Use --top-p"),
    "eval builtin -k 4 --set evaluation.samples_per_prompt=8": ("--set evaluation.samples_per_prompt", "Use -k"),
    "critic --policy builtin --set model.critic=d": ("--set model.critic", "Use --critic"),
    "critic --policy builtin --set model.policy=d": ("--set model.policy", "Use --policy"),
    "critic --policy builtin --set evaluation.temperature=0": ("evaluation.temperature", "rollout.temperature"),
    "critic run --set rollout.temperature=0.7": (
        "--set rollout.temperature",
        "Use a run with that rollout.temperature",
    ),
    "critic run --set rollout.top_p=0.7": ("--set rollout.top_p", "Use none: responses are drawn as in training"),
    "eval builtin --set model.policy=run": ("--set model.policy", "Use the argument RUN|MODEL"),
    "eval builtin --set model.critic=run/critic": ("--set model.critic", "Use --critic"),
    "eval builtin --critic ./nowhere": ("./nowhere does not exist", "Check the path"),
    "eval builtin --critic nothere": ("Cannot load the critic: nothere does not exist", "Check the path"),
    "critic run -k 1": ("--continuations must be at least 2", "1"),
    "critic run --critic nothere": ("Cannot load the critic: nothere does not exist", "Check the path"),
    "critic run --critic empty": ("empty has no config.json", "written by `save_pretrained`"),
    "eval builtin --critic empty --rank worst": ("--rank takes best-of-n and weighted-vote", "'worst'"),
    "eval builtin --rank best-of-n": ("--rank needs the critic", "--critic runs/NAME/critic"),
    "eval builtin --tpo 3": ("--tpo", "vapo eval --help"),
    "eval": ("Missing argument", "vapo eval --help"),
    # compare, ablate and the others
    "compare nowhere": ("No run at nowhere", "Name the --run-dir"),
    "compare run nowhere": ("No run at nowhere", "Name the --run-dir"),
    "compare --from none.json": ("none.json", "Name a results.json"),
    "compare": ("vapo compare takes run directories", "--from results.json"),
    "ablate none.yaml": ("none.yaml", "Check the path"),
    "ablate nosuch": ("No study is called 'nosuch'", "there are: "),
    "ablate study.yaml": ("./nowhere does not exist", "Check the path"),
    "report nowhere": ("No run at nowhere", "Name the --run-dir"),
    "make-base mase": ("There is no built-in task 'mase'", "did you mean 'maze'"),
    "make-base maze --out run": ("run exists and is not an empty folder", "Choose another --out"),
    "chaos --scale -j 4": ("--jobs", "Leave out --scale or --jobs"),
    "ablate study.yaml --pause --dry-run": ("--dry-run", "Leave out"),
    "ablate study.yaml --go-on --dry-run": ("--dry-run", "Leave out"),
    "view run --out p.html --port 0": ("--port", "Leave out --out or --port"),
    "view run --out p.html --open": ("--open", "Leave out --out or --open"),
    "chaos --out run": ("run exists and is not an empty folder", "Choose another --out"),
    "nosuch": ("No such command 'nosuch'", "vapo --help"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """By command: what it printed on stderr, and its exit code with the heavy modules loaded by then."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "empty").mkdir()
    (folder / "notes.txt").touch()
    (folder / "data.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    (folder / "study.yaml").write_text("methods: [ppo]\nbases: [./nowhere]\n")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(resolve([recipe_layer("maze")]).to_yaml())
    (folder / "run" / "metrics.jsonl").touch()
    (folder / "run-without-data").mkdir()
    gone = {"task": {"name": "math", "data": "gone.jsonl"}}
    (folder / "run-without-data" / "config.yaml").write_text(yaml.safe_dump(gone))
    before = sorted(folder.rglob("*"))
    lines = "".join(json.dumps(shlex.split(command)) + "\n" for command in MISTAKES)
    # one process for all: torch stays loaded, so that the first command to load it fails, and all after it
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=lines, capture_output=True, text=True, cwd=folder)
    assert done.stdout == ""
    assert sorted(folder.rglob("*")) == before
    parts = done.stderr.split("END ")
    said = [parts[0], *(part.partition("\n")[2] for part in parts[1:])]
    ends = [part.partition("\n")[0] for part in parts[1:]]
    assert len(ends) == len(MISTAKES), done.stderr
    return dict(zip(MISTAKES, zip(said, ends, strict=False), strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_before_torch_loads(command: str, answers: dict[str, tuple[str, str]]):
    said, end = answers[command]
    for words in MISTAKES[command]:
        assert words in said
    assert said.count("\n") == 1
    assert end == "2"


def test_no_command_prints_the_help(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "vapo"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: vapo" in done.stdout
