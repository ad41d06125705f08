"""The viewer in a real browser: it opens, is steered by keys, shares its state, and runs no text of a model."""

import pytest

from reports.browser import CHROMIUM, Browser
from reports.test_page import EVIL
from reports.test_view_data import indexed
from reports.test_view_page import evil_run
from reports.test_view_server import serving
from vapo.reports.page import write_report
from vapo.reports.view_data import ViewedRun
from vapo.reports.view_page import view_html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; data, server, markup and logic are tested without it"),
]
SETTLED = "document.querySelector('#viewer').ariaBusy === 'false'"
DRAWN = SETTLED + " && document.querySelector('.token') !== null"


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as opened:
        yield opened
        assert opened.errors == []


def text(browser, selector):
    return browser.ask(f"document.querySelector({selector!r}).innerText")


def test_keys_steer_it_and_the_address_follows(make_run, browser):
    with serving(make_run()) as server:
        browser.open(server.url, DRAWN)
        assert "step 3" in browser.ask("document.querySelector('#v-bar select').selectedOptions[0].textContent")
        assert browser.ask("document.querySelectorAll('.token').length") > 20
        browser.press("[")
        browser.wait(f"location.hash.includes('step=step_000002') && {SETTLED}")
        browser.press("l", "c")
        browser.wait("location.hash.includes('sample=1') && location.hash.includes('colour=advantage')")
        browser.wait(SETTLED)
        assert browser.ask("document.querySelector('.chips [aria-pressed=true]').innerText.trim()") == "1"
        browser.press("ArrowRight", "ArrowRight")
        browser.wait("location.hash.includes('token=1')")
        tip = text(browser, "#v-tip")
        for words in ("token 2 of", "value V", "advantage A", "TD error", "log p"):
            assert words in tip
        shared = browser.ask("location.href")
        browser.open(shared, DRAWN)
        assert browser.ask("document.querySelector('.pinned').place") == 1
        assert browser.ask("document.querySelector('.chips [aria-pressed=true]').innerText.trim()") == "1"
        browser.press("s")
        browser.wait("document.querySelectorAll('.card-of .token').length > 40")
        browser.press("?")
        assert browser.ask("document.querySelector('dialog').open")


def test_filters_and_search_leave_what_they_say(make_run, browser):
    path = make_run("grpo")
    records = [
        {"prompt_id": f"p{n // 4}", "prompt": f"question {n // 4}", "response": f"word{n}", "sample": n % 4,
         "reason": "", "verdict": "right" if n == 6 else "wrong", "reward": float(n == 6), "num_tokens": 1,
         "tokens": [f"word{n}"],
         "advantage": [0.5], "truncated": n == 3} for n in range(4000)
    ]  # fmt: skip
    indexed(path / "rollouts" / "step_000004.jsonl.gz", records)
    with serving(path) as server:
        browser.open(server.url, DRAWN)
        chosen = "document.querySelector('#v-chosen').innerText"
        browser.wait(f"{chosen}.startsWith('4,000 of 4,000 responses, 1,000 prompts')")
        assert browser.ask("document.querySelectorAll('.line').length") < 60  # only what is in view
        for state, shown in {"verdict=right": "word6", "end=cut": "word3", "q=WORD3999": "word3999"}.items():
            browser.open(f"{server.url}#{state}", DRAWN)
            browser.wait(f"{chosen}.startsWith('1 of 4,000 responses, one prompt')")
            browser.wait(f"document.querySelector('.text').innerText === {shown!r}")
        browser.open(f"{server.url}#q=nowhere", SETTLED)
        assert "No response of this step passes" in text(browser, "#v-main")


@pytest.mark.parametrize("served", [True, False])
def test_no_text_of_a_run_is_executed(make_run, browser, tmp_path, served):
    path = evil_run(make_run)
    (tmp_path / "page.html").write_text(view_html([ViewedRun(path)]), encoding="utf-8", errors="replace")
    with serving(path) as server:
        browser.open(server.url if served else (tmp_path / "page.html").as_uri(), DRAWN)
        assert browser.ask("document.images.length + document.querySelectorAll('iframe').length") == 0
        assert EVIL[:40] in browser.ask("document.querySelector('.text').textContent")
        assert EVIL[:40] in browser.ask("document.querySelector('.gold').textContent")
        browser.press("s")
        browser.wait(SETTLED)
        assert browser.ask("document.images.length") == 0


def test_turns_of_the_environment_are_set_apart(make_run, browser):
    path = make_run("grpo")
    record = {"prompt_id": "p", "prompt": [{"role": "user", "content": "guess"}], "response": "", "verdict": "right",
              "sample": 0, "reward": 1.0, "tokens": ["red", "no", "blue"], "advantage": [0.5, 0.5, 0.5],
              "turns": [["policy", 1], ["environment", 1], ["policy", 1]]}  # fmt: skip
    indexed(path / "rollouts" / "step_000004.jsonl.gz", [record])
    with serving(path) as server:
        browser.open(server.url, DRAWN)
        assert text(browser, ".environment").split() == ["environment", "no"]
        spans = "[...document.querySelectorAll('.text span')]"
        assert browser.ask(f"{spans}.map((s) => s.style.backgroundColor !== '')") == [True, False, True]
        assert browser.ask("[...document.querySelectorAll('.role')].map((r) => r.innerText)")[0] == "user"


def test_two_runs_show_the_same_prompt_beside_each_other(make_run, browser):
    with serving(make_run(), make_run("grpo")) as server:
        browser.open(server.url, "document.querySelectorAll('.pane h3').length === 2")
        browser.wait("[...document.querySelectorAll('.pane')].every((p) => p.innerText.length > 30)")
        assert "step 3" in text(browser, ".pane h3")


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_is_wider_than_the_window(make_run, browser, tmp_path, width, dark):
    browser.size(width, 800, dark=dark)
    with serving(make_run()) as server:
        browser.open(server.url, DRAWN)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        background = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
        browser.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_page_of_a_run_has_the_viewer_and_all_metrics(make_run, browser):
    browser.open(write_report(make_run()).as_uri(), DRAWN)
    browser.ask("document.querySelector('#m-details').open = true")
    browser.wait("document.querySelectorAll('.panel').length > 60")
    browser.ask("document.querySelector('#m-filter').value = 'accuracy'")
    browser.ask("document.querySelector('#m-filter').dispatchEvent(new Event('input'))")
    assert 0 < browser.ask("document.querySelectorAll('.panel').length") < 20
