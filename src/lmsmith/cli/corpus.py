"""``lmsmith corpus``: what its commands print."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from lmsmith import corpora
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.terminal import visible


def _show(result: corpora.BuiltCorpus) -> None:
    record = result.record
    if "plan" in record:
        _show_plan(record["plan"])
        return
    table = plain_table(
        "source", "documents read", "kept", "MB", "tokens", "bytes per token", "share", "epochs"
    )
    mixture = {each["source"]: each for each in record["mixture"]}
    for name, read, kept, size, tokens in corpora.figures(record):
        ratio = f"{size / tokens:.2f}" if tokens else ""
        mixed = mixture[name]
        table.add_row(
            name,
            f"{read:,}",
            f"{kept:,}",
            f"{size / 1e6:,.1f}",
            f"{tokens:,}",
            ratio,
            f"{100 * mixed['weight']:.1f} %",
            f"{mixed['epochs']:.2f}",
        )
    table_console().print(table)
    for step, reasons in _removed(record).items():
        parts = ", ".join(f"{count:,.0f} {reason}" for reason, count in reasons.most_common())
        print(visible(f"{step} removed: {parts}"))
    print(f"held out: {record['validation_documents']:,} documents")
    print(f"corpus: {result.folder}")
    print(f"next: lmsmith run RECIPE, with [data] shards = {shlex.quote(str(result.folder))}")


def _removed(record: dict[str, Any]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for step, sources in record["steps"].items():
        for counts in sources.values():
            for name, value in counts.items():
                if name.startswith("removed."):
                    found.setdefault(step, Counter())[name.removeprefix("removed.")] += value
    return found


def _show_plan(plan: dict[str, Any]) -> None:
    table = plain_table("source", "files", "MB", "formats", left=("formats",))
    for name, about in plan["sources"].items():
        formats = ", ".join(f"{count:,} {kind}" for kind, count in about["formats"].items())
        table.add_row(name, f"{about['files']:,}", f"{about['bytes'] / 1e6:,.1f}", formats)
    table_console().print(table)
    for each in plan["problems"]:
        print(visible(f"not read: {each}"))


build = printed(corpora.build_corpus, _show)
