"""Texts to vectors a second: `lmsmith embed` against transformers with mean pooling, in one run.

    python benchmarks/embeddings.py all-minilm-l6-v2 texts.txt

Both read the same files with the same tokenizer and as many threads, in float32, at batch 1 and 64;
the peer pads each batch to its longest text, as sentence-transformers does. The time is the
processor's, best of several, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
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
    ours = Embedder(read_encoder(given.model))
    peer = their_embedder(ours.read.source.path, ours.most_tokens)
    difference = np.abs(ours.embed(texts[:64]).vectors - peer(texts[:64])).max()
    print(f"largest difference of a number: {difference:.1e}; {given.threads} threads")
    print(f"{'batch':>5} {'lmsmith':>12} {'transformers':>12} {'ratio':>6}")
    for batch in (1, 64):
        groups = [texts[at : at + batch] for at in range(0, len(texts), batch)]
        groups = groups[: 32 if batch == 1 else 4]
        count = sum(map(len, groups))
        mine = count / best_seconds(lambda part: ours.embed(part).vectors, groups)
        other = count / best_seconds(peer, groups)
        print(f"{batch:>5} {mine:>10.1f}/s {other:>10.1f}/s {mine / other:>6.2f}")


def their_embedder(folder: Path, most: int) -> Callable[[Sequence[str]], Vectors]:
    """transformers' BertModel, the mean over the mask, normalised."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Vectors:
        given = tokenizer(
            list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        hidden = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None].float()
        found: Vectors = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        return found

    return embed


def best_seconds(
    embed: Callable[[Sequence[str]], Vectors], groups: Sequence[Sequence[str]], times: int = 5
) -> float:
    """Least processor time for all groups, one after the other."""
    best = float("inf")
    for _ in range(times):
        started = time.process_time()
        for group in groups:
            embed(group)
        best = min(best, time.process_time() - started)
    return best


if __name__ == "__main__":
    main()
