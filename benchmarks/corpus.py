"""The corpus builder on planted data: speed and memory by step, what is found, and its peers.

Everything planted is known, so recall and precision are exact. The peers remove near-duplicates
with equal parameters (shingles of 5 words, bands, rows), each in a process of its own, one after
the other; seconds are of the wall, and of the processor, which other programs disturb less.
Tokenising and the time of several workers use all cores: nothing else should run then.

    python -m venv PEERS
    PEERS/bin/pip install "datatrove[processing]==0.10.*" orjson datasketch "rensa==0.5.*"
    python benchmarks/corpus.py --peers PEERS/bin/python --json
"""

from __future__ import annotations

import json as json_module
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from planted import SIMILARITIES, Planted, plant
from rich.console import Console
from rich.table import Table

from lmsmith.cli.output import print_json
from lmsmith.corpus.build.minhash import share_probability
from lmsmith.corpus.words import normal_words
from lmsmith.evaluation.contamination import task_texts
from lmsmith.runs.stage_folder import available_cores, describe_hardware

HERE = Path(__file__).parent
PEERS = ("datatrove", "datasketch", "rensa")
THRESHOLD = 0.8
WORDS = 13
"""Fewer of an item cannot be found by GPT-3's rule."""
Count = Annotated[int, tyro.conf.arg(metavar="N")]
Found = dict[str, Any]


