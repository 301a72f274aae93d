"""``lmsmith corpus``: what its commands print."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from lmsmith import corpora
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_size
from lmsmith.core.terminal import in_one_line, visible


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
    if (near := record["figures"].get("near_duplicates")) is not None:
        print(f"near-duplicates, a sample against all: {_near_words(near)}")
    print(f"held out: {record['validation_documents']:,} documents")
    worker, own = (
        format_size(record["build"][name])
        for name in ("peak_memory_bytes_of_a_worker", "peak_memory_bytes")
    )
    print(f"memory: at most {worker} a worker, {own} the process that directs them")
    print(f"corpus: {result.folder}")
    print(f"report: {result.report}")
    print(f"next: lmsmith run RECIPE, with [data] shards = {shlex.quote(str(result.folder))}")


def _near_words(found: dict[str, Any]) -> str:
    """What the sample of a build says of its near-duplicates, in a line."""
    said = f"{found['sampled']:,} documents"
    if found["recall"] is None:
        return f"{said} have no duplicates"
    said += f" have {found['pairs']:,} duplicates, recall {found['recall']:.3f}"
    if found["precision"] is not None:
        said += f"; {found['removed']:,} were removed, precision {found['precision']:.3f}"
    if found["by_a_chain"]:
        said += f", {found['by_a_chain']:,} of them by a chain of others"
    return said


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


def _show_window(found: dict[str, Any]) -> None:
    said = f"token {found['at']:,} of {found['tokens']:,}; tokens {found['start']:,} to"
    print(f"{said} {found['end'] - 1:,}")
    for row in found["documents"]:
        about = [f"source {row['source']}"]
        about += [f"language {row['language']}"] if row["language"] else []
        about += [f"{name} {value:.3f}" for name, value in row["scores"].items()]
        place = row["start"] - row["position"]
        about.append(f"tokens {place:,} to {place + len(row['ids']) - 1:,} of {row['tokens']:,}")
        print(f"\n{_named(row)} ({', '.join(about)})")
        if "text" in row:
            print(visible(row["text"]))
        else:
            print(visible(f"{row['before']}⟦{row['token']}⟧{row['after']}"))


def _named(row: dict[str, Any]) -> str:
    name = f" {row['name']}" if row["name"] else ""
    return in_one_line(f"{row['id']}{name}")


def _show_hits(found: dict[str, Any]) -> None:
    places = found["found"]
    took = f"{found['bytes'] / 1e6:,.1f} MB in {found['seconds']:.1f} s"
    print(f"found {_times(found)} ({took})")
    for name, about in found["sources"].items():
        if len(found["sources"]) > 1 and about["found"]:
            print(f"  {name}: {about['found']:,} in {about['documents']:,}")
    if found["held_out"]["found"]:
        print(f"  held out: {_times(found['held_out'])}")
    for hit in found["hits"]:
        place = "held out" if hit["held_out"] else f"token {hit['position']:,}"
        print(f"\n{_named(hit)} ({place}, {hit['source']})")
        context = f"{hit['before']}⟦{hit['text']}⟧{hit['after']}"
        print(in_one_line(f"  …{' '.join(context.split())}…"))
    if places > len(found["hits"]):
        print(f"\n{places - len(found['hits']):,} more places: --limit N lists more")


def _times(counts: dict[str, Any]) -> str:
    times, documents = counts["found"], counts["documents"]
    return (
        f"{times:,} {'time' if times == 1 else 'times'} in "
        f"{documents:,} {'document' if documents == 1 else 'documents'}"
    )


def _show_figures(found: dict[str, Any]) -> None:
    table = plain_table(
        "source", "documents", "MB", "tokens", "bytes per token", "median", "longest"
    )
    for name, about in found["sources"].items():
        lengths = about["tokens_per_document"]
        ratio = f"{about['bytes_per_token']:.2f}" if about["bytes_per_token"] else ""
        table.add_row(
            name,
            f"{about['documents']:,}",
            f"{about['bytes'] / 1e6:,.1f}",
            f"{about['tokens']:,}",
            ratio,
            f"{lengths['median']:,.0f}" if lengths else "",
            f"{lengths['most']:,.0f}" if lengths else "",
        )
    table_console().print(table)
    for name, about in found["sources"].items():
        scripts, languages = about["scripts"].items(), about["languages"].items()
        parts = (
            [f"{script} {100 * share:.1f} %" for script, share in scripts if share >= 5e-4],
            [f"{language} {count:,}" for language, count in languages],
            [f"mean {score} {value:.3f}" for score, value in about["scores"].items()],
            [f"removed by {step}: {_counts(by)}" for step, by in about["duplicates"].items()],
        )
        said = "; ".join(", ".join(part[:6]) for part in parts if part)
        if said:
            print(in_one_line(f"{name}: {said}"))
    vocabulary = found["vocabulary"]
    print(f"vocabulary: {vocabulary['used']:,} of {vocabulary['size']:,} tokens are used")
    print(f"held out: {found['held_out']:,} documents")


def _counts(found: dict[str, int]) -> str:
    return " ".join(f"{name} {count:,}" for name, count in list(found.items())[:6])


def _show_difference(found: dict[str, Any]) -> None:
    table = plain_table("", "documents", "MB", "tokens")
    for name in ("before", "after"):
        about = found[name]
        sizes = f"{about['documents']:,}", f"{about['bytes'] / 1e6:,.1f}", f"{about['tokens']:,}"
        table.add_row(about["corpus"], *sizes)
    table_console().print(table)
    for name, (one, other) in found["settings"].items():
        print(in_one_line(f"setting {name}: {_value(one)} → {_value(other)}"))
    print(f"same: {found['same']:,} documents")
    for kind in ("added", "removed", "changed"):
        about = found[kind]
        print(f"{kind}: {about['documents']:,} documents")
        for source, counts in about["sources"].items():
            print(f"  {source}: {counts['documents']:,} documents, {counts['bytes'] / 1e6:,.1f} MB")
            for reason, count in about["reasons"].get(source, {}).items():
                print(in_one_line(f"    {count:,}: {_because(kind, reason)}"))
        for row in about["first"]:
            why = f" ({row['reason']})" if row["reason"] else ""
            print(in_one_line(f"    {row['id']}{why}"))


def _because(kind: str, reason: str) -> str:
    return f"before, {reason}" if kind == "added" else reason


def _value(value: object) -> str:
    return "none" if value is None else str(value)


look = printed(corpora.look_at_corpus, _show_window)
search = printed(corpora.search_corpus, _show_hits)
stats = printed(corpora.corpus_statistics, _show_figures)
diff = printed(corpora.compare_corpora, _show_difference)
