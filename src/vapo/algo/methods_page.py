"""docs/methods.md: the methods side by side, and what is known of each number. Printed from the presets:

python -m vapo.algo.methods_page > docs/methods.md
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vapo.algo import presets
from vapo.algo.presets import PRESETS
from vapo.algo.techniques import REMEDIES, TECHNIQUES

SOURCES = {
    "ppo": 'VAPO, [2504.05118](https://arxiv.org/abs/2504.05118), its "vanilla PPO"',
    "vc-ppo": "VC-PPO, [2503.01491](https://arxiv.org/abs/2503.01491)",
    "grpo": "DeepSeek-R1-Zero, [2501.12948](https://arxiv.org/abs/2501.12948)",
    "dapo": "DAPO, [2503.14476](https://arxiv.org/abs/2503.14476)",
    "vapo": "VAPO, [2504.05118](https://arxiv.org/abs/2504.05118)",
    "rloo": "RLOO, [2402.14740](https://arxiv.org/abs/2402.14740)",
    "orz": "Open-Reasoner-Zero, [2503.24290](https://arxiv.org/abs/2503.24290), and its code",
    "sao": "SAO, [2607.07508](https://arxiv.org/abs/2607.07508), second hand",
    "bpco": "BPCO, [2608.23566](https://arxiv.org/abs/2608.23566), second hand",
    "easyppo": "EasyPPO, [2609.36802](https://arxiv.org/abs/2609.36802)",
    "justrl2": "JustRL-II, its code",
    "vapo2": "this project; see [results/critic](../results/critic)",
}
"""Where each preset's numbers come from."""

FEW = 5
"""A field of fewer methods than this stands in the table though all of them have the same number."""


def page() -> str:
    """The text of docs/methods.md."""
    parts = [
        "# The methods, side by side",
        "Printed by `python -m vapo.algo.methods_page` from [`vapo.algo.presets`](../src/vapo/algo/presets.py). Every\n"
        "field is a setting `algorithm.FIELD` ([settings](settings.md)). Sizes and rates are those of the papers;\n"
        "`trainer.*` adapts a method to another size. An empty cell: the method has no such field.",
        _table(),
        "## Where the numbers are from",
        "A note stands behind the numbers that need one: where the paper has them, or that it leaves them open.",
        *(_section(name) for name in PRESETS),
        "## Taking techniques away",
        "`--without NAME` takes a technique away from a method that uses it. Of VAPO's, the field becomes plain PPO's:",
        _removals(TECHNIQUES),
        "Of what `vapo2` adds, the field becomes VAPO's:",
        _removals(REMEDIES),
        "## Responses that are cut off at the length limit",
        "`algorithm.truncated` decides what a response is worth that did not end by itself:",
        "- `zero`: the episode ends there with its verdict, which is nearly always wrong. The policy learns to be\n"
        "  shorter, also where a longer response would have been right.\n"
        "- `bootstrap`: the critic's value of the state after the cut takes the place of the failure. The objective\n"
        "  becomes what the critic expects, so a critic that expects too much rewards endless text.\n"
        "  It is for verdicts of one turn: a score may be earned before the cut, and no critic learns the states\n"
        "  between turns.\n"
        "- `drop`: the response counts in no loss (DAPO's overlong filter). The objective becomes the mean outcome of\n"
        "  the responses that end, E[R | ended], and nothing keeps their share from falling to 0 (EasyPPO §3). Watch\n"
        "  `completions/clipped_ratio`.\n"
        "- `drop-from-policy`: the response counts in the critic's loss only. The critic learns that such responses\n"
        "  fail, so the advantages of the others are measured from the value of all (EasyPPO §3). Where a response\n"
        "  may be right although it is cut off, nothing teaches the policy to end: take `zero` there.",
    ]
    return "\n\n".join(parts) + "\n"


def _removals(fields: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: `algorithm.{field}`" for name, field in fields.items())


def _table() -> str:
    rows = {name: dict(_fields(asdict(method))) for name, method in PRESETS.items()}
    fields = list(dict.fromkeys(field for row in rows.values() for field in row))
    # a field that is the same in most methods, and no other in the rest, tells nothing about them
    values = {field: [str(row[field]) for row in rows.values() if field in row] for field in fields}
    fields = [field for field in fields if len(set(values[field])) > 1 or len(values[field]) < FEW]
    lines = [["field", *rows], ["---"] * (len(rows) + 1)]
    lines += [[f"`{field}`", *(_cell(row.get(field, "")) for row in rows.values())] for field in fields]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fields(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(name: str) -> str:
    notes = [f"- `{code}`: {note}" if code else f"- {note}" for code, note in _notes(name)]
    return "\n".join([f"### {name}", "", f"{SOURCES[name]}.", *(["", *notes] if notes else [])])


def _notes(name: str) -> Iterator[tuple[str, str]]:
    """(number, note) of each comment in the preset's definition."""
    source = inspect.getsource(presets)
    wanted = name.upper().replace("-", "_")
    (node,) = (n for n in ast.parse(source).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == wanted)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and node.lineno <= token.start[0] <= (node.end_lineno or 0):
            code = token.line[: token.start[1]].strip().rstrip(",")
            yield ("" if re.fullmatch(r"\w+ = .*|\W*|\w+\(", code) else code), token.string.removeprefix("# ")


if __name__ == "__main__":
    print(page(), end="")
