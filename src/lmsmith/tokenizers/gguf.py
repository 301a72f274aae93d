"""The tokenizer in a GGUF file's metadata: read from it, and written for it.

Keys are those of the GGUF specification (ggml/docs/gguf.md, "Tokenizer").
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.control_tokens import added_token
from lmsmith.tokenizers.description import (
    MOST_CHARACTERS,
    MOST_MERGES,
    most_merges,
    read_description,
)
from lmsmith.tokenizers.gpt import byte_level_description
from lmsmith.tokenizers.hugging_face import described_with_start, hugging_face_template
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.tokenizers.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types."""


def _described(*steps: pre_tokenizers.PreTokenizer) -> Any:
    """The pre-tokenizer of these steps as a ``tokenizer.json`` has it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence([*steps])
    return json.loads(backend.to_str())["pre_tokenizer"]


def _split(digits: str) -> Any:
    """The pattern that Llama 3 and Qwen 2 share but for the number of digits in a piece."""
    pattern = "|".join(
        [
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    )
    return _described(
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_SINGLE_DIGITS = _described(pre_tokenizers.Digits(individual_digits=True), _GPT2)

PRE_TOKENIZERS: dict[str, Any] = {
    **dict.fromkeys(("gpt-2", "default", "olmo", "phi-2"), _described(_GPT2)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "dbrx", "smaug-bpe"), _split(r"\p{N}{1,3}")),
    **dict.fromkeys(("qwen2", "stablelm2"), _split(r"\p{N}")),
}
"""Pre-tokenizers by ``tokenizer.ggml.pre``."""

_BEGINS_TEXTS = {"llama-bpe", "llama3"}
"""Kinds that put ``bos`` before a text if ``add_bos_token`` is not there: llama.cpp's rule."""

_OF_SENTENCE_PIECE = ("unknown", "bos", "eos")
"""The first tokens of such a vocabulary, where the file names none: llama.cpp's rule."""

_VARIABLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
"""Names of tokens in templates, and in keys of the file."""

_WHOLE_WORDS = {"llama-bpe", "llama3", "smaug-bpe"}
"""Kinds that take a piece that is a token as it is, whatever merges would make of it."""


def tokenizer_from_gguf(metadata: Mapping[str, Any], size: int = 0) -> Tokenizer:
    """A tokenizer of the values under ``tokenizer.``.

    ``gpt2`` is byte-level BPE with merges, cut as ``tokenizer.ggml.pre`` says; ``llama`` is
    SentencePiece's BPE, whose merges follow from the tokens' scores, with bytes for what it does
    not know. If there is a ``tokenizer.huggingface.json``, that is taken: it says all.

    Args:
        size: of the file in bytes; see `check_description`.

    Raises:
        UserError: a value is missing, or the kind is neither.
    """
    tokens = _get(metadata, "ggml.tokens", list)
    if not all(isinstance(token, str) for token in tokens):
        raise UserError("the GGUF file's tokens are no texts", "fetch it again")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    kind = _get(metadata, "ggml.model", str)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(
            f"the GGUF file has {len(tokens)} tokens and not as many types", "fetch it again"
        )
    named = _named_tokens(metadata, tokens)
    if whole := metadata.get("tokenizer.huggingface.json"):
        description = read_description(whole, size)
    elif kind == "gpt2":
        description = _byte_level(metadata, tokens, types, size)
    elif kind == "llama":
        description = _sentence_piece(metadata, tokens, types, size)
    else:
        raise UserError(
            f"the GGUF file's tokenizer is of the kind {kind!r}; gpt2 and llama are known",
            "read the tokenizer from the model's Hugging Face folder",
        )
    variables = {name: named[key] for name, key in _VARIABLES.items() if key in named}
    adds = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _BEGINS_TEXTS
    adds = bool(metadata.get("tokenizer.ggml.add_bos_token", adds))
    return import_tokenizer(
        description,
        variables=variables,
        jinja=_template(metadata),
        text_start=[named["bos"]] if adds and "bos" in named else [],
        stops=[named[key] for key in ("eot", "eom") if key in named],
        size=size,
    )


def _named_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    """The tokens that have a role, by its name in the file: ``bos`` and others."""
    named = {}
    if metadata.get("tokenizer.ggml.model") == "llama":
        named = dict(zip(_OF_SENTENCE_PIECE, tokens, strict=False))
    for key, token in metadata.items():
        part = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        if key != f"tokenizer.ggml.{part}_token_id":
            continue
        if type(token) is not int or not 0 <= token < len(tokens):
            raise UserError(
                f"{key} = {token}: expected the id of a token, 0 to {len(tokens) - 1}",
                "fetch the file again, or take another conversion of the model",
            )
        named[part] = tokens[token]
    return named


