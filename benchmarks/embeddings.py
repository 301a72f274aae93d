"""Texts to vectors a second: `lmsmith embed` against transformers with mean pooling, in one run.

    python benchmarks/embeddings.py all-minilm-l6-v2 texts.txt

Both read the same files with the same tokenizer and as many threads, at batch 1 and 64, in float32
and in bf16. The peer pads each batch to its longest text, as sentence-transformers does. The time
is the processor's, best of several rounds in which all four take turns, so that other work on the
machine counts less.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lmsmith.catalogue.encoders import read_encoder
from lmsmith.generation.embedding import Embedder, Vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file", type=Path, help="a text a line")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = (line.strip() for line in given.file.read_text(encoding="utf-8").splitlines())
    texts = [line for line in lines if line][: given.texts]
    read = read_encoder(given.model)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    ours = {name: Embedder(read, dtype) for name, dtype in dtypes.items()}
    most = ours["fp32"].most_tokens
    peers = {name: their_embedder(read.source.path, most, dtype) for name, dtype in dtypes.items()}
    exact = peers["fp32"](texts[:64])
    for name, embedder in ours.items():
        found = embedder.embed(texts[:64]).vectors
        cosines = np.abs(found @ found.T - exact @ exact.T).max()
        difference = np.abs(found - exact).max()
        print(f"{name}: largest difference of a number {difference:.1e}, of a cosine {cosines:.1e}")
    print(f"{given.threads} threads, texts a second, and the ratio to transformers in fp32")
    print(f"{'batch':>5} {'fp32':>9} {'bf16':>9} {'theirs':>9} {'in bf16':>9} {'ratios':>11}")
    for batch in (1, 64):
        groups = [texts[at : at + batch] for at in range(0, len(texts), batch)]
        groups = groups[: 32 if batch == 1 else 4]
        count = sum(map(len, groups))
        calls: list[Callable[[Sequence[str]], Vectors]] = [
            *(functools.partial(vectors_of, embedder) for embedder in ours.values()),
            *peers.values(),
        ]
        speeds = [count / seconds for seconds in best_seconds(calls, groups)]
        shown = " ".join(f"{speed:>9.1f}" for speed in speeds)
        print(f"{batch:>5} {shown} {speeds[0] / speeds[2]:>5.2f} {speeds[1] / speeds[2]:>5.2f}")


def vectors_of(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Our vectors."""
    return embedder.embed(texts).vectors


def their_embedder(
    folder: Path, most: int, dtype: torch.dtype
) -> Callable[[Sequence[str]], Vectors]:
    """transformers' BertModel, the mean over the mask, normalised."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval().to(dtype)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Vectors:
        given = tokenizer(
            list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        hidden = model(**given).last_hidden_state.float()
        mask = given["attention_mask"][..., None].float()
        found: Vectors = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        return found

    return embed


def best_seconds(
    calls: Sequence[Callable[[Sequence[str]], Vectors]],
    groups: Sequence[Sequence[str]],
    times: int = 9,
) -> list[float]:
    """Least processor time of each for all groups, one after the other; the calls take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(times):
        for place, call in enumerate(calls):
            started = time.process_time()
            for group in groups:
                call(group)
            best[place] = min(best[place], time.process_time() - started)
    return best


if __name__ == "__main__":
    main()
