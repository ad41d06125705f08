"""The data of the viewer: what a run has, what a step has, and single responses, as plain JSON data.

Nothing here is about HTML. The server answers with these, and a page without a server embeds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vapo.errors import DataError
from vapo.metrics import Phase
from vapo.reports.rollout_reading import StepRollouts
from vapo.reports.runfiles import Record, RolloutFile, RunFiles, number, read_run, rollout_files

VERDICTS = ("right", "wrong", "invalid")
SERIES = ("value", "return", "advantage", "td", "entropy", "log_ratio", "logp")
"""The numbers of a token, in the order in which the viewer offers them as colours."""
_FACTS = ("sample", "verdict", "reason", "kind", "reward", "score", "parts", "lambda", "weight_version", "truncated",
          "final_answer", "num_tokens")  # fmt: skip
_SCALED = 12
"""The colour scales come from so many responses of a step."""


class ViewedRun:
    """A run as the viewer sees it. Steps are named like their files: `step_000010`, `pretrain_000002`."""

    def __init__(self, path: str | Path) -> None:
        self.files: RunFiles = read_run(path)
        self._steps: dict[str, tuple[float, StepRollouts]] = {}
        self._scales: dict[str, tuple[StepRollouts, Record]] = {}

    @property
    def steps(self) -> dict[str, RolloutFile]:
        """The recorded steps by name, pretraining first; read anew, for the run may be going on."""
        return {step_key(file): file for file in rollout_files(self.files.path)}

    def overview(self) -> Record:
        """Name, method and steps of the run, and what of a step is recorded."""
        every, full = (self._setting(f"save_rollouts_{name}") for name in ("every", "in_full"))
        return {
            "name": self.files.name,
            "label": self.files.label,
            "gamma": self.gamma,
            "every": every,
            "in_full": full,
            "outcomes": self._outcomes,
            "steps": [
                {"key": key, "label": step_label(file), "phase": file.phase, "step": file.step}
                for key, file in self.steps.items()
            ],
        }

    def step(self, key: str) -> StepRollouts:
        """A step's responses; KeyError for a step that is not recorded, DataError for a damaged file."""
        path = self.steps[key].path
        stamp = path.stat().st_mtime
        if key not in self._steps or self._steps[key][0] != stamp:
            self._steps[key] = (stamp, StepRollouts(path))
        return self._steps[key][1]

    def index(self, key: str) -> Record:
        """What a step has: prompts, the columns of its responses, and the ends of the colour scales."""
        step = self.step(key)
        rows = dict(step.index.rows)
        rows["verdict"] = [verdict_of(v) for v in rows["verdict"]]
        rows["reward"] = [_short(number(reward)) for reward in rows["reward"]]
        return {"key": key, "prompts": step.index.prompts, "rows": rows, "scale": self._scale(key, step)}

    def rows(self, key: str, numbers: Iterable[int]) -> dict[int, Record]:
        """Single responses of a step, by their number."""
        found = self.step(key).rows(numbers)
        return {n: self._shown(record) for n, record in found.items()}

    def search(self, key: str, words: str) -> list[int]:
        """The responses of a step that have the words."""
        return self.step(key).search(words)

    def history(self, prompt: str) -> list[Record]:
        """The responses to one prompt in every recorded step that has some."""
        found = []
        for key, file in self.steps.items():
            try:
                index = self.step(key).index
            except DataError:
                continue
            place = next((at for at, (name, _) in enumerate(index.prompts) if name == prompt), None)
            if place is not None:
                rows = [n for n, at in enumerate(index.rows["prompt"]) if at == place]
                verdicts = [verdict_of(index.rows["verdict"][n]) for n in rows]
                found.append({"key": key, "label": step_label(file), "verdicts": verdicts})
        return found

    @cached_property
    def gamma(self) -> float:
        """The discount of the run's method."""
        gamma = number(self._credit.get("gamma"))
        return gamma if math.isfinite(gamma) else 1.0

    def _shown(self, record: Record) -> Record:
        rule = self._credit.get("policy_lambda")
        by_turns = isinstance(rule, dict) and rule.get("kind") == "turns"
        whitened = bool(self._credit.get("whiten"))
        return response_data(record, gamma=self.gamma, whitened=whitened, by_turns=by_turns)

    @property
    def _method(self) -> Record:
        algorithm = self.files.method.get("algorithm")
        return algorithm if isinstance(algorithm, dict) else {}

    @property
    def _credit(self) -> Record:
        credit = self._method.get("credit")
        return credit if isinstance(credit, dict) else {}

    @property
    def _outcomes(self) -> list[float]:
        """Lowest and highest outcome of a response: the ends of the values' colour scale."""
        reward = self._method.get("reward")
        ends = [number(reward.get(name)) for name in ("wrong", "right")] if isinstance(reward, dict) else []
        return ends if len(ends) == 2 and all(map(math.isfinite, ends)) else [0.0, 1.0]

    def _setting(self, name: str) -> Any:
        trainer = self.files.config.get("trainer")
        return trainer.get(name) if isinstance(trainer, dict) else None

    def _scale(self, key: str, step: StepRollouts) -> Record:
        if key in self._scales and self._scales[key][0] is step:
            return self._scales[key][1]
        full = [n for n, there in enumerate(step.index.rows["full"]) if there]
        some = full[:: max(1, len(full) // _SCALED)][:_SCALED]
        records = step.rows(some).values()
        scale = colour_scale([self._shown(record) for record in records], self._outcomes)
        self._scales[key] = (step, scale)
        return scale


def step_key(file: RolloutFile) -> str:
    """The name of a step in addresses and data: `step_000010`."""
    return file.path.name.removesuffix(".jsonl.gz")


def step_label(file: RolloutFile) -> str:
    """The name of a step for people.

    >>> step_label(RolloutFile(Path("a"), Phase.PRETRAIN, 2))
    'pretraining step 2'
    """
    return ("pretraining " if file.phase == Phase.PRETRAIN else "") + f"step {file.step}"


def verdict_of(verdict: Any) -> str:
    """A known verdict; what is none is invalid."""
    return verdict if verdict in VERDICTS else "invalid"


def response_data(record: Record, *, gamma: float = 1.0, whitened: bool = False, by_turns: bool = False) -> Record:
    """A response for the viewer: prompt, text and tokens with their numbers. Series that were not recorded are null.

    `turns` are (author, tokens); numbers of tokens that the environment wrote are null.
    `lambdas` has λ for each token where the method counts turns (`by_turns`), else null: it is `lambda` then.
    """
    data = {name: record.get(name) for name in _FACTS}
    data |= {name: _short(number(record.get(name))) for name in ("reward", "score", "lambda")}
    data |= {"verdict": verdict_of(record.get("verdict")), "reason": str(record.get("reason") or "")}
    data |= {"prompt": _prompt(record.get("prompt", "")), "answer": record.get("answer")}
    data |= {"response": str(record.get("response", "")), "final_answer": record.get("final_answer")}
    tokens = record.get("tokens")
    if not isinstance(tokens, list):
        return data | {"tokens": None}
    tokens = [str(token) for token in tokens]
    turns = _turns(record.get("turns"), len(tokens))
    ours = [author != "environment" for author, count in turns for _ in range(count)]
    columns = {name: _numbers(record.get(name), ours) for name in SERIES if name != "td"}
    lam = number(record.get("lambda"))
    lambdas = turn_lambdas(turns, lam) if by_turns else [lam] * len(ours)
    columns["td"] = None if whitened else td_errors(columns["advantage"], lambdas, gamma)
    data["lambdas"] = lambdas if by_turns and math.isfinite(lam) else None
    data["num_tokens"] = record.get("num_tokens") or len(tokens)
    return data | {"tokens": tokens, "turns": turns, **{name: columns[name] for name in SERIES}}


def turn_lambdas(turns: Sequence[Sequence[Any]], lam: float) -> list[float]:
    """λ at the policy's last token of each turn, 1 at the others, as in `vapo.algo.advantages.turn_lambda`.

    >>> turn_lambdas([["policy", 2], ["environment", 1], ["policy", 1]], 0.5)
    [1.0, 0.5, 1.0, 0.5]
    """
    return [
        lam if author != "environment" and left == 1 else 1.0 for author, count in turns for left in range(count, 0, -1)
    ]


def td_errors(advantages: list[float | None] | None, lambdas: list[float], gamma: float) -> list[float | None] | None:
    """δ_t = A_t - γλ_t·A_{t+1}, which the advantages were summed from; null where the advantage is.

    Tokens without an advantage are skipped, as in the sum. Source: arXiv:1506.02438, eq. 16.

    >>> td_errors([0.125, 0.25, None, 0.5], [0.5] * 4, 1.0)
    [0.0, 0.0, None, 0.5]
    """
    if advantages is None or not all(map(math.isfinite, lambdas)):
        return None
    after, errors = 0.0, []
    for advantage, lam in zip(reversed(advantages), reversed(lambdas), strict=True):
        errors.append(None if advantage is None else _short(advantage - gamma * lam * after))
        after = after if advantage is None else advantage
    return errors[::-1]


def colour_scale(responses: list[Record], outcomes: list[float]) -> Record:
    """The ends of each colour scale, common to a step's responses; null for series that no response has."""

    def finite(name: str) -> list[float]:
        return [x for response in responses if response.get(name) for x in response[name] if x is not None]

    values = finite("value")
    ends: Record = {"value": [min([*outcomes, *values]), max([*outcomes, *values])] if values else None}
    for name in ("advantage", "td", "entropy", "log_ratio", "logp"):
        sizes = sorted(map(abs, finite(name)))
        ends[name] = max(float(f"{sizes[int(0.98 * (len(sizes) - 1))]:.3g}"), 1e-3) if sizes else None
    return ends


def _prompt(prompt: Any) -> str | list[Record]:
    """The prompt's text, or its messages as role and content."""
    if not isinstance(prompt, list | tuple):
        return str(prompt)
    messages = [message if isinstance(message, dict) else {"content": message} for message in prompt]
    return [{"role": str(said.get("role", "?")), "content": str(said.get("content", ""))} for said in messages]


def _turns(turns: Any, num_tokens: int) -> list[list[Any]]:
    """Author and number of tokens of each turn; one turn of the policy where the record does not say."""
    try:
        found = [[str(author), int(count)] for author, count in turns]
    except (TypeError, ValueError):
        found = []
    return found if sum(count for _, count in found) == num_tokens else [["policy", num_tokens]]


def _numbers(values: Any, ours: list[bool]) -> list[float | None] | None:
    """A number per token, null for nan and for tokens of the environment; null as a whole if none was recorded."""
    if not isinstance(values, list):
        return None
    padded = [*values, *[None] * len(ours)][: len(ours)]
    return [_short(number(value)) if mine else None for value, mine in zip(padded, ours, strict=True)]


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
