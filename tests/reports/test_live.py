"""What the terminal shows: a panel on a terminal, plain lines elsewhere, and an honest estimate of the time left."""

import doctest
import io
import math
import re

import pytest
from rich.console import Console

from vapo.metrics import Phase
from vapo.reports import formatting, live, progress
from vapo.reports.formatting import figure
from vapo.reports.live import LiveView, SilentView, panel
from vapo.reports.progress import Progress, sparkline
from vapo.reports.runfiles import read_run

RESULT = {"step": 20, "label": "during", "k": 8, "avg": 0.5, "low": 0.46, "high": 0.54, "pass": {"8": 0.7}}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(step, **more):
    return {"phase": "train", "step": step, "reward": 0.4, "accuracy": 0.4, "completions/mean_length": 145.0} | more


def with_critic(step):
    return train(step, **{"value/explained_variance": 0.38, "value/loss": 0.031, "entropy": 1.23})


def drawn(state, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(panel(state, "maze · vapo"))
    return console.file.getvalue()


def plain(drive, seconds_per_step=3.0):
    clock, file = Clock(), io.StringIO()
    with LiveView(Console(file=file, width=80), title="maze · vapo", clock=clock) as view:
        drive(view, clock, seconds_per_step)
    return file.getvalue()


def ten_steps(view, clock, seconds):
    view.phase("train", 0, 10)
    for step in range(1, 11):
        clock.now += seconds
        view.step(with_critic(step))


@pytest.mark.parametrize("module", [formatting, progress])
def test_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


def test_a_log_file_gets_one_plain_line_per_step():
    lines = plain(ten_steps).splitlines()
    assert lines[:2] == ["maze · vapo", "training: 10 steps"]
    assert len(lines) == 12
    assert lines[2] == (
        "training 1/10  reward 0.400  accuracy 0.400  length 145  entropy 1.23  EV 0.380  value loss 0.031"
        "  3.0s/step  left 27s"
    )
    assert "left" not in lines[-1]


def test_quick_steps_share_a_line_but_the_last_always_has_one():
    lines = plain(ten_steps, seconds_per_step=0.5).splitlines()
    assert [line.split()[1] for line in lines if "accuracy" in line] == ["1/10", "5/10", "9/10", "10/10"]


def test_a_run_stopped_between_lines_still_says_its_last_step():
    def stopped(view, clock, seconds):
        view.phase("train", 0, 10)
        for step in (1, 2, 3):
            clock.now += 0.1
            view.step(train(step))

    assert "training 3/10" in plain(stopped)


def test_plain_lines_hold_no_control_codes_whoever_sends_them(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    def evil(view, clock, seconds):
        view.phase("tr\x1bain", 0, 2)
        view.progress("roll\rout", 1, None)
        view.note("saved \x1b[2J [bold]not markup[/bold]")
        view.alarm("entropy\nfell\x07")
        view.evaluation(RESULT)
        view.step(train(1))

    text = plain(evil)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "saved [2J [bold]not markup[/bold]" in text
    assert "ALARM entropy fell\n" in text
    assert "evaluation during, step 20: avg@8 0.500 [0.460, 0.540]  pass@8 0.700" in text


def test_long_notes_are_not_broken_into_lines():
    assert "x" * 300 in plain(lambda view, *_: view.note("x" * 300))


def test_slow_steps_say_now_and_then_what_they_do():
    def slow(view, clock, seconds):
        view.phase("train", 0, 2)
        for done in range(40):
            clock.now += 1
            view.progress("rollout", done, 128)

    lines = [line for line in plain(slow).splitlines() if "rollout" in line]
    assert [line.split()[-1] for line in lines] == ["0/128", "15/128", "30/128"]


def test_the_panel_shows_the_run_within_twelve_lines():
    clock = Clock()
    state = Progress(clock)
    state.enter("train", 0, 100)
    for step in range(1, 38):
        clock.now += 5.2
        state.step(with_critic(step) | {"accuracy": step / 40, "throughput/rollout_tokens_per_s": 41_200.0})
    state.evaluate(RESULT | {"step": 0, "label": "before", "avg": 0.1})
    state.evaluate(RESULT)
    state.alarm("entropy fell")
    state.doing = ("rollout", 34, 128)
    text = drawn(state)
    assert len(text.splitlines()) <= 12
    for part in ("training", "37/100", "3m 12s elapsed", "about 5m 28s left", "5.2s/step", "0.925", "0.380", "0.031"):
        assert part in text
    for part in (
        "145",
        "1.23",
        "41.2k",
        "avg@8 [0.460, 0.540] at step 20, from 0.100",
        "entropy fell",
        "rollout 34/128",
    ):
        assert part in text
    assert "▁" in text
    assert "█" in text
    assert all(len(line) <= 60 for line in drawn(state, width=60).splitlines())


def test_the_panel_of_a_run_without_a_critic_has_no_critic_row():
    state = Progress(Clock())
    assert "starting" in drawn(state)
    state.enter("train", 0, 5)
    state.step(train(1, entropy=None))
    text = drawn(state)
    assert "EV" not in text
    assert "entropy" not in text
    assert "0.400" in text


def test_a_terminal_gets_a_panel_and_notes_above_it_and_is_left_in_order():
    file = Terminal()
    console = Console(file=file, width=90, height=30, force_terminal=True, force_interactive=True, color_system=None)
    with pytest.raises(KeyboardInterrupt), LiveView(console, title="maze") as view:  # noqa: PT012
        view.phase("train", 0, 3)
        view.step(with_critic(1))
        view.note("saved step 1")
        raise KeyboardInterrupt
    text = file.getvalue()
    assert "saved step 1" in text
    assert "1/3" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is back


def test_time_left_follows_recent_steps_and_each_phase_counts_alone():
    clock = Clock()
    state = Progress(clock)
    assert math.isnan(state.seconds_left)
    state.enter("pretrain", 0, 4)
    for step in range(1, 5):
        clock.now += 1
        state.step({"phase": "pretrain", "step": step, "pretrain/explained_variance": 0.2})
    assert math.isnan(state.seconds_left)  # done
    state.enter("train", 0, 50)
    assert math.isnan(state.seconds_left)  # pretraining steps say nothing about training steps
    for step in range(1, 31):
        clock.now += 10 if step <= 20 else 4
        state.step(train(step))
    assert state.seconds_per_step == pytest.approx(4)  # the last ten
    assert state.seconds_left == pytest.approx(80)
    clock.now += 1.5
    assert state.seconds_left == pytest.approx(78.5)
    clock.now += 100
    assert state.seconds_left == pytest.approx(76)  # a long step cannot promise more than its own time


def test_a_resumed_run_counts_from_where_it_stopped():
    clock = Clock()
    state = Progress(clock)
    state.enter("train", 40, 50)
    clock.now += 3
    state.step(train(41))
    assert (state.done, state.seconds_left) == (41, pytest.approx(27))


def test_the_phases_own_explained_variance_is_shown():
    state = Progress(Clock())
    state.enter("pretrain", 0, 4)
    state.step({"step": 1, "pretrain/explained_variance": 0.21, "pretrain/value_loss": None})
    explained, loss = state.value_figures
    assert explained == 0.21
    assert math.isnan(loss)
    assert ("EV", "0.210") in state.figures()


def test_a_recorded_run_shows_its_explained_variance_in_both_phases(make_run):
    run = read_run(make_run())

    def replay(view, clock, seconds):
        for phase in (Phase.PRETRAIN, Phase.TRAIN):
            rows = run.phase(phase)
            view.phase(phase, 0, len(rows))
            for row in rows:
                clock.now += seconds
                view.step(row)

    lines = plain(replay).splitlines()
    keys = ("pretrain/explained_variance", "value/explained_variance")
    explained = [row[key] for row in run.metrics for key in keys if key in row]
    shown = [line for line in lines if "EV" in line]
    assert [line.split("EV ")[1].split()[0] for line in shown] == [figure(value) for value in explained]
    assert shown[0].startswith("value pretraining 1/2")


def test_sparklines_show_the_whole_series_and_go_below_zero():
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert sparkline([-1.0, 1.0], 8) == "▁█"
    assert len(sparkline([0.5] * 1000, 28)) == 28


def test_a_silent_view_takes_every_call_and_prints_nothing(capsys):
    with SilentView() as view:
        view.phase("train", 0, 1)
        view.progress("rollout", 1, None)
        view.step(train(1))
        view.note("x")
        view.alarm("y")
        view.evaluation(RESULT)
    assert capsys.readouterr() == ("", "")
    calls = {"phase", "progress", "step", "note", "alarm", "evaluation"}
    assert calls <= set(dir(live.LiveView)) & set(dir(SilentView))
