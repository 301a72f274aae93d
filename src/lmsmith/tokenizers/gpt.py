"""GPT-1's and GPT-2's tokenizers, from OpenAI's own files and from transformers'."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.tokenizers.chat_format import END_OF_TEXT
from lmsmith.tokenizers.control_tokens import refusing_panic
from lmsmith.tokenizers.description import MOST_BYTES
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.tokenizers.tokenizer import Tokenizer

UNKNOWN = "<unk>"
WORD_END = "</w>"


def load_gpt2(folder: Path | str) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2): 256 bytes, 50,000 merges and one end.

    Args:
        folder: has ``encoder.json`` and ``vocab.bpe``, or transformers' names for the same files,
            ``vocab.json`` and ``merges.txt``.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = Path(folder)
    vocabulary = _read_vocabulary(folder, ("encoder.json", "vocab.json"))
    merges = _read_merges(folder, ("vocab.bpe", "merges.txt"))
    description = byte_level_description(vocabulary, merges, [END_OF_TEXT])
    variables = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return import_tokenizer(description, variables=variables)


def load_gpt1(folder: Path | str, *, end_of_text: str | None = END_OF_TEXT) -> Tokenizer:
    """GPT-1's vocabulary of 40,478 from its files.

    Text is fixed by ftfy, lower-cased, freed of accents and cut at spaces and punctuation
    (BERT's basic tokenizer, which transformers uses too; OpenAI cut with spaCy). Decoding gives
    lower-case words with a space after each: the text itself does not come back.

    Args:
        folder: has ``encoder_bpe_40000.json`` and ``vocab_40000.bpe``, or transformers' names,
            ``vocab.json`` and ``merges.txt``.
        end_of_text: added as one more token, since GPT-1 has none: the model needs one row more
            in its embedding. None adds nothing, and ``<unk>`` stands for it.

    Raises:
        UserError: a file is missing or damaged, or ftfy is not installed.
    """
    folder = Path(folder)
    vocabulary = _read_vocabulary(folder, ("encoder_bpe_40000.json", "vocab.json"))
    merges = _read_merges(folder, ("vocab_40000.bpe", "merges.txt"))
    if UNKNOWN not in vocabulary:
        raise UserError(f"{folder}: the vocabulary has no {UNKNOWN}", "fetch it again")
    _check_merges(vocabulary, merges)
    ends = {"unk_token": UNKNOWN, "end_of_word_suffix": WORD_END}
    with refusing_panic("not a readable vocabulary", "fetch it again"):
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **ends))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    backend.add_special_tokens([UNKNOWN] if end_of_text is None else [UNKNOWN, end_of_text])
    end = end_of_text or UNKNOWN
    return import_tokenizer(
        json.loads(backend.to_str()),
        variables={"bos_token": end, "eos_token": end, "unk_token": UNKNOWN},
        cleaning="ftfy",
    )


def byte_level_description(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], controls: Sequence[str]
) -> dict[str, Any]:
    """Contents of a ``tokenizer.json`` that cuts text as GPT-2 does."""
    _check_merges(vocabulary, merges)
    with refusing_panic("not a readable vocabulary", "fetch it again"):
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(controls))
    description: dict[str, Any] = json.loads(backend.to_str())
    return description


def _check_merges(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Refuse merges of what is no token: the library ends the thread on some of these."""
    for number, (left, right) in enumerate(merges, start=1):
        wrong = next((t for t in (left, right, left + right) if t not in vocabulary), None)
        if wrong is not None:
            raise UserError(
                f"vocabulary and merges do not belong together: merge {number} needs the token "
                f"{wrong!r}",
                "fetch both again, of one model",
            )


def _read_vocabulary(folder: Path, names: Sequence[str]) -> dict[str, int]:
    path = _existing(folder, names)
    content = read_json(path, MOST_BYTES)
    if not isinstance(content, dict) or not all(type(v) is int for v in content.values()):
        raise UserError(f"{path}: expected an object of ids by token", "fetch the file again")
    return content


def _read_merges(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs in the order they were learnt."""
    path = _existing(folder, names)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: too large for merges", "fetch it again")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error})", "fetch it again") from error
    merges = []
    for number, line in enumerate(lines[lines[0].startswith("#version") :], start=1):
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
    """The first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has no {' and no '.join(names)}", "name the folder that the files are in"
    )
