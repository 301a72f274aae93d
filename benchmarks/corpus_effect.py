"""What filtering and de-duplication are worth: the same pretraining on three corpora of one crawl.

Good text is hidden in a crawl of other text; a part of it is curated and teaches the classifier,
another is held out. Whole articles and files are divided, by a hash. The crawl as it is, without
its duplicates, and filtered too are built by `lmsmith.build_corpus` with one tokenizer, and
pretrain the same model on as many tokens with the same seeds. Measured are bits per byte of the
held-out text. The curated text is not trained on. Other programs at work change the time alone.
"""

from __future__ import annotations

import json as json_module
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
import tyro
from rich.console import Console
from rich.table import Table

import lmsmith
from lmsmith.catalogue.reading import read_model
from lmsmith.core.files import read_jsonl, write_jsonl
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.build.document import point
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.evaluation.methods.perplexity import bits_of_documents
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.training.machine import prepare_process

Count = Annotated[int, tyro.conf.arg(metavar="N")]

ARMS: dict[str, dict[str, Any]] = {
    "raw": {"deduplicate": {"exact": False, "near": {"enabled": False}}},
    "deduplicated": {"deduplicate": {"lines": {"enabled": True}}},
    "filtered": {
        "deduplicate": {"lines": {"enabled": True}},
        "language": {"keep": ["en"]},
        "quality": {"gopher": {"enabled": True}, "classifier": {"enabled": True}},
    },
}
"""Arm → the steps in which it differs from the defaults."""

SHARES = {"hidden": 0.6, "curated": 0.3, "held-out": 0.1}
"""Shares of the good articles and files: hidden in the crawl, examples, measured on."""

BLOCK = 4_000
"""Characters of a document of good text, about."""

SHOWN = ("bits_per_byte", "documents", "kept", "tokens", "good", "epochs")


def main(
    raw: tuple[str, ...],
    good: tuple[Path, ...],
    tokens: Count = 2_000_000,
    layers: Count = 4,
    width: Count = 256,
    seeds: Count = 3,
    pareto: float = 9.0,
    threads: Count = 0,
    train: bool = True,
    out: Path = Path("evals/corpus-effect"),
    json: bool = False,
) -> int:
    """Pretrain on a raw, a de-duplicated and a filtered crawl, and compare on held-out good text.

    Example: python benchmarks/corpus_effect.py --raw corpora/raw/spam-assassin
    --good corpora/raw/speeches --json

    Args:
        raw: Files, folders or globs of the crawl.
        good: Good text: files and folders of .txt, of WikiText's articles or an article each.
        tokens: Tokens that each model reads.
        layers: Blocks of the model.
        width: Its width; a head has 64.
        seeds: Runs on each corpus.
        pareto: Shape of the classifier's draw; smaller keeps more.
        threads: All cores if 0.
        train: Pretrain and measure; without it the corpora are built and counted.
        out: Corpora and runs go here; what is done is not done again.
        json: Print one JSON object instead of the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    divide(good, out)
    shape = f"layers={layers},width={width},heads={width // 64}"
    found = {}
    for name, steps in ARMS.items():
        corpus = built(out, name, steps, raw, pareto, threads)
        source = corpus["sources"]["raw"]
        found[name] = {
            "documents": corpus["steps"]["read"]["raw"]["documents_out"],
            "kept": source["documents"],
            "tokens": source["tokens"],
            "good": good_share(out / name),
            "epochs": tokens / source["tokens"],
            **corpus["figures"].get("quality_classifier", {}),
        }
    result: dict[str, Any] = {"tokens": tokens, "seeds": seeds, "pareto": pareto, "arms": found}
    if train:
        documents = [row["text"] for _, row in read_jsonl(out / "held-out.jsonl")]
        sizes = np.array([len(each.encode()) for each in documents])
        bits: dict[str, list[list[float]]] = {name: [] for name in ARMS}
        for seed in range(seeds):
            for name in ARMS:
                run = pretrained(out, name, seed, tokens, shape, threads)
                bits[name].append(measured(run, documents, threads))
        for name in ARMS:
            by_seed = [float(np.sum(each) / sizes.sum()) for each in bits[name]]
            found[name] |= {"bits_per_byte": float(np.mean(by_seed)), "by_seed": by_seed}
        pairs = (("raw", "deduplicated"), ("deduplicated", "filtered"), ("raw", "filtered"))
        result["differences"] = [
            {"from": one, "to": other, **difference(bits[one], bits[other], sizes)}
            for one, other in pairs
        ]
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        show(result)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print the table, and a line for each difference."""
    table = Table("corpus", "bits per byte", "read", "kept", "tokens", "good text", "epochs")
    for name, row in result["arms"].items():
        shown = (f"{row[key]:,.4g}" if key in row else "" for key in SHOWN)
        table.add_row(name, *shown)
    Console().print(table)
    for row in result.get("differences", ()):
        low, high = row["interval"]
        print(f"{row['from']} to {row['to']}: {row['change']:+.3f} ({low:+.3f} to {high:+.3f})")


