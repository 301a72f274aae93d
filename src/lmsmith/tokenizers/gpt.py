"""GPT-1's and GPT-2's tokenizers, from OpenAI's own files and from transformers'."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.tokenizers.chat_format import END_OF_TEXT
from lmsmith.tokenizers.control_tokens import added_token
from lmsmith.tokenizers.description import MOST_BYTES, most_merges
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
    merges = _read_merges(folder, ("vocab.bpe", "merges.txt"), len(vocabulary))
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
    merges = _read_merges(folder, ("vocab_40000.bpe", "merges.txt"), len(vocabulary))
    if UNKNOWN not in vocabulary:
        raise UserError(f"{folder}: the vocabulary has no {UNKNOWN}", "fetch it again")
    model = models.BPE(unk_token=UNKNOWN, end_of_word_suffix=WORD_END)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    end = end_of_text or UNKNOWN
    return import_tokenizer(
        _described(backend, vocabulary, merges, list(dict.fromkeys([UNKNOWN, end]))),
        variables={"bos_token": end, "eos_token": end, "unk_token": UNKNOWN},
        cleaning="ftfy",
    )


def byte_level_description(
    vocabulary: dict[str, int], merges: Iterable[Sequence[str]], controls: Sequence[str]
) -> dict[str, Any]:
    """Contents of a ``tokenizer.json`` that cuts text as GPT-2 does."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _described(backend, vocabulary, merges, controls)


def _described(
    backend: tokenizers.Tokenizer,
    vocabulary: dict[str, int],
    merges: Iterable[Sequence[str]],
    controls: Sequence[str],
) -> dict[str, Any]:
    """Contents of a ``tokenizer.json``: the backend's steps with a vocabulary and control tokens.

    A control token that is not in the vocabulary gets the next id.
    """
    description: dict[str, Any] = json.loads(backend.to_str())
    description["model"] |= {"vocab": vocabulary, "merges": list(_checked(vocabulary, merges))}
    ids = itertools.count(len(vocabulary))
    description["added_tokens"] = [
        added_token(vocabulary[name] if name in vocabulary else next(ids), name, True)
        for name in controls
    ]
    return description


def _checked(vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """Merges whose texts are the vocabulary's own; those of what is no token are refused."""
    names = {name: name for name in vocabulary}
    for number, (left, right) in enumerate(merges, start=1):
        wrong = next((t for t in (left, right, left + right) if t not in vocabulary), None)
        if wrong is not None:
            raise UserError(
                f"vocabulary and merges do not belong together: merge {number} needs the token "
                f"{wrong!r}",
                "fetch both again, of one model",
            )
        yield [names[left], names[right]]


def _read_vocabulary(folder: Path, names: Sequence[str]) -> dict[str, int]:
    path = _existing(folder, names)
    content = read_json(path, MOST_BYTES)
    if not isinstance(content, dict) or not all(type(v) is int for v in content.values()):
        raise UserError(f"{path}: expected an object of ids by token", "fetch the file again")
    return content


def _read_merges(folder: Path, names: Sequence[str], tokens: int) -> Iterator[list[str]]:
    """Pairs in the order they were learnt, of a vocabulary of so many tokens."""
    path = _existing(folder, names)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: too large for merges", "fetch it again")
        text = path.read_text(encoding="utf-8")
        if (count := text.count("\n")) > most_merges(tokens, len(text)):
            raise UserError(f"{path}: {count:,} merges of {tokens:,} tokens", "fetch it again")
        lines = text.split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error})", "fetch it again") from error
    for number, line in enumerate(lines[lines[0].startswith("#version") :], start=1):
        if not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise UserError(
                f"{path}, merge {number}: expected two tokens, found {line!r}", "fetch it again"
            )
        yield pair


def _existing(folder: Path, names: Sequence[str]) -> Path:
    """The first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has no {' and no '.join(names)}", "name the folder that the files are in"
    )
