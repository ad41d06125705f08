"""The notebook of examples/ runs from its first cell to its last, and keeps small outputs of such a run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import vapo

NOTEBOOK = Path(__file__).parents[2] / "examples" / "maze.ipynb"


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of output of each code cell, without what other packages print on stderr."""
    return [
        [output.output_type for output in cell.outputs if output.get("name") != "stderr"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_keeps_small_outputs_without_paths_of_a_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 200_000
    assert all(outputs(nbformat.reads(text, as_version=4)))
    assert not [place for place in ("/home/", "/root/", "/Users/", "src/vapo") if place in text]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the notebook packages warn of each other
def test_every_cell_of_the_notebook_runs_and_gives_what_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(vapo.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.from_dict(kept)
    client = NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())
    assert outputs(notebook) == outputs(kept)
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
