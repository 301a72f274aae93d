"""The tables of ``lmsmith feedback stats``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lmsmith.cli.output import table_console


def print_statistics(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Tasks, labelers, agreement and leaderboard, those of which something is known."""
    console = console or table_console()
    tasks = _table("kind", "tasks", "complete", "gold")
    for kind, counts in found["tasks"].items():
        tasks.add_row(kind, *(f"{counts[name]:,}" for name in ("tasks", "complete", "gold")))
    console.print(tasks)
    if found["labelers"]:
        console.print(_labelers(found["labelers"]))
    agreement = _table("agreement", "value", "95 %", "tasks")
    for kind, measures in found["agreement"].items():
        for name, interval in measures.items():
            if name != "tasks" and interval is not None:
                row = (f"{kind}, {_NAMES[name]}", *_interval(interval), str(measures["tasks"]))
                agreement.add_row(*row)
    if agreement.row_count:
        console.print(agreement)
    if found["leaderboard"]:
        board = _table("model", "preferred to the middle", "95 %", "comparisons")
        for each in found["leaderboard"]:
            board.add_row(each["model"], *_interval(each["rate"]), f"{each['comparisons']:,}")
        console.print(board)
    if found["ratings"]:
        ratings = _table("model", "mean rating", "ratings")
        for each in found["ratings"]:
            ratings.add_row(each["model"] or "—", f"{each['mean']:.2f}", f"{each['count']:,}")
        console.print(ratings)


_NAMES = {"pairwise": "pairs alike", "tau_b": "Kendall τ-b", "alpha": "Krippendorff α"}


def _labelers(labelers: list[dict[str, Any]]) -> Table:
    table = _table(
        "labeler", "demonstrations", "ratings", "rankings", "skipped", "seconds", "gold alike"
    )
    for each in labelers:
        gold = each["gold"]["pairwise"]
        table.add_row(
            each["name"],
            *(str(each[name]) for name in ("demonstration", "rating", "ranking", "skipped")),
            "—" if each["seconds"] is None else f"{each['seconds']:.0f}",
            "—" if gold is None else f"{gold['value']:.2f}",
        )
    return table


def _interval(found: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (
        "—" if found[name] is None else f"{found[name]:.2f}" for name in ("value", "low", "high")
    )
    return value, f"{low} to {high}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
