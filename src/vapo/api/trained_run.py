"""A run as Python sees it: its figures, samples, curves and models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vapo.errors import DataError, counted
from vapo.metrics import Phase
from vapo.reports.runfiles import Record, RunFiles, read_rollouts, read_run, rollout_files
from vapo.reports.tables import before_after_rows, headings, headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TrainedRun(os.PathLike[str]):
    """A run directory. It serves as a path (`open(run / "config.yaml")`, `os.fspath(run)`, `str(run)`).

    `vapo.train` and `vapo.resume` return one; `TrainedRun("runs/mine")` opens any run, also one that still goes on.
    Figures are read anew at each access. Models are loaded at the first access and kept; their folders are
    `run / "policy"` and `run / "critic"`. A notebook shows the scores before and after training.

    Raises DataError for a folder that is no run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        read_run(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.path)!r})"

    @property
    def files(self) -> RunFiles:
        """Everything small in the folder, read now."""
        return read_run(self.path)

    @property
    def metrics(self) -> Any:
        """The lines of metrics.jsonl, one for each step of both phases: a pandas DataFrame where pandas is installed,
        else a list of dicts. docs/metrics.md explains the names."""
        return _table(self.files.metrics)

    @property
    def evaluations(self) -> Any:
        """The lines of evaluations.jsonl, as a table like `metrics`."""
        return _table(self.files.evaluations)

    @property
    def alarms(self) -> list[str]:
        """The messages of the run's alarms."""
        return [str(event.get("message", "")) for event in self.files.alarms]

    def samples(self, step: int | None = None, *, pretraining: bool = False) -> Any:
        """The responses of a step, as a table like `metrics`: prompt, response, verdict, reward, reason, and for each
        token its text, log-probability, value, advantage and return.

        None is the last step whose responses were kept (trainer.save_rollouts_every). DataError for one that was not.
        """
        phase = Phase.PRETRAIN if pretraining else Phase.TRAIN
        kept = {file.step: file for file in rollout_files(self.path) if file.phase == phase}
        found = kept.get(max(kept, default=0) if step is None else step)
        if found is None:
            wanted = "any step" if step is None else f"step {step}"
            there = f"there are: {', '.join(map(str, kept))}" if kept else "there are none"
            raise DataError(
                f"{self.path} has no samples of {wanted} of {phase.words}; {there}. "
                "trainer.save_rollouts_every says which steps keep them."
            )
        return _table(read_rollouts(found.path))

    def plot(self) -> Figure:
        """The curves of the run, as in curves.png: a matplotlib figure, which a notebook shows."""
        from vapo.reports.curves import curves_figure
        from vapo.reports.style import in_style

        return in_style(lambda: curves_figure(self.files))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of policy and critic."""
        from vapo.models.tokens import load_tokenizer

        return load_tokenizer(self._trained("policy"), trust_remote_code=self._trusts)

    @cached_property
    def policy(self) -> PreTrainedModel:
        """The trained policy: a causal language model in float32 on the CPU. Raises DataError if there is none yet."""
        from vapo.models.loading import load_policy

        return load_policy(self._trained("policy"), trust_remote_code=self._trusts)

    @cached_property
    def critic(self) -> PreTrainedModel | None:
        """The trained critic, None of a method without one.

        Where transformers has a token classifier for the architecture and the head is linear,
        `critic(**tokens).logits[0, :, 0]` are values per token; docs/tasks.md has the others. A residual critic's lack
        the group's mean, and a side critic reads the policy's hidden states (`vapo.models.side`). Raises DataError
        before training has ended.
        """
        from vapo.models.loading import load_critic, load_side_critic
        from vapo.models.side import holds_side_critic

        self._trained("policy")
        folder = self.path / "critic"
        if not folder.exists():
            return None
        if holds_side_critic(folder):
            return load_side_critic(folder, self.policy, trust_remote_code=self._trusts)[0]
        return load_critic(folder, trust_remote_code=self._trusts)[0]

    @property
    def _trusts(self) -> bool:
        return bool((self.files.config.get("model") or {}).get("trust_remote_code", False))

    def _trained(self, network: str) -> Path:
        folder = self.path / network
        if not folder.is_dir():
            raise DataError(f"{folder} is not there: it is written when training ends.")
        return folder

    def _repr_html_(self) -> str:
        """The run in a notebook: the headline, the scores before and after training, the newest alarm, the files."""
        files = self.files
        rows = [row.cells() for row in before_after_rows(files.evaluations)]
        parts = [
            f"<h4>{escape(files.name)} <small>{escape(files.label)}</small></h4>",
            f"<p>{escape(headline(files.evaluations))}</p>",
            _html_table(["held out", *headings(files.evaluations), "change"], rows),
        ]
        if alarms := self.alarms:
            parts.append(f"<p><b>{counted(len(alarms), 'alarm')}</b>, the newest: {escape(alarms[-1])}</p>")
        parts.append(f"<p><small>{escape(str(self.path))}: run.metrics, run.samples(), run.plot(), run.policy, "
                     "run.critic; report.html has every token</small></p>")  # fmt: skip
        return "".join(parts)


def _table(rows: list[Record]) -> Any:
    """A DataFrame where pandas is installed, else the rows."""
    if find_spec("pandas") is None:
        return rows
    import pandas

    return pandas.DataFrame(rows)


def _html_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line('th', heading)}{''.join(line('td', row) for row in rows)}</table>" if rows else ""
