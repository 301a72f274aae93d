"""What filtering and de-duplication are worth: the same pretraining on three corpora of one source.

Raw, without its duplicates, and filtered too: each is built by `lmsmith.build_corpus` with one
tokenizer, and pretrains the same model on as many tokens with the same seeds. Measured are bits
per byte on curated text that none of them has read; the curated text that teaches the classifier
is not trained on either. The interval of a difference is a bootstrap over documents of the mean
over the seeds. Other programs at work change the time alone.
"""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
import tyro
from rich.console import Console
from rich.table import Table

import lmsmith
from lmsmith.catalogue.reading import read_model
from lmsmith.core.recipe import MachineConfig
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

SHOWN = ("bits_per_byte", "documents", "kept", "tokens", "epochs")


def main(
    raw: tuple[str, ...],
    curated: tuple[str, ...],
    held_out: Path,
    tokens: Count = 2_000_000,
    layers: Count = 4,
    width: Count = 256,
    seeds: Count = 3,
    pareto: float = 9.0,
    threads: Count = 0,
    out: Path = Path("evals/corpus-effect"),
    json: bool = False,
) -> int:
    """Pretrain on raw, de-duplicated and filtered text, and compare on held-out curated text.

    Example: python benchmarks/corpus_effect.py --raw mail handbook --curated good.txt
    --held-out wikitext2.test.txt --json

    Args:
        raw: Files, folders or globs of the source.
        curated: The classifier's examples of good text.
        held_out: Text, a document between empty lines around a heading, that is measured on.
        tokens: Tokens that each model reads.
        layers: Blocks of the model.
        width: Its width; a head has 64.
        seeds: Runs on each corpus.
        pareto: Shape of the classifier's draw; smaller keeps more.
        threads: All cores if 0.
        out: Corpora and runs go here; what is done is not done again.
        json: Print one JSON object instead of the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    documents = documents_of(held_out.read_text(encoding="utf-8"))
    shape = f"layers={layers},width={width},heads={width // 64}"
    found: dict[str, dict[str, Any]] = {}
    bits: dict[str, list[list[float]]] = {}
    for name, steps in ARMS.items():
        corpus = built(out, name, steps, raw, curated, pareto)
        runs = [pretrained(out, name, seed, tokens, shape, threads) for seed in range(seeds)]
        bits[name] = [measured(run, documents, threads) for run in runs]
        source = corpus["sources"]["raw"]
        found[name] = {
            "documents": corpus["steps"]["read"]["raw"]["documents_out"],
            "kept": source["documents"],
            "tokens": source["tokens"],
            "epochs": tokens / source["tokens"],
        }
    sizes = np.array([len(each.encode()) for each in documents])
    for name in ARMS:
        found[name]["bits_per_byte"] = float(np.mean(bits[name], 0).sum() / sizes.sum())
        found[name]["by_seed"] = [float(np.sum(each) / sizes.sum()) for each in bits[name]]
    pairs = (("raw", "deduplicated"), ("deduplicated", "filtered"), ("raw", "filtered"))
    differences = [
        {"from": one, "to": other, **difference(bits[one], bits[other], sizes)}
        for one, other in pairs
    ]
    result = {"tokens": tokens, "seeds": seeds, "arms": found, "differences": differences}
    if json:
        print(json_module.dumps(result, indent=2))
        return 0
    table = Table("corpus", "bits per byte", "documents read", "kept", "tokens", "epochs")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:,.4g}" for key in SHOWN))
    Console().print(table)
    for row in differences:
        low, high = row["interval"]
        print(f"{row['from']} to {row['to']}: {row['change']:+.3f} ({low:+.3f} to {high:+.3f})")
    return 0


def documents_of(text: str) -> list[str]:
    """WikiText's articles, or blocks of about 4,000 characters of other text."""
    found, size = [""], 0
    for line in text.splitlines(keepends=True):
        is_heading = line.startswith(" = ") and not line.startswith(" = =")
        if (is_heading and size > 500) or size > 4_000:
            found.append("")
            size = 0
        found[-1] += line
        size += len(line)
    return [each for each in found if each.strip()]


def built(
    out: Path,
    name: str,
    steps: dict[str, Any],
    raw: tuple[str, ...],
    curated: tuple[str, ...],
    pareto: float,
) -> dict[str, Any]:
    """The corpus of an arm: the source alone, with the first arm's tokenizer."""
    paths = {"raw": raw, "curated": curated}
    recipe: dict[str, Any] = {
        "out": name,
        "sources": {
            source: {
                "paths": [str(Path(each).absolute()) for each in given],
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
    """Bits per byte that the second corpus has more than the first, with the interval of 95 %."""
    change_d = np.mean(other, 0) - np.mean(one, 0)
    found = bootstrap_ratio(change_d, sizes)
    return {
        "change": found.value,
        "interval": [found.low, found.high],
        "by_seed": ((np.sum(other, 1) - np.sum(one, 1)) / sizes.sum()).tolist(),
    }


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
