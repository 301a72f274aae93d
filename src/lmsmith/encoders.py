"""What encoders do from Python: `lmsmith.embed` and `lmsmith.fill_mask`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith.catalogue.encoders import read_encoder
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.embedding import Embedded, Embedder
from lmsmith.generation.fill_mask import Filled, filled
from lmsmith.generation.machine import prepare_reading
from lmsmith.models.masked_lm import MaskedLM


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts, and the model that made them."""

    model: str
    texts: list[str]
    found: Embedded

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.model,
            "width": int(self.found.vectors.shape[1]),
            "embeddings": [
                {"text": text, "tokens": tokens, "embedding": vector.tolist()}
                for text, tokens, vector in zip(
                    self.texts, self.found.tokens, self.found.vectors, strict=True
                )
            ],
            "cut": self.found.cut,
        }


EmbeddingPrecision = Literal["fp32", "bf16"]


def load_embedder(
    model: str | Path, *, precision: EmbeddingPrecision = "fp32", threads: int = 0
) -> Embedder:
    """Read an encoder that makes vectors of texts.

    Args:
        model: a registered name (``lmsmith pull all-minilm-l6-v2``), a run of the recipe bert, a
            folder of sentence-transformers or another BERT folder of Hugging Face.
        precision: of matrix products; bf16 is faster, and changes a vector's numbers by 1e-3.
        threads: of an operation; 0 takes all cores.

    Raises:
        UserError: there is none, it is damaged, or it is a model of another kind.
    """
    machine = prepare_reading(MachineConfig(threads=threads, precision=precision))
    read = read_encoder(model)
    machine.put(read.model)
    return Embedder(read, machine.dtype)


def embed(
    model: str | Path,
    texts: Sequence[str],
    *,
    precision: EmbeddingPrecision = "fp32",
    threads: int = 0,
) -> Embeddings:
    """Vectors of texts, each of length 1, so that the product of two is their cosine.

    A vector is the mean of the encoder's states over a text's tokens (Reimers and Gurevych 2019),
    or the first token's where the model's files say so. What is longer than the model reads is cut
    at the end, and counted.

    Args:
        model: as in `load_embedder`.
        texts: any number.
        precision: of matrix products; bf16 is faster, and changes a vector's numbers by 1e-3.
        threads: of an operation; 0 takes all cores.

    Raises:
        UserError: no text, or the model cannot be read.

    >>> lmsmith.embed("all-minilm-l6-v2", ["a cat"]).found.vectors.shape    # doctest: +SKIP
    (1, 384)
    """
    if not texts:
        raise UserError("no texts to embed", "give one or more")
    embedder = load_embedder(model, precision=precision, threads=threads)
    return Embeddings(str(model), list(texts), embedder.embed(texts))


@dataclass(frozen=True)
class MaskedText:
    """A text with masks, and the likeliest tokens in the place of each."""

    model: str
    text: str
    masks: list[Filled]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def fill_mask(model: str | Path, text: str, *, top: int = 5, threads: int = 0) -> MaskedText:
    """The likeliest tokens in the place of each ``[MASK]`` of a text, with their probabilities.

    Several masks are filled each on its own, with the others still hidden.

    Args:
        model: a run of the recipe bert, or a folder of `BertForMaskedLM`.
        text: contains ``[MASK]``, or the model's own name for it, at least once.
        top: tokens for each mask.
        threads: of an operation; 0 takes all cores.

    Raises:
        UserError: the text has no mask, or is too long; or the model has no head that fills masks.
    """
    if top < 1:
        raise UserError(f"top = {top}: 1 or more")
    machine = prepare_reading(MachineConfig(threads=threads))
    found = read_encoder(model)
    if not isinstance(found.model, MaskedLM):
        raise UserError(
            f"{model} is an encoder without a head that fills masks",
            "name a BertForMaskedLM folder, or a run of lmsmith run bert",
        )
    return MaskedText(
        str(model), text, filled(machine.put(found.model), found.tokenizer, text, top)
    )
