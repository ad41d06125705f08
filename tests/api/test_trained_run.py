"""`run = vapo.train(...)`: what the run knows, where its progress is shown, and the observers that are told of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import command_line
import toys
import vapo
from vapo.api import trained_run
from vapo.errors import DataError, StoppedError
from vapo.models.loading import load_critic, load_policy
from vapo.reports.live import SilentView
from vapo.trainer.observer import Observer, Observers

WATCH = """
import vapo

class Steps(vapo.Observer):
    def step(self, metrics):
        with open("steps.txt", "a") as file:
            print(metrics["phase"], metrics["step"], file=file)

class Raises(vapo.Observer):
    def step(self, metrics):
        raise KeyError("no such figure")

class Nothing:
    pass

class Needs(vapo.Observer):
    def __init__(self, what):
        pass
"""


def settings(base: Path, **more) -> dict:
    config = toys.toy_config(base, {"trainer": {"steps": 2, "pretraining_steps": 1}}, *more.values()).as_dict()
    return {name: config[name] for name in ("model", "algorithm", "trainer", "evaluation", "checkpoint", "scale")}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toys.toy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory) -> vapo.TrainedRun:
    return vapo.train(settings(base), tmp_path_factory.mktemp("runs") / "one", task=toys.EchoTask(), silent=True)


def test_a_run_is_a_path(run: vapo.TrainedRun):
    assert Path(run) == run.path
    assert os.fspath(run / "policy") == f"{run}/policy"
    assert (run / "policy" / "model.safetensors").is_file()
    assert repr(run) == f"TrainedRun('{run.path}')"
    with pytest.raises(DataError, match="No run at nowhere"):
        vapo.TrainedRun("nowhere")


def test_figures_are_tables_and_lists_of_dicts_where_pandas_is_missing(run: vapo.TrainedRun, monkeypatch):
    pandas = pytest.importorskip("pandas")
    assert isinstance(run.metrics, pandas.DataFrame)
    assert list(run.metrics["phase"]) == ["pretrain", "train", "train"]
    assert list(run.evaluations["label"]) == ["before", "after"]
    monkeypatch.setattr(trained_run, "find_spec", lambda name: None)
    assert [line["step"] for line in run.metrics] == [1, 1, 2]


def test_samples_are_those_of_a_step_that_kept_them(run: vapo.TrainedRun):
    last = run.samples()
    assert len(last) == 32
    assert {"prompt", "response", "verdict", "reward", "tokens", "value", "advantage"} <= set(last.columns)
    assert len(last["tokens"][0]) == len(last["value"][0])
    assert len(run.samples(1, pretraining=True)) == 32
    with pytest.raises(DataError, match=r"no samples of step 7 of training; there are: 1, 2"):
        run.samples(7)


def test_models_are_loaded_once(run: vapo.TrainedRun):
    trained = load_policy(run / "policy").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in run.policy.state_dict().items())
    critic = load_critic(run / "critic")[0].state_dict()
    assert run.critic is run.critic
    assert all(torch.equal(value, critic[name]) for name, value in run.critic.state_dict().items())
    text = run.tokenizer("3 x 3", return_tensors="pt")
    assert run.critic(**text).logits.shape == (1, 3, 1)


def test_a_notebook_shows_scores_and_curves(run: vapo.TrainedRun):
    shown = run._repr_html_()
    assert "<td>avg@2</td>" in shown
    assert "<th>before</th>" in shown
    figure = run.plot()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_method_without_a_critic_and_a_run_that_has_not_ended(base: Path, tmp_path: Path):
    grpo = settings(base, grpo={"algorithm": {"preset": "grpo", "alpha": None}, "trainer": {"steps": 1}})
    grpo["algorithm"] = {"preset": "grpo"}
    run = vapo.train(grpo, tmp_path / "run", task=toys.EchoTask(), silent=True)
    assert run.critic is None
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(DataError, match="it is written when training ends"):
        vapo.TrainedRun(tmp_path / "begun").policy  # noqa: B018


def test_progress_is_printed_unless_silent(base: Path, tmp_path: Path, capsys):
    run = vapo.train(settings(base), tmp_path / "run", task=toys.EchoTask())
    said = capsys.readouterr().out
    assert "training 2/2" in said
    assert "avg@2" in said
    longer = vapo.resume(run, task=toys.EchoTask(), silent=True, changes={"trainer": {"steps": 3}})
    assert capsys.readouterr().out == ""
    assert list(longer.metrics["step"]) == [1, 1, 2, 3]


def test_a_run_trains_inside_an_event_loop(base: Path, tmp_path: Path):
    async def cell() -> vapo.TrainedRun:
        return vapo.train(settings(base), tmp_path / "run", task=toys.EchoTask(), silent=True)

    assert len(asyncio.run(cell()).metrics) == 3


def test_a_run_trains_in_a_thread_and_leaves_signals_alone(base: Path, tmp_path: Path):
    before, runs = signal.getsignal(signal.SIGINT), []
    during = []

    class Look(Observer):
        def step(self, metrics):
            during.append(signal.getsignal(signal.SIGINT))

    def work():
        runs.append(vapo.train(settings(base), tmp_path / "run", task=toys.EchoTask(), silent=True, observer=Look()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(runs[0].metrics) == 3
    assert during == [before] * 3


def test_ctrl_c_in_the_main_thread_saves_and_the_run_goes_on_later(base: Path, tmp_path: Path):
    class Interrupts(Observer):
        def step(self, metrics):
            if metrics["phase"] == "train" and metrics["step"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError, match="vapo resume"):
        vapo.train(settings(base), tmp_path / "run", task=toys.EchoTask(), silent=True, observer=Interrupts())
    assert signal.getsignal(signal.SIGINT) is before
    assert list(vapo.TrainedRun(tmp_path / "run").metrics["step"]) == [1, 1]
    assert list(vapo.resume(tmp_path / "run", task=toys.EchoTask(), silent=True).metrics["step"]) == [1, 1, 2]


class Alarms(SilentView):
    def __init__(self) -> None:
        self.alarms: list[str] = []
        self.steps: list[dict] = []

    def step(self, metrics):
        self.steps.append(metrics)

    def alarm(self, message):
        self.alarms.append(message)


def test_an_observer_that_raises_is_left_out_and_one_that_changes_a_line_changes_its_copy():
    class Raises(Observer):
        def step(self, metrics):
            metrics["reward"] = 7
            raise ValueError("bad luck")

    view, other = Alarms(), Alarms()
    both = Observers(view, [Raises(), other])
    for step in (1, 2):
        both.step({"step": step})
        both.note("nothing is asked of an observer that has only step()")
    assert view.steps == other.steps == [{"step": 1}, {"step": 2}]
    assert view.alarms == [
        "The observer Raises is left out from here: it raised ValueError: bad luck. The run goes on."
    ]


@pytest.fixture
def place(tmp_path: Path, base: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("watch.py").write_text(WATCH)
    return tmp_path


def test_train_and_resume_tell_the_observer_of_the_command_line(place: Path, monkeypatch, capsys):
    small = command_line.sets(
        "trainer.samples_per_step=16", "trainer.group_size=4", "trainer.minibatch_size=16", "scale.threads=1",
        "trainer.pretraining_steps=0", "evaluation.prompts=4", "rollout.max_response_tokens=8",
    )  # fmt: skip
    train = ["train", "--steps", "1", "--run-dir", "run", *small]
    assert command_line.vapo(monkeypatch, *train, "--observer", "watch.py:Steps") == 0
    resume = ["resume", "run", "--set", "trainer.steps=2", "--observer", "watch.py:Steps"]
    assert command_line.vapo(monkeypatch, *resume) == 0
    assert Path("steps.txt").read_text() == "train 1\ntrain 2\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py:Steps", "--observer: there is no file nowhere.py"),
        ("watch.py:Stepz", "has no function 'Stepz'"),
        ("watch.py:Nothing", "a Nothing is no observer: it has no phase()"),
        ("watch.py:Needs", "cannot be made without arguments: TypeError"),
        ("Steps", "'Steps' is not known here"),
    ],
)
def test_a_wrong_observer_is_one_line(place: Path, monkeypatch, capsys, name: str, words: str):
    assert command_line.vapo(monkeypatch, "train", "--run-dir", "run", "--observer", name) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not Path("run").exists()
