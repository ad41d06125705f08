"""The results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rows import Row, Side

Rounds = list[dict[str, Any]]


def page(results: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole page: a section for each row that was measured."""
    lines = ["# Peers: results", "", "Made by `python benchmarks/peers`; [what it does](README.md).", ""]
    for row in rows:
        if row.name in results:
            lines += section(row, results[row.name])
    return "\n".join(lines)


def section(row: Row, found: dict[str, Any]) -> list[str]:
    """Heading, circumstances and table of one row."""
    make = {"rollout": _rollouts, "step": _steps, "gae.py": _gae}.get(row.kind, _parts)
    heading = row.title if row.sides else row.name
    rate = found["rate"]
    where = (
        f"{found['date']}, {found['machine']}, {found['threads']} thread(s), torch {found['torch']}; matrix rate "
        f"{rate['highest']:.0f} GFLOP/s by MKL, {rate['medium']:.0f} by oneDNN."
    )
    return [f"## {heading}", "", where, "", *make(row, found), ""]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the least and the greatest in brackets."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def _rollouts(row: Row, found: dict[str, Any]) -> list[str]:
    lines = [
        "| engine | rounds | tokens/s | time per token / vapo's | share of the limit | tokens | settings |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for side, own in _sides(row, found):
        if "fault" in own:
            lines.append(f"| {own.get('name', side.label)} | 0 | {own['fault']} | | | | {_settings(own)} |")
            continue
        rounds = own["rounds"]
        speed = spread([r["tokens"] / r["seconds"] for r in rounds], ",.0f")
        share = _share(found, rounds, lambda r: 2 * sum(found["parameters"]) * r["tokens"])
        lines.append(
            f"| {own['name']} | {len(rounds)} | {speed} | {_ratio(row, found, side)} | {share} | "
            f"{statistics.median(r['tokens'] for r in rounds):,.0f} | {_settings(own)} |"
        )
    return lines


def _steps(row: Row, found: dict[str, Any]) -> list[str]:
    lines = [
        "| trainer | rounds | step, s | rollout | score | update | time / | share of the limit | settings |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    body, head = found["parameters"]
    for side, own in _sides(row, found):
        if "fault" in own:
            lines.append(f"| {side.label} | 0 | {own['fault']} | | | | | | {_settings(own)} |")
            continue
        rounds = own["rounds"]
        parts = [
            f"{statistics.median(r['parts'][part] for r in rounds):.2f}" for part in ("rollout", "score", "update")
        ]
        critic = body if side.variant == "vapo" or side.peer == "trl-ppo" else 0

        def needed(r: dict[str, Any], critic: int = critic) -> float:
            learned = r["tokens"] + found["prompt_tokens"]
            return 2 * (body + head) * r["tokens"] + 6 * (body + head + critic) * learned

        other = side.against or row.sides[0].label
        ratio = _ratio(row, found, side)
        lines.append(
            f"| {side.label} | {len(rounds)} | {spread([r['seconds'] for r in rounds])} | {' | '.join(parts)} | "
            f"{ratio and f'{ratio} × {other}'} | {_share(found, rounds, needed)} | {_settings(own)} |"
        )
    return lines


def _gae(_: Row, found: dict[str, Any]) -> list[str]:
    lines = ["| way | seconds | copies of the tensor |", "|---|--:|--:|"]
    rounds: Rounds = found["rounds"]
    for name in rounds[0]["seconds"]:
        seconds = [r["seconds"][name] for r in rounds]
        copies = [r["seconds"][name] / r["seconds"]["copy of the tensor"] for r in rounds]
        lines.append(f"| {name} | {spread(seconds, '.3f')} | {spread(copies, '.1f')} |")
    worst = max(r["difference"] for r in rounds)
    return [*lines, "", f"Largest difference of ours and the loop as verl's: {worst:.1e}."]


def _parts(_: Row, found: dict[str, Any]) -> list[str]:
    rounds: Rounds = found["rounds"]
    columns = list(dict.fromkeys(name for part in rounds[0]["parts"].values() for name in part))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name, part in rounds[0]["parts"].items():
        cells = [spread([r["parts"][name][c] for r in rounds]) if c in part else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if {"equal", "ragged"} == set(rounds[0]["parts"]):
        cells = [
            spread([r["parts"]["ragged"][c] / r["parts"]["equal"][c] for r in rounds]) if "token" in c else ""
            for c in columns
        ]
        lines.append(f"| ragged / equal | {' | '.join(cells)} |")
    return lines


def _sides(row: Row, found: dict[str, Any]) -> list[tuple[Side, dict[str, Any]]]:
    return [(side, found["sides"][side.label]) for side in row.sides if side.label in found["sides"]]


def _ratio(row: Row, found: dict[str, Any], side: Side) -> str:
    """Time per token over that of the side it is compared with, within each round; empty where there is none."""
    other = found["sides"].get(side.against or row.sides[0].label, {})
    pairs = zip(found["sides"][side.label]["rounds"], other.get("rounds", []), strict=False)
    ratios = [(own["seconds"] / own["tokens"]) / (base["seconds"] / base["tokens"]) for own, base in pairs]
    return spread(ratios) if ratios else ""


def _share(found: dict[str, Any], rounds: Rounds, needed: Callable[[dict[str, Any]], float]) -> str:
    """The median of the products that are needed, at the matrix rate, over the time that was taken."""
    rate = 1e9 * max(found["rate"].values())
    return f"{statistics.median(needed(r) / rate / r['seconds'] for r in rounds):.0%}"


def _settings(own: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in own.get("settings", {}).items())
