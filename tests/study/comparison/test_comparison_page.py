"""The page needs no network and shows labels as text."""

import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vapo.algo.presets import TECHNIQUES
from vapo.study.comparison import compare_runs, comparison_html, read_results
from vapo.study.comparison.drawing import colours, fitted, spread_out
from vapo.study.comparison.figures import main_figure, variations_figure

EVIL = "<script>alert(1)</script><img src=x>$x$"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_no_network_and_no_script(written):
    page = (written / "comparison.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "link", "iframe", "object", "base", "img"), tag
        for name in ("src", "href", "xlink:href"):
            assert not (attributes.get(name) or "").startswith(("http", "//")), attributes
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert len(page) < 1_000_000


def test_the_page_shows_heading_notes_methods_crashes_and_critics(written):
    text = " ".join(" ".join(Tags((written / "comparison.html").read_text(encoding="utf-8")).text).split())
    for part in (
        "The whole table",
        "vapo ablate, three seeds",
        "vapo without clip-higher",
        "counted as a crash",
        "critic-0",
    ):
        assert part in text
    assert text.count("All 36 runs") == 1


def test_html_in_labels_is_shown_as_text(make_cell, tmp_path):
    card = {"method": EVIL, "base": EVIL, "seed": 0, "outcome": "finished", "critic": None}
    runs = [make_cell("a"), make_cell("b", cell=card)]
    compare_runs(runs, tmp_path / "out", heading=EVIL, notes=[EVIL])
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert not {"script", "img"} & {tag for tag, _ in tags.found}
    assert "<script>alert(1)</script>" in "".join(tags.text)  # the text is complete


def test_the_page_can_be_made_from_results_that_do_not_record_resumes(written):
    results = read_results(written / "results.json")
    for run in results["runs"]:
        del run["resumed"]
    assert "All 36 runs" in comparison_html(results)


def test_the_figure_is_1200_pixels_wide(written):
    assert struct.unpack(">I", (written / "curves.png").read_bytes()[16:20]) == (1200,)


def test_the_colour_of_a_method_does_not_depend_on_the_other_methods():
    alone = colours(["vapo", "dapo"], "vapo")
    among = colours(["ppo", "vc-ppo", "grpo", "dapo", "vapo", "vapo without x"], "vapo")
    assert (alone["vapo"], alone["dapo"]) == (among["vapo"], among["dapo"])
    assert "vapo without x" not in among
    assert len(set(among.values())) == 5
    assert set(colours(["vapo", "vapo without x"], "vapo")) == {"vapo", "vapo without x"}


def test_the_reference_has_a_colour_and_so_a_curve_among_many_methods():
    chosen = colours(["ppo", "vc-ppo", "grpo", "dapo", "vapo", "vapo2", "rloo"], "vapo2")
    assert len({*chosen.values()}) == 6
    assert "vapo2" in chosen
    assert "rloo" not in chosen


@pytest.mark.parametrize("reference", ["vapo without x", "grpo", "dapo", "rloo"])
def test_six_methods_have_colours_whichever_is_the_reference(reference):
    methods = ["vapo without x", "vapo2", "grpo", "dapo", "rloo", "vapo with a group baseline"]
    assert len({*colours(methods, reference).values()}) == 6


def test_more_methods_than_five_have_colours_where_those_suffice():
    methods = ["grpo", "dapo", "vapo without x", "rloo", "vapo with a group baseline", "vapo2 without x"]
    assert len({*colours(methods, "vapo without x").values()}) == 6


def test_the_title_over_the_differences_stays_within_the_figure(written):
    results = read_results(written / "results.json")
    for entry in results["methods"]:
        if entry["method"] == results["reference"]:
            entry["method"] = "vapo without value-pretraining"
    results["reference"] = "vapo without value-pretraining"
    figure = main_figure(results, heading=True)
    (title,) = figure.findobj(lambda part: isinstance(part, Text) and part.get_text().startswith("Difference to"))
    assert title.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1 < figure.bbox.x1


def test_a_long_title_stays_within_the_figure(written):
    results = read_results(written / "results.json")
    results["heading"] = "How far can a title go on before the figure is too narrow for it? " * 3
    figure = main_figure(results, heading=True)
    (heading,) = figure.texts
    assert heading.get_text().count("\n") == 1
    assert heading.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1 < figure.bbox.x1


def test_the_panels_of_variations_have_a_height_where_no_run_solves_anything(make_cell, tmp_path):
    runs = [make_cell(t, without=[t], k=4, right=[[0] * 4, [0] * 4]) for t in list(TECHNIQUES)[:6]]
    results = compare_runs([make_cell("vapo", k=4, right=[[0] * 4, [0] * 4]), *runs], tmp_path / "out")
    assert {axes.get_ylim() for axes in variations_figure(results).axes} == {(0.0, 0.05)}


def test_labels_are_spread_out_in_the_same_order():
    assert spread_out([0.5, 0.5, 0.9], 0.2, 0.0, 1.0) == [0.4, 0.6, 0.9]
    moved = spread_out([0.0, 0.01, 0.0, 1.0, 0.99], 0.1, 0.0, 1.0)
    assert sorted(moved) == [moved[i] for i in (0, 2, 1, 4, 3)]
    gaps = [b - a for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False)]
    assert min(gaps) >= 0.1 - 1e-6
    assert (min(moved), max(moved)) == (0.0, 1.0)


class Nesting(HTMLParser):
    """Raises AssertionError if an end tag does not match the last open element."""

    void = frozenset({"meta", "link", "br", "hr", "img", "input", "col"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_the_elements_of_the_page_are_nested_correctly(written):
    page = Nesting()
    page.feed((written / "comparison.html").read_text())
    page.close()
    assert page.open == []


@pytest.mark.slow
def test_a_browser_renders_the_page(written, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium; the structure is tested above without it")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (written / "comparison.html").as_uri()
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=120
    )
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize(
    "name", ["vapo without decoupled-gae, group-sampling and length-adaptive-gae", "W" * 90, "i" * 400]
)
def test_labels_are_no_wider_than_their_place(name):
    from matplotlib.textpath import TextPath

    label = fitted(name, 2.0, 8.5, lines=2, weight="bold")
    lines = label.split("\n")
    assert len(lines) == 2
    for line in lines:
        assert TextPath((0, 0), line, size=8.5, prop={"weight": "bold"}).get_extents().width <= 72 * 2.0
    kept = label.replace("\n", "").removesuffix("…").replace(" ", "")
    assert name.replace(" ", "").startswith(kept)
    assert len(kept) > 15


def test_a_label_that_fits_is_whole_and_breaks_after_words_and_hyphens():
    assert fitted("vapo", 2.0, 8.5) == "vapo"
    assert fitted("vapo without length-adaptive-gae", 1.6, 8.5, lines=2) == "vapo without length-\nadaptive-gae"
    assert fitted("", 1.0, 8.5) == ""


def test_a_label_in_a_script_that_the_figures_font_lacks_is_cut_as_one_em_a_character():
    assert fitted("vapo 方法", 2.0, 8.5) == "vapo 方法"
    assert fitted("方" * 40, 1.0, 9) == "方" * 7 + "…"  # 72 points have room for eight of nine
