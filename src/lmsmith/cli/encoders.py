"""``lmsmith embed`` and ``lmsmith fill-mask``: vectors of texts, and hidden words."""

from __future__ import annotations

from pathlib import Path

from lmsmith import encoders
from lmsmith.cli.output import input_lines, print_error, print_json
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import in_one_line


def embed(
    model: str,
    *text: str,
    file: Path | None = None,
    precision: encoders.EmbeddingPrecision = "fp32",
    threads: int = 0,
    json: bool = False,
) -> None:
    """Turn texts into vectors of length 1, whose products say how alike the texts are.

    Prints each text's nearest other one with their cosine, where there are several; with --json
    the vectors.

    Args:
        model: An encoder: a registered name, a run of the recipe bert, or a BERT folder.
        text: One text or more.
        file: A text file, each line of which is a text; - is standard input.
        precision: Of matrix products; bf16 is faster, and changes a vector's numbers by 1e-3.
        threads: Of an operation; 0 takes all cores.
    """
    texts = list(text)
    if file is not None:
        lines = input_lines(None if str(file) == "-" else file)
        texts += [stripped for _, line in lines if (stripped := line.strip())]
    if not texts:
        raise UserError("no texts", "give them as arguments, or a file of lines with --file")
    found = encoders.embed(model, texts, precision=precision, threads=threads)
    if found.found.cut:
        print_error(f"{len(found.found.cut)} texts are longer than the model reads, and were cut")
    if json:
        print_json(found.as_dict())
        return
    vectors = found.found.vectors
    if len(texts) == 1:
        print(" ".join(f"{number:.6f}" for number in vectors[0].tolist()))
        return
    for number, vector in enumerate(vectors):
        cosines = vectors @ vector
        cosines[number] = -2.0
        nearest = int(cosines.argmax())
        ours, theirs = in_one_line(texts[number]), in_one_line(texts[nearest])
        print(f"{cosines[nearest]:7.4f}  {ours}  →  {theirs}")


def fill_mask(model: str, text: str, *, top: int = 5, threads: int = 0, json: bool = False) -> None:
    """Find the likeliest words in the place of every [MASK] of a text, with probabilities.

    Args:
        model: A run of the recipe bert, or a BertForMaskedLM folder.
        text: Contains [MASK] once or more.
        top: Words for each mask.
        threads: Of an operation; 0 takes all cores.
    """
    found = encoders.fill_mask(model, text, top=top, threads=threads)
    if json:
        print_json(found.as_dict())
        return
    for number, mask in enumerate(found.masks, start=1):
        if len(found.masks) > 1:
            print(f"mask {number}:")
        for each in mask.candidates:
            print(f"{each.probability:8.4f}  {in_one_line(each.text)}")