def run(python: str, script: str, *arguments: object) -> Found:
    """What a side prints, in a process of its own."""
    command = [python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {arguments[0]}: {done.stderr[-2000:]}")
    found: Found = json_module.loads(done.stdout.splitlines()[-1])
    return found


def side(found: Found, megabytes: float) -> Found:
    """Seconds in all and MB/s of a side, without its imports."""
    spent = [both for name, both in found["seconds"].items() if name != "import"]
    wall, processor = (sum(each) for each in zip(*spent, strict=True))
    return {
        "seconds": wall,
        "processor_seconds": processor,
        "mb_per_second": megabytes / wall,
        "mb_per_processor_second": megabytes / processor,
        "peak_memory_mb": found["peak_memory_bytes"] / 1e6,
        "parts": found["seconds"],
    }


def near_quality(planted: Planted, removed: Sequence[str]) -> Found:
    """How many of the planted pairs of each similarity lost their copy, and what else went."""
    gone = set(removed)
    pairs = [*planted.near, *((one, copy, 1.0) for one, copy in planted.exact)]
    counts: dict[float, list[int]] = {each: [0, 0] for each in (*SIMILARITIES, 1.0)}
    for one, copy, similarity in pairs:
        count = counts[min(counts, key=lambda each: abs(each - similarity))]
        count[0] += bool({one, copy} & gone)
        count[1] += 1
    alike = [pair for pair in pairs if pair[2] >= THRESHOLD]
    named = {id for one, copy, _ in alike for id in (one, copy)}
    return {
        "recall": sum(bool({one, copy} & gone) for one, copy, _ in alike) / len(alike),
        "precision": len(gone & named) / max(1, len(gone)),
        "found_by_similarity": {str(each): f"{n}/{of}" for each, (n, of) in counts.items()},
    }


def other_quality(planted: Planted, removed: Mapping[str, Sequence[Sequence[str]]]) -> Found:
    """Junk and a task's items that were found, and documents that were taken for one."""
    rules = dict(removed["gopher"])
    exact = {copy for _, copy in planted.exact}
    gone = {id for id, _ in removed["exact"]}
    cut = {id for id, reason in removed["decontaminate"] if reason.startswith("overlap")}
    # An item is found only in documents that no step before it removed.
    before = {id for name in ("gopher", "exact", "near-duplicates") for id, _ in removed[name]}
    dirty = set(planted.contaminated) - before
    return {
        "junk_recall": len(rules.keys() & planted.junk.keys()) / len(planted.junk),
        "junk_false": len(rules.keys() - planted.junk.keys()),
        "junk_by_rule": Counter(reason.partition(":")[0] for reason in rules.values()),
        "exact_recall": len(gone & exact) / len(exact),
        "exact_false": len(gone - exact),
        "contaminated_documents": len(dirty),
        "contamination_recall": len(cut & dirty) / len(dirty),
        "contamination_false": len(cut - dirty),
    }


def longest_texts(tasks: Sequence[str], data: Sequence[str]) -> list[str]:
    """The longest text of each item of some tasks, of those with 13 words at least."""
    found: dict[tuple[str, str], str] = {}
    for each in task_texts(tasks, data) if tasks else ():
        key = each.task, each.item
        found[key] = max(found.get(key, ""), each.text, key=len)
    return [text for text in found.values() if len(normal_words(text)) >= WORDS]


def tokenising(corpus: Path, folder: Path, megabytes: float, cores: int) -> dict[str, Found]:
    """The builder's shards, and the `tokenizers` library alone, with so many cores each."""
    folder.mkdir()
    found: dict[str, Found] = {}
    for name in ("shards", "library"):
        given = (corpus, folder, "--workers", cores)
        side = run(sys.executable, "corpus_tokens.py", name, *given)
        wall, processor = side["seconds"]["tokens"]
        speeds = {
            "mb_per_second": megabytes / wall,
            "mb_per_processor_second": megabytes / processor,
        }
        found[name] = {"tokens": side["tokens"], "cores": cores, **speeds}
    for row in found.values():
        row["ratio"] = found["shards"]["mb_per_second"] / row["mb_per_second"]
    return found


def exponent(small: float, large: float, times: float) -> float:
    """e of seconds = c · size^e, by two sizes."""
    return math.log(large / small) / math.log(times)


def show(result: Found) -> None:
    """Print the tables."""
    console = Console()
    speed = Table("step", "MB/s", "MB per processor second", "growth", title="lmsmith, by step")
    for name, row in result["steps"].items():
        growth = f"{row['exponent']:.2f}" if row["exponent"] is not None else ""
        both = (f"{row[k]:,.1f}" for k in ("mb_per_second", "mb_per_processor_second"))
        speed.add_row(name, *both, growth)
    console.print(speed)
    table = Table("near-duplicates", "MB/s", "MB per processor second", "lmsmith / it", "peak MB",
                  "recall", "precision")  # fmt: skip
    for name, row in result["near_duplicates"].items():
        both = (f"{row[k]:,.1f}" for k in ("mb_per_second", "mb_per_processor_second"))
        last = (f"{row['peak_memory_mb']:,.0f}", f"{row['recall']:.4f}", f"{row['precision']:.4f}")
        table.add_row(name, *both, f"{row['ratio']:.2f}", *last)
    console.print(table)
    table = Table("tokenising", "MB/s", "MB per processor second", "lmsmith / it", "tokens")
    for name, row in result["tokenising"].items():
        both = (f"{row[k]:,.1f}" for k in ("mb_per_second", "mb_per_processor_second"))
        table.add_row(name, *both, f"{row['ratio']:.2f}", f"{row['tokens']:,}")
    console.print(table)
    for name in ("found", "figures"):
        for key, value in result[name].items():
            console.print(f"{key}: {value}", highlight=False)


def main(
    megabytes: float = 50,
    growth: float = 4,
    bands: Count = 14,
    rows: Count = 8,
    workers: Count = 1,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    peers: str = "",
    json: bool = False,
) -> int:
    """Plant a corpus, build it, and measure the peers on it.

    Args:
        megabytes: Text of the corpus that all sides read.
        growth: Times as much, for the exponent of time; 1 leaves it out.
        bands: Bands of MinHash, of every side.
        rows: Hashes of a band.
        workers: Processes of ours; the peers have one.
        seed: Of what is planted.
        tasks: Tasks whose items are planted, such as lambada human_eval; drawn ones without any.
        data: Folders of the tasks' data.
        peers: A Python with datatrove, datasketch and rensa; none is measured without it.
        json: Print one JSON object instead of the tables.
    """
    asked = longest_texts(tasks, data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def planted_in(size: float) -> tuple[Planted, Path, Path]:
            corpus, items = folder / f"{size}/corpus.jsonl", folder / f"{size}/items.json"
            corpus.parent.mkdir()
            planted = plant(corpus, size, seed, asked)
            items.write_text(json_module.dumps(planted.items), "utf-8")
            return planted, corpus, items

        def ours(corpus: Path, items: Path, steps: str, workers: int = workers) -> Found:
            given = ("--items", items, "--workers", workers, "--bands", bands, "--rows", rows)
            paths = ("--corpus", corpus, "--folder", corpus.parent / f"{steps}-{workers}")
            return run(sys.executable, "corpus_ours.py", *paths, *given, "--steps", steps)

        planted, corpus, items = planted_in(megabytes)
        size = planted.size / 1e6
        whole, near = ours(corpus, items, "all"), ours(corpus, items, "near")
        sides = {"lmsmith": near}
        for peer in PEERS if peers else ():
            place = folder / peer
            place.mkdir()
            given = (peer, corpus, place, "--bands", bands, "--rows", rows)
            sides[peer] = run(peers, "corpus_peers.py", *given)
        cores = available_cores()
        tokens = tokenising(corpus, folder / "tokens", size, cores)
        both = ours(corpus, items, "all", cores) if cores > workers else None
        large = None
        if growth > 1:
            big, corpus, items = planted_in(megabytes * growth)
            large = ours(corpus, items, "all")
        own = [id for id, _ in near["removed"]["near-duplicates"]]
        sides["lmsmith"]["removed"] = own
        rows_of = {name: side(found, size) | near_quality(planted, found["removed"])
                   for name, found in sides.items()}  # fmt: skip
        for row in rows_of.values():
            row["ratio"] = row["processor_seconds"] / rows_of["lmsmith"]["processor_seconds"]
        parts: dict[str, Any] = {}
        totals = [sum(both[n] for both in whole["seconds"].values()) for n in (0, 1)]
        for step, (wall, processor) in [*whole["seconds"].items(), ("all", totals)]:
            parts[step] = {
                "mb_per_second": size / wall,
                "mb_per_processor_second": size / processor,
                "exponent": None,
            }
            if large:
                seconds = large["seconds"]
                later = sum(b[1] for b in seconds.values()) if step == "all" else seconds[step][1]
                times = big.size / planted.size
                parts[step]["exponent"] = exponent(processor, later, times)
        figures = {
            "documents": planted.documents,
            "megabytes": size,
            "bands_x_rows": f"{bands} x {rows}",
            "shared_band_at_0.8": share_probability(THRESHOLD, bands, rows),
            "workers": workers,
            "peak_memory_mb": whole["peak_memory_bytes"] / 1e6,
            "hardware": describe_hardware(),
        }
        if large:
            figures["peak_memory_mb_of_the_larger"] = large["peak_memory_bytes"] / 1e6
        found = other_quality(planted, whole["removed"]) | {
            "near_by_similarity": rows_of["lmsmith"]["found_by_similarity"]
        }
        if both:
            wall = totals[0] / sum(each[0] for each in both["seconds"].values())
            figures[f"times_as_fast_with_{cores}_workers"] = wall
        result = {
            "steps": parts,
            "near_duplicates": rows_of,
            "tokenising": tokens,
            "found": found,
            "figures": figures,
        }
    if json:
        print_json(result)
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
