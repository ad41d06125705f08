"""Tables, picture and page of a judged critic, made from the content of results.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vapo.evals.continuations import ContinuedPrompt, Prefix, Response
from vapo.evals.judgement import judge
from vapo.json_text import json_text
from vapo.reports.critic_files import judgement_html, write_judgement
from vapo.reports.critic_tables import judgement_tables, number_headings, number_rows
from vapo.types import Prompt

HEADING = {
    "format": 1, "name": "run", "policy": "run/policy", "critic": "run/critic", "critic_origin": "saved critic",
    "method": "vapo", "task": "echo", "seed": 0, "temperature": 1.0, "max_response_tokens": 8, "reward": [0.0, 1.0],
}  # fmt: skip


def results(*, critic: bool = True, always_wrong: bool = False, judged: bool = True, **heading: Any) -> dict[str, Any]:
    """What `vapo critic` writes for ten prompts of chances 0, .1, ..., .9, read back from JSON."""
    rng = np.random.default_rng(0)
    continued = []
    for p in range(10):
        chance = 0.0 if always_wrong else p / 10
        prefixes = tuple(Prefix(g, 4 * (g > 0), judged * int(rng.binomial(4, chance)), 4 * judged) for g in range(4))
        verdicts = [bool(rng.random() < chance) if judged else None for _ in range(4)]
        told = tuple(Response((2,) * 8, verdicts[g], False, (0, g or 1)) for g in range(4))
        continued.append(ContinuedPrompt(Prompt(f"p{p}", "x"), told, prefixes))
    answers = np.tile(np.arange(10)[:, None, None] / 10, (1, 4, 2)) if critic else None
    found = judge(continued, answers, fractions=(0, 0.5), continuations=4)
    whole = {**HEADING, **({} if critic else {"critic": None, "critic_origin": None}), **heading, **found.summary()}
    return json.loads(json_text(whole))


def printed(told: dict[str, Any]) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in judgement_tables(told):
        console.print(table)
    console.file.close()
    return console.export_text()


def test_one_row_for_each_number_and_one_column_for_each_position_and_all_of_them():
    told = results()
    assert number_headings(told) == ["position", "prompt", "50 %", "all"]
    rows = dict(number_rows(told))
    assert list(rows)[:3] == ["ceiling", "critic explains", "bias"]
    assert {len(cells) for cells in rows.values()} == {3}
    ceiling, bias = told["figures"]["ceiling"], told["by_position"]["bias"][1]
    assert rows["ceiling"][2] == (
        f"{100 * ceiling['value']:.0f} %", f"[{100 * ceiling['low']:.0f}, {100 * ceiling['high']:.0f}]"
    )  # fmt: skip
    assert rows["bias"][1][0] == f"{bias['value']:+.3f}"


def test_a_terminal_of_80_columns_shows_every_number_whole():
    text = printed(results())
    assert "…" not in text
    for words in ("critic explains", "advantages, critic", "calibration error over bins", "prompt", "50 %"):
        assert words in text, words


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("always_wrong", [True, False])
def test_files_are_written_whatever_is_not_defined(tmp_path: Path, critic: bool, always_wrong: bool):
    told = results(critic=critic, always_wrong=always_wrong)
    write_judgement(told, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "judgement.png", "judgement.html"}
    assert json.loads((tmp_path / "results.json").read_text()) == told
    page = (tmp_path / "judgement.html").read_text()
    assert "nan" not in page.lower()
    assert ("critic explains" in page) is critic
    text = printed(told)
    assert ("AUC in groups" in text) is critic
    if always_wrong:
        assert told["finding"] == "all-equal"
        assert "–" in text


def test_files_are_written_where_the_verifier_judged_nothing(tmp_path: Path):
    told = results(judged=False)
    assert told["bins"] == []
    write_judgement(told, tmp_path)
    assert (tmp_path / "judgement.png").stat().st_size > 10_000
    assert "verifier could not tell" in printed(told)


def test_names_from_files_cannot_write_into_the_page():
    page = judgement_html(results(name="<script>alert(1)</script>", task="<b>x", critic_origin="<i>"))
    assert "<script" not in page
    assert "<b>x" not in page
    assert "&lt;script&gt;" in page


def test_the_page_is_made_of_numbers_alone_and_equal_ones_give_equal_pages():
    assert judgement_html(results()) == judgement_html(results())


def test_a_model_with_brackets_in_its_name_is_printed_as_it_is():
    assert "The critic of my [/k] [b] run" in printed(results(name="my [/k] [b] run"))