def gguf_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """Keys under ``tokenizer.`` of a GGUF file, and their values: text, lists, numbers.

    Other programs cut text by the name in ``tokenizer.ggml.pre``. lmsmith's own pattern has no
    name there; GPT-2's is the nearest, so such a program may cut some texts otherwise (the ids
    then still spell the text). ``tokenizer.huggingface.json`` holds the exact tokenizer.

    Raises:
        UserError: it is not byte-level BPE, or begins texts with more than one token.
    """
    model = tokenizer.description["model"]
    decoder = tokenizer.description.get("decoder") or {}
    kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if model.get("type") != "BPE" or "ByteLevel" not in kinds:
        raise UserError(
            "only byte-level BPE tokenizers can be written as GGUF so far",
            "use the GGUF file that the model's makers offer",
        )
    if tokenizer.text_start not in ((), (tokenizer.start_of_text,)):
        raise UserError(
            f"this tokenizer begins texts with {' '.join(tokenizer.format.text_start)}; "
            "a GGUF file has room for one token, its bos_token",
            "export it to hf",
        )
    added = {t["id"]: t["content"] for t in tokenizer.description["added_tokens"]}
    written = {token: name for name, token in model["vocab"].items()} | added

    def type_of(token: int) -> int:
        if token in tokenizer.control_tokens:
            return CONTROL
        if token not in written:
            return UNUSED
        return USER_DEFINED if token in added else NORMAL

    ids = range(tokenizer.vocabulary_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer) or "gpt-2",
        "tokenizer.ggml.tokens": [written.get(token, f"[unused{token}]") for token in ids],
        "tokenizer.ggml.token_type": [type_of(token) for token in ids],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.start_of_text,
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_turn,
        "tokenizer.ggml.padding_token_id": tokenizer.end_of_text,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.text_start),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": hugging_face_template(tokenizer),
        "tokenizer.huggingface.json": json.dumps(
            described_with_start(tokenizer), ensure_ascii=False
        ),
    }


def pre_tokenizer_name(tokenizer: Tokenizer) -> str | None:
    """The ``tokenizer.ggml.pre`` that cuts text just so; None if none of the known does."""
    step = tokenizer.description.get("pre_tokenizer")
    for name, known in PRE_TOKENIZERS.items():
        whole_words = bool(tokenizer.description["model"].get("ignore_merges"))
        if whole_words == (name in _WHOLE_WORDS) and known == step:
            return name
    return None


def _get(metadata: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = metadata.get(f"tokenizer.{key}")
    if not isinstance(value, kind):
        raise UserError(
            f"the GGUF file has no tokenizer.{key}",
            "use a file that has its tokenizer, or the model's Hugging Face folder",
        )
    return value


def _template(metadata: Mapping[str, Any]) -> str:
    found = metadata.get("tokenizer.chat_template")
    return found if isinstance(found, str) else ""


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], size: int
) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre") or "default"
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"the GGUF file cuts text by {name!r}; known are {', '.join(PRE_TOKENIZERS)}",
            "read the tokenizer from the model's Hugging Face folder",
        )
    vocabulary = _used(metadata, tokens, types)
    written = _get(metadata, "ggml.merges", list)
    if len(written) > most_merges(len(vocabulary), size):
        raise UserError(
            f"the GGUF file has {len(written):,} merges of {len(vocabulary):,} tokens",
            "fetch it again",
        )
    pairs = (merge.partition(" ")[::2] for merge in written)
    merges = ((a, b) for a, b in pairs if {a, b, a + b} <= vocabulary.keys())
    description = byte_level_description(vocabulary, merges, [])
    description["pre_tokenizer"] = PRE_TOKENIZERS[name]
    description["model"]["ignore_merges"] = name in _WHOLE_WORDS
    description["added_tokens"] = _added(tokens, types)
    return description


def _used(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> dict[str, int]:
    """Ids of tokens. Unused ones fill up the embedding's rows and are none, unless named."""
    named = {value for key, value in metadata.items() if key.endswith("_token_id")}
    return {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED or number in named
    }


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    return [
        added_token(number, token, kind != USER_DEFINED)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def _sentence_piece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], size: int
) -> dict[str, Any]:
    scores = _get(metadata, "ggml.scores", list)
    if len(scores) != len(tokens) or not all(type(score) is float for score in scores):
        raise UserError("the GGUF file has not a score for each token", "fetch it again")
    vocabulary = _used(metadata, tokens, types)
    normal = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if token in vocabulary and kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    most = min(MOST_MERGES * len(tokens), most_merges(len(vocabulary), size))
    merges = list(itertools.islice(merges_of_scores(normal), most + 1))
    if len(merges) > most:
        raise UserError("the GGUF file's tokens are made in too many ways", "fetch it again")
    unknown = tokens[types.index(UNKNOWN)] if UNKNOWN in types else None
    frame = models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
    backend = tokenizers.Tokenizer(frame)
    spaced: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaced.insert(0, normalizers.Prepend("▁"))
        ends.append(decoders.Strip(content=" ", left=1, right=0))
    backend.normalizer = normalizers.Sequence(spaced)
    backend.decoder = decoders.Sequence(ends)
    description: dict[str, Any] = json.loads(backend.to_str())
    description["model"] |= {"vocab": vocabulary, "merges": merges}
    description["added_tokens"] = _added(tokens, types)
    return description


def merges_of_scores(scores: Mapping[str, float]) -> Iterator[list[str]]:
    """Merges that do what SentencePiece's BPE does with scores; a UserError for absurd tokens.

    It joins, of all neighbours that together are a token, those whose token has the highest
    score, the leftmost first. So each way to make a token is a merge, in the order of scores.
    """
    names = {token: token for token in scores}  # equal texts are one object
    longest = max(map(len, scores), default=0)
    if longest > MOST_CHARACTERS:
        raise UserError(f"the GGUF file has a token of {longest:,} characters", "fetch it again")
    for token in sorted(scores, key=lambda token: -scores[token]):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in names and right in names:
                yield [names[left], names[right]]
