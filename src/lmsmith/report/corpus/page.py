"""The page of a finished corpus, made from its folder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.errors import refusing_damage
from lmsmith.core.files import read_json
from lmsmith.core.format import UNKNOWN
from lmsmith.corpus.build.duplicate_ids import duplicate_id_warnings
from lmsmith.corpus.build.mixture import MANY_EPOCHS
from lmsmith.corpus.finished import BUILD_FILE
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.corpus.inspect.stats import statistics
from lmsmith.report import numbers
from lmsmith.report.corpus.figures import GPT3_SHARE, scores, share_words
from lmsmith.report.corpus.flow import (
    FlowRow,
    counted,
    efforts,
    flow,
    source_colours,
    title_of,
)
from lmsmith.report.corpus.removals import Removals, add_kept_examples
from lmsmith.report.run import facts
from lmsmith.report.run.page import write_page

LEAST_SHARE = 0.0005
"""Least share of a script among the letters for the page to name it."""

PERSONAL = {
    "mail": "mail addresses",
    "phone": "telephone numbers",
    "iban": "bank accounts (IBAN)",
    "card": "payment cards",
    "key": "secret keys",
}


def build_corpus_page(folder: Path) -> Path:
    """Write ``report.html`` into a finished corpus's folder and return its path.

    All chance of the page is a hash of the documents' ids: built twice, it is the same.

    Raises:
        UserError: no finished corpus, or a file of it is damaged.
    """
    corpus = CorpusDocuments.open(folder)
    build: Any = read_json(folder / BUILD_FILE)
    with refusing_damage(folder, "Build the corpus again."):
        context = _context(corpus, build)
    return write_page(folder, "corpus.html.j2", context)


def _context(corpus: CorpusDocuments, build: Mapping[str, Any]) -> dict[str, Any]:
    record = corpus.finished.record
    rows = flow(record)
    removals = Removals(corpus.finished)
    found = (each for each in removals.reasons.values() if each.removed)
    reasons = sorted(found, key=lambda each: (-each.count, each.step, each.reason))
    add_kept_examples(corpus, reasons)
    by_step: dict[str, list[Any]] = {}
    for each in reasons:
        by_step.setdefault(each.step, []).append(each)
    order = {row.step: place for place, row in enumerate(rows)}
    classifier = scores(record)
    unread = next((row.removed for row in rows if row.step == "read"), ())
    return {
        "name": corpus.finished.folder.parent.name,
        "description": str(record["recipe"].get("description") or ""),
        "lede": _lede(record, rows),
        "tiles": _tiles(record, rows),
        "colours": source_colours(list(record["recipe"]["sources"])),
        "curated": [n for n, s in record["recipe"]["sources"].items() if s["curated"]],
        "rows": rows,
        "title_of": title_of,
        "reasons": dict(sorted(by_step.items(), key=lambda each: order.get(each[0], 0))),
        "classifier": classifier,
        "harmful": record.get("figures", {}).get("harmful_classifier"),
        "share": share_words(classifier.share) if classifier else "",
        "left": share_words(classifier.left) if classifier else "",
        "gpt3_share": share_words(GPT3_SHARE),
        "duplicates": {
            step: removals.cluster_sizes(step) for step in removals.members if step in order
        },
        "clusters": removals.clusters(corpus),
        "near": record.get("figures", {}).get("near_duplicates"),
        "similarity": record["recipe"]["deduplicate"]["near"]["similarity"],
        "languages": _bars(counted(record, "language", "language.")),
        "personal": [
            (PERSONAL.get(kind, kind), sources.total(), _by_source(sources))
            for kind, sources in counted(record, "personal", "personal.").items()
        ],
        "masked": record["recipe"].get("personal", {}).get("mask", []),
        "tasks": sorted(removals.cuts.values(), key=lambda each: (-each.count, each.task)),
        "decontaminate": record.get("figures", {}).get("decontaminate"),
        "task_names": record["recipe"].get("decontaminate", {}).get("tasks", []),
        "mixture": record.get("mixture", []),
        "many_epochs": MANY_EPOCHS,
        "sources": record["sources"],
        "texts": _texts(corpus),
        "held_out": record["validation_documents"],
        "duplicate_ids": list(
            duplicate_id_warnings(record.get("figures", {}).get("duplicate_ids", {}))
        ),
        "skipped": removals.skipped,
        "skipped_count": sum(count for _, count in unread),
        "skipped_reasons": unread,
        "efforts": efforts(rows, build),
        "operations": build.get("operations", {}),
        "wall": sum(build.get("operations", {}).values()),
        "engine": build["engine"]["name"],
        "settings": facts.flatten(record["recipe"]),
        "hardware": facts.describe_machine(build["hardware"]),
        "versions": [(k, v) for k, v in facts.flatten(build["versions"]) if k != "python"],
    }


def _texts(corpus: CorpusDocuments) -> list[tuple[str, float | None, str, str]]:
    """(source, bytes per token, scripts, duplicates that were removed by language)."""
    rows = []
    for name, about in statistics(corpus)["sources"].items():
        scripts = [
            f"{script} {numbers.percent(share, 1)}"
            for script, share in about["scripts"].items()
            if share >= LEAST_SHARE
        ]
        removed: Counter[str] = Counter()
        for counts in about["duplicates"].values():
            removed.update(counts)
        languages = [f"{language} {count:,}" for language, count in removed.most_common(6)]
        rows.append((name, about["bytes_per_token"], ", ".join(scripts), ", ".join(languages)))
    return rows


def _by_source(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _bars(found: Mapping[str, Counter[str]], most: int = 12) -> list[tuple[str, int, float, str]]:
    """(name, count, share of the largest, by source) of the most frequent ones."""
    largest = max((each.total() for each in found.values()), default=1)
    rows = [
        (name, each.total(), each.total() / largest, _by_source(each))
        for name, each in found.items()
    ]
    rest = sum(count for _, count, *_ in rows[most:])
    more = [(f"{len(rows) - most} others", rest, rest / largest, "")] if rest else []
    return rows[:most] + more


def _lede(record: Mapping[str, Any], rows: list[FlowRow]) -> str:
    kept = record["sources"].values()
    tokens = sum(each["tokens"] for each in kept)
    documents = sum(each["documents"] for each in kept)
    sources = len(record["recipe"]["sources"])
    said = f"{documents:,} documents with {numbers.large_count(tokens)} tokens"
    if rows:
        said += f", of {rows[0].documents:,} that were read"
    return f"{said} from {sources} {'source' if sources == 1 else 'sources'}."


def _tiles(record: Mapping[str, Any], rows: list[FlowRow]) -> list[tuple[str, str, str]]:
    kept = record["sources"].values()
    tokens = sum(each["tokens"] for each in kept)
    size = sum(each["bytes"] for each in kept)
    tiles = [("Tokens", numbers.large_count(tokens), "in the shards, frames included")]
    if rows:
        last, first = rows[-1], rows[0]
        left = last.documents / first.documents if first.documents else None
        of = f"{last.documents:,} of {first.documents:,}"
        of += f", {record['validation_documents']:,} held out"
        tiles.append(("Documents kept", share_words(left), of))
        left = last.bytes / first.bytes if first.bytes else None
        of = f"{numbers.size(last.bytes)} of {numbers.size(first.bytes)} of text"
        tiles.append(("Bytes kept", share_words(left), of))
    ratio = numbers.fixed(size / tokens, 2) if tokens else UNKNOWN
    tiles.append(("Bytes per token", ratio, "higher means fewer tokens for the same text"))
    return tiles
