"""``lmsmith models compare``: versions of a model side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lmsmith import improvement
from lmsmith.catalogue.versions import Gate
from lmsmith.cli.improve import STYLES, gate_figures, votes_line
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed

if TYPE_CHECKING:
    from lmsmith.api import Recorded


def _show(found: Recorded) -> None:
    record: dict[str, Any] = found.record
    made: list[dict[str, Any]] = record["versions"]
    table = plain_table("", *(each["word"] for each in made))

    def row(name: str, cells: Iterable[str | Text]) -> None:
        shown = list(cells)
        if any(map(len, shown)):
            table.add_row(name, *shown)

    row("state", ("promoted" if e["is_promoted"] else "on trial" * e["is_on_trial"] for e in made))
    row("verdict", (each["verdict"] for each in made))
    row("made from", (", ".join(map(str, each["parents"])) or each["source"] for each in made))
    row("compared with", (each["compared_with"] for each in made))
    row("made", (each["created"] for each in made))
    row("judgements until", (each["learnt"]["until"] for each in made))
    row("snapshot", (each["learnt"]["sha256"][:12] for each in made))
    row("people", (f"{len(each['learnt']['people']):,}" for each in made))
    row("of them deleted since", (f"{each['deleted'] or ''}" for each in made))
    for name in _all(each["learnt"]["counts"] for each in made):
        counts = [each["learnt"]["counts"].get(name, 0) for each in made]
        if any(counts):
            row(name, map("{:,}".format, counts))
    table.add_section()
    gates = [{gate["name"]: Gate(**gate) for gate in each["gates"]} for each in made]
    for name in _all(gates):
        row(name, (_gate_cell(each.get(name)) for each in gates))
    table.add_section()
    figures = [
        _figures_beside_gates(each["figures"], by) for each, by in zip(made, gates, strict=True)
    ]
    for name in _all(figures):
        row(name, (each.get(name, "") for each in figures))
    table_console().print(table)
    for votes in record["votes"]:
        print(
            f"{votes['candidate']} and {votes['current']}: {votes_line(votes, votes['candidate'])}"
        )
    print("gates and figures are those of each version's own round; --json has all figures")
    if len(made) > 1:
        print(f"on the same tasks or prompts: {record['measure']} --tasks … or --win-rate FILE")


def _all(found: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, in their order."""
    return list(dict.fromkeys(name for each in found for name in each))


def _gate_cell(gate: Gate | None) -> Text:
    if gate is None:
        return Text("")
    value, interval, _ = gate_figures(gate)
    shown = f"{value} ({interval}) " if interval else f"{value} " if value else ""
    return Text.assemble(shown, (gate.state, STYLES[gate.state]))


def _figures_beside_gates(
    figures: Mapping[str, float], gates: Mapping[str, Gate]
) -> dict[str, str]:
    """What the gates measured beside their own figures; an interval stands with its figure."""
    found = {
        name.removeprefix("gates."): value
        for name, value in figures.items()
        if name.startswith("gates.")
    }
    ends = {f"{name}_{end}" for name in found for end in ("low", "high")}
    shown = {}
    for name, value in found.items():
        if name in gates or name in ends:
            continue
        low, high = (found.get(f"{name}_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
        shown[name] = f"{value:.4g}{interval}"
    return shown


compare_versions = printed(improvement.compare_versions, _show)
