"""The live view: a panel on a terminal, plain lines elsewhere, and the estimate of the time left."""

import doctest
import io
import math
import re
import sys
import types

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


def rendered_panel(state, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(panel(state, "maze · vapo"))
    return console.file.getvalue()


def plain_output(drive, seconds_per_step=3.0):
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
def test_docstring_examples_pass(module):
    assert doctest.testmod(module).failed == 0


def test_a_log_file_gets_one_plain_line_per_step():
    lines = plain_output(ten_steps).splitlines()
    assert lines[:2] == ["maze · vapo", "training: 10 steps"]
    assert len(lines) == 12
    assert lines[2] == (
        "training 1/10  reward 0.400  accuracy 0.400  length 145  entropy 1.23  explained var 0.380  value loss 0.031"
        "  3.0s/step  left 27s"
    )
    assert "left" not in lines[-1]


def test_fast_steps_have_a_line_each():
    lines = plain_output(ten_steps, seconds_per_step=0.01).splitlines()
    assert [line.split()[1] for line in lines if "accuracy" in line] == [f"{step}/10" for step in range(1, 11)]


def test_the_speed_of_a_step_stands_before_that_of_its_sampling():
    state = Progress(Clock())
    state.enter("train", 0, 2)
    state.step(train(1) | {"throughput/tokens_per_s": 1200.0, "throughput/rollout_tokens_per_s": 9000.0})
    assert "tok/s 1.20k  sampler tok/s 9.00k" in state.step_line()


class Page:
    """What a notebook shows of a view."""

    def __init__(self, monkeypatch):
        self.shown: list[str] = []
        module = types.ModuleType("IPython.display")
        module.HTML = str
        module.display = lambda html, display_id: self.shown.append(html) or self
        monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", module)

    def update(self, html: str) -> None:
        self.shown.append(html)


def test_a_notebook_gets_html_that_is_updated_at_most_once_a_second(monkeypatch):
    page, clock, file = Page(monkeypatch), Clock(), io.StringIO()
    with LiveView(Console(file=file, force_jupyter=True), title="maze · vapo", clock=clock) as view:
        view.phase("train", 0, 10)
        for step in range(1, 11):
            clock.now += 0.5
            view.step(with_critic(step))
        view.alarm("entropy <fell>")
        view.evaluation(RESULT)
    assert file.getvalue() == ""
    assert 6 <= len(page.shown) <= 9  # the first, the last, and five or six seconds between them
    last = page.shown[-1]
    for words in ('value="10" max="10"', "training 10/10", "ALARM entropy &lt;fell&gt;", "0.380 ▄", "avg@8 0.500"):
        assert words in last, words
    assert "about" not in last  # no time is left


def test_plain_lines_contain_no_control_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    def send_control_codes(view, clock, seconds):
        view.phase("tr\x1bain", 0, 2)
        view.progress("roll\rout", 1, None)
        view.note("saved \x1b[2J [bold]not markup[/bold]")
        view.alarm("entropy\nfell\x07")
        view.evaluation(RESULT)
        view.step(train(1))

    text = plain_output(send_control_codes)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "saved [2J [bold]not markup[/bold]" in text
    assert "ALARM entropy fell\n" in text
    assert "evaluation during, step 20: avg@8 0.500 [0.460, 0.540]  pass@8 0.700" in text


def test_long_notes_stay_on_one_line():
    assert "x" * 300 in plain_output(lambda view, *_: view.note("x" * 300))


def test_a_slow_step_prints_its_progress_every_15_seconds():
    def slow(view, clock, seconds):
        view.phase("train", 0, 2)
        for done in range(40):
            clock.now += 1
            view.progress("rollout", done, 128)

    lines = [line for line in plain_output(slow).splitlines() if "rollout" in line]
    assert [line.split()[-1] for line in lines] == ["0/128", "15/128", "30/128"]


def test_the_panel_has_at_most_twelve_lines_and_shows_all_metrics():
    clock = Clock()
    state = Progress(clock)
    state.enter("train", 0, 100)
    for step in range(1, 38):
        clock.now += 5.2
        state.step(with_critic(step) | {"accuracy": step / 40, "throughput/tokens_per_s": 41_200.0})
    state.evaluate(RESULT | {"step": 0, "label": "before", "avg": 0.1})
    state.evaluate(RESULT)
    state.alarm("entropy fell")
    state.activity = ("rollout", 34, 128)
    text = rendered_panel(state)
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
    assert all(len(line) <= 60 for line in rendered_panel(state, width=60).splitlines())


def test_the_panel_of_a_run_without_a_critic_has_no_critic_row():
    state = Progress(Clock())
    assert "starting" in rendered_panel(state)
    state.enter("train", 0, 5)
    state.step(train(1, entropy=None))
    text = rendered_panel(state)
    assert "explained var" not in text
    assert "entropy" not in text
    assert "0.400" in text


def test_a_terminal_shows_panel_and_notes_and_gets_its_cursor_back_after_an_error():
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


def test_time_left_uses_the_last_ten_steps_of_the_current_phase():
    clock = Clock()
    state = Progress(clock)
    assert math.isnan(state.seconds_left)
    state.enter("pretrain", 0, 4)
    for step in range(1, 5):
        clock.now += 1
        state.step({"phase": "pretrain", "step": step, "pretrain/explained_variance": 0.2})
    assert math.isnan(state.seconds_left)  # done
    state.enter("train", 0, 50)
    assert math.isnan(state.seconds_left)  # pretraining steps do not count
    for step in range(1, 31):
        clock.now += 10 if step <= 20 else 4
        state.step(train(step))
    assert state.seconds_per_step == pytest.approx(4)  # the last ten
    assert state.seconds_left == pytest.approx(80)
    clock.now += 1.5
    assert state.seconds_left == pytest.approx(78.5)
    clock.now += 100
    assert state.seconds_left == pytest.approx(76)  # a long step subtracts at most its expected time


def test_a_resumed_run_counts_from_its_saved_step():
    clock = Clock()
    state = Progress(clock)
    state.enter("train", 40, 50)
    clock.now += 3
    state.step(train(41))
    assert (state.done, state.seconds_left) == (41, pytest.approx(27))


def test_the_first_step_of_a_phase_counts_until_there_is_another():
    clock = Clock()
    state = Progress(clock)
    for phase in ("pretrain", "train"):
        state.enter(phase, 0, 10)
        clock.now += 30
        state.step(train(1))
        assert state.seconds_left == pytest.approx(270)
        for step in (2, 3):
            clock.now += 2 * step
            state.step(train(step))
        assert state.seconds_per_step == pytest.approx(5)
        assert state.seconds_left == pytest.approx(35)


def test_the_time_left_follows_steps_that_each_take_longer():
    clock = Clock()
    state = Progress(clock)
    state.enter("pretrain", 0, 10)
    for step, seconds in enumerate((9, 1, 2, 3), start=1):  # the first one warms up
        clock.now += seconds
        state.step(train(step))
    assert state.seconds_left == pytest.approx(6 * 3)
    clock.now += 1
    state.step(train(5))
    assert state.seconds_left == pytest.approx(5 * 7 / 4)


def test_an_evaluation_before_the_first_step_is_no_part_of_it():
    clock = Clock()
    state = Progress(clock)
    state.enter("train", 40, 50)
    clock.now += 100
    state.evaluate({"step": 40, "avg": 0.5})
    clock.now += 3
    state.step(train(41))
    assert state.seconds_left == pytest.approx(27)
    clock.now += 20
    state.evaluate({"step": 41, "avg": 0.5})
    clock.now += 3
    state.step(train(42))
    assert state.seconds_per_step == pytest.approx(23)  # one that comes again does count


def test_pretraining_shows_its_own_explained_variance():
    state = Progress(Clock())
    state.enter("pretrain", 0, 4)
    state.step({"step": 1, "pretrain/explained_variance": 0.21, "pretrain/value_loss": None})
    explained, loss = state.value_figures
    assert explained == 0.21
    assert math.isnan(loss)
    assert ("explained var", "0.210") in state.figures()


def test_a_recorded_run_shows_its_explained_variance_in_both_phases(make_run):
    run = read_run(make_run())

    def replay(view, clock, seconds):
        for phase in (Phase.PRETRAIN, Phase.TRAIN):
            rows = run.phase(phase)
            view.phase(phase, 0, len(rows))
            for row in rows:
                clock.now += seconds
                view.step(row)

    lines = plain_output(replay).splitlines()
    keys = ("pretrain/explained_variance", "value/explained_variance")
    explained = [row[key] for row in run.metrics for key in keys if key in row]
    shown = [line for line in lines if "explained var" in line]
    assert [line.split("explained var ")[1].split()[0] for line in shown] == [figure(value) for value in explained]
    assert shown[0].startswith("value pretraining 1/2")


def test_sparklines_average_long_series_and_accept_negative_values():
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert sparkline([-1.0, 1.0], 8) == "▁█"
    assert len(sparkline([0.5] * 1000, 28)) == 28


def test_a_silent_view_accepts_every_call_and_prints_nothing(capsys):
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


def test_a_character_that_the_stream_cannot_encode_does_not_end_the_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    live.best_effort_console(stream).print("λ = 0.95, 50 ±")
    assert stream.buffer.getvalue().decode("latin-1") == "? = 0.95, 50 ±\n"
