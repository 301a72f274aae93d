"""GPT-2's tokenizer from OpenAI's own files: ``encoder.json`` and ``vocab.bpe``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.tokenizers.importing import import_tokenizer
from lmsmith.tokenizers.special import END_OF_TEXT
from lmsmith.tokenizers.tokenizer import Tokenizer


def load_gpt2(folder: Path | str) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2): 256 bytes, 50,000 merges and one end.

    Args:
        folder: has ``encoder.json`` and ``vocab.bpe``, or transformers' names for the same files,
            ``vocab.json`` and ``merges.txt``.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = Path(folder)
    vocabulary = read_vocabulary(folder, ("encoder.json", "vocab.json"))
    merges = read_merges(folder, ("vocab.bpe", "merges.txt"))
    description = byte_level_description(vocabulary, merges, [END_OF_TEXT])
    variables = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return import_tokenizer(description, variables=variables)


def byte_level_description(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], controls: Sequence[str]
) -> dict[str, Any]:
    """Contents of a ``tokenizer.json`` that cuts text as GPT-2 does.

    Raises:
        UserError: a merge names a token that is not in the vocabulary.
    """
    check_merges(vocabulary, merges)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(controls))
    description: dict[str, Any] = json.loads(backend.to_str())
    return description


def check_merges(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Raises UserError if a merge joins, or makes, what is no token.

    (The library ends the process's thread on some of these.)
    """
    for number, (left, right) in enumerate(merges, start=1):
        wrong = next((t for t in (left, right, left + right) if t not in vocabulary), None)
        if wrong is not None:
            raise UserError(
                f"vocabulary and merges do not belong together: merge {number} needs the token "
                f"{wrong!r}",
                "fetch both again, of one model",
            )


def read_vocabulary(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Ids by token, of the first of the files that is there."""
    path = _existing(folder, names)
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(v, int) for v in content.values()):
        raise UserError(f"{path}: expected an object of ids by token", "fetch the file again")
    return content


def read_merges(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs in the order they were learnt, of the first of the files that is there."""
    path = _existing(folder, names)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error})", "fetch it again") from error
    if lines and lines[0].startswith("#version"):
        del lines[0]
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise UserError(
                f"{path}, merge {number}: expected two tokens, found {line!r}", "fetch it again"
            )
        merges.append((pair[0], pair[1]))
    return merges


def _existing(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has no {' and no '.join(names)}", "name the folder that the files are in"
    )