def divide(good: Sequence[Path], out: Path) -> None:
    """Write ``hidden.jsonl``, ``curated.jsonl`` and ``held-out.jsonl``."""
    parts: dict[str, list[dict[str, str]]] = {name: [] for name in SHARES}
    edges = np.cumsum(list(SHARES.values()))
    found = [path for each in good for path in (each.rglob("*.txt") if each.is_dir() else [each])]
    for path in sorted(set(found)):
        for article in articles_of(path.read_text(encoding="utf-8")):
            drawn = point(0, "effect", f"{path.name} {article[:200]}")
            name = list(SHARES)[min(int(np.searchsorted(edges, drawn, "right")), len(edges) - 1)]
            parts[name] += [{"text": block} for block in blocks_of(article)]
    if not all(parts.values()):
        sys.exit(f"--good: {len(found)} files have too few articles to divide")
    for name, rows in parts.items():
        if not (out / f"{name}.jsonl").exists():
            write_jsonl(out / f"{name}.jsonl", rows)


def articles_of(text: str) -> list[str]:
    """WikiText's articles, or the whole text."""
    found = [""]
    for line in text.splitlines(keepends=True):
        if line.startswith(" = ") and not line.startswith(" = =") and found[-1].strip():
            found.append("")
        found[-1] += line
    return [each for each in found if each.strip()]


def blocks_of(article: str) -> Iterator[str]:
    """Whole lines of an article, together about `BLOCK` characters; long lines between words."""
    held = ""
    for line in article.splitlines(keepends=True):
        while len(line) > BLOCK:
            place = line.rfind(" ", 0, BLOCK) + 1 or BLOCK
            yield held + line[:place]
            held, line = "", line[place:]
        held += line
        if len(held) > BLOCK:
            yield held
            held = ""
    if held.strip():
        yield held


def built(
    out: Path, name: str, steps: dict[str, Any], raw: Sequence[str], pareto: float, threads: int
) -> dict[str, Any]:
    """The corpus of an arm: the crawl alone, with the first arm's tokenizer."""
    hidden, curated = (str((out / f"{each}.jsonl").absolute()) for each in ("hidden", "curated"))
    paths = {"raw": [*(str(Path(each).absolute()) for each in raw), hidden], "curated": [curated]}
    recipe: dict[str, Any] = {
        "out": name,
        "workers": threads,
        "sources": {
            source: {
                "paths": given,
                "weight": float(source == "raw"),
                "curated": source == "curated",
            }
            for source, given in paths.items()
        },
        "shards": {"vocabulary_size": 8_000, "validation": 0.0},
        **steps,
    }
    if name != "raw":
        recipe["shards"]["tokenizer"] = str(tokenizer_of(out / "raw"))
    if "quality" in steps:
        recipe["quality"] = {**steps["quality"], "classifier": {"enabled": True, "pareto": pareto}}
    file = out / f"{name}.toml"
    file.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    record: dict[str, Any] = lmsmith.build_corpus(str(file)).record
    return record


def tokenizer_of(corpus: Path) -> Path:
    """The tokenizer of a finished corpus."""
    return next(corpus.glob("shards-*/tokenizer")).absolute()


def good_share(corpus: Path) -> float:
    """Share of the tokens of the crawl that are of the hidden good text."""
    hidden = total = 0
    for part in CorpusDocuments.open(corpus, "raw").parts:
        lengths = np.diff(part.offsets).tolist()
        for (id,), length in zip(part.columns("id"), lengths, strict=True):
            total += length
            hidden += length if "/hidden.jsonl:" in f"/{id}" else 0
    return hidden / total


def pretrained(out: Path, name: str, seed: int, tokens: int, shape: str, threads: int) -> Path:
    """The folder of a run that read so many tokens of a corpus."""
    recipe = {
        "seed": seed,
        "machine": {"threads": threads},
        "data": {"shards": name},
        "tokenizer": {},
        "pretrain": {
            "tokens": tokens,
            "model": {key: int(value) for key, value in (p.split("=") for p in shape.split(","))},
        },
    }
    file = out / f"{name}-{seed}.toml"
    file.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return lmsmith.run(file, folder=out / "runs" / f"{name}-{seed}").folder


def measured(run: Path, documents: list[str], threads: int) -> list[float]:
    """Bits of each held-out document."""
    machine = prepare_process(MachineConfig(threads=threads))
    read = read_model(run)
    return bits_of_documents(read.decoder, read.tokenizer, documents, machine).bits


def difference(one: list[list[float]], other: list[list[float]], sizes: Any) -> dict[str, Any]:
    """Bits per byte that the second corpus has more than the first, with 95 % intervals.

    ``interval`` is Student's over the seeds, each seed's two runs a pair: it says whether another
    seed would agree. ``interval_of_documents`` is a bootstrap over the held-out documents.
    """
    change_s = (np.sum(other, 1) - np.sum(one, 1)) / sizes.sum()
    by_documents = bootstrap_ratio(np.mean(other, 0) - np.mean(one, 0), sizes)
    low, high = paired_interval(change_s)
    return {
        "change": float(np.mean(change_s)),
        "interval": [low, high],
        "interval_of_documents": [by_documents.low, by_documents.high],
        "by_seed": change_s.tolist(),
    }


def paired_interval(change_s: Any) -> tuple[float, float]:
    """Mean ± t(0.975, n - 1) · s / √n of the differences of n pairs."""
    from scipy.stats import t

    count = len(change_s)
    if count < 2:
        return -math.inf, math.inf
    half = float(t.ppf(0.975, count - 1) * np.std(change_s, ddof=1) / math.sqrt(count))
    return float(np.mean(change_s)) - half, float(np.mean(change_s)) + half


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
