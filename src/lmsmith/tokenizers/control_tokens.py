"""Control tokens under secret names, so that no text can spell one."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import tokenizers
from tokenizers import models

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.patterns import PatternGuard


def secret_text() -> str:
    """A short string that nobody can guess (85 bits), of private-use characters.

    They have no case, space or script, so templates and normalisers do not change them.
    """
    return "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(6))


def shielded_backend(
    description: Mapping[str, Any], controls: Mapping[int, str]
) -> tuple[tokenizers.Tokenizer, dict[int, str], PatternGuard]:
    """A tokenizer in which each control token is spelt by a secret, under its own id.

    A control token is renamed wherever it stands, in the model's vocabulary too: otherwise text
    could still reach it (a Unigram model finds ``</s>`` in its vocabulary, and a BPE model that
    ignores merges for whole words does too). Post-processing, truncation and padding are left out.

    Args:
        description: contents of a ``tokenizer.json``.
        controls: names of the control tokens by id.

    Returns:
        The backend, the secret of each control token, and the guard of the texts it encodes.
    """
    key = secret_text()
    spelling = {token: f"{key}{token}{key[0]}" for token in controls}
    renamed = {controls[token]: spelling[token] for token in controls}
    added = [
        token | {"content": spelling[token["id"]], "special": True, "normalized": False}
        if token["id"] in controls
        else token
        for token in description.get("added_tokens") or []
    ]
    known = {token["id"] for token in added}
    added += [added_token(t, spelling[t], True) for t in controls if t not in known]
    frame = dict(description) | {
        "added_tokens": [],
        "model": _NO_MODEL,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    with refusing_panic("not a readable tokenizer", "fetch the model's files again"):
        backend = tokenizers.Tokenizer.from_buffer(msgspec.json.encode(frame))
        backend.model = _model(_renamed_model(description["model"], renamed))
        backend.add_tokens([_added(token) for token in sorted(added, key=lambda each: each["id"])])
    if any(backend.token_to_id(name) != token for token, name in spelling.items()):
        raise UserError(
            "the ids of this tokenizer's added tokens do not follow its vocabulary",
            "fetch the model's files again, all of one revision",
        )
    return backend, spelling, PatternGuard({**frame, "added_tokens": added})


_NO_MODEL: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}

_BPE = (
    "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges",
)  # fmt: skip


def _model(model: Mapping[str, Any]) -> models.Model:
    """The library's model; BPE without JSON, whose reader takes thrice the memory for merges."""
    if model.get("type", "BPE") == "BPE" and isinstance(model.get("merges"), list):
        names = {name: name for name in model["vocab"]}  # equal texts are one object
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        merges = [(names[left], names[right]) for left, right in pairs]
        settings = {name: model[name] for name in _BPE if model.get(name) is not None}
        return models.BPE(vocab=model["vocab"], merges=merges, **settings)
    content = msgspec.json.encode({"model": model})
    made: models.Model = tokenizers.Tokenizer.from_buffer(content).model
    return made


def _added(token: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return tokenizers.AddedToken(token["content"], **{name: token[name] for name in flags})


@contextlib.contextmanager
def refusing_panic(problem: str, fix: str) -> Iterator[None]:
    """UserError where the library refuses a file or a text; it raises bare Exception, or panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = str(error)[:500]
        raise UserError(f"{problem} ({said})", fix) from error


def added_token(token: int, content: str, special: bool) -> dict[str, Any]:
    """An entry of ``added_tokens`` that is matched as it is written."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": content, "special": special, **plain}


def _renamed_model(model: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The model with the control tokens renamed in its vocabulary, and without their merges."""
    result = dict(model)
    vocabulary = result.get("vocab")
    if isinstance(vocabulary, dict):
        result["vocab"] = {renamed.get(name, name): token for name, token in vocabulary.items()}
    elif isinstance(vocabulary, list):
        result["vocab"] = [[renamed.get(name, name), score] for name, score in vocabulary]
    if result.get("unk_token") in renamed:
        result["unk_token"] = renamed[result["unk_token"]]
    if "dropout" in result:
        result["dropout"] = None
    if isinstance(result.get("merges"), list):
        pairs = ((m, m.split(" ") if isinstance(m, str) else m) for m in result["merges"])
        result["merges"] = [m for m, (a, b) in pairs if not {a, b, a + b} & renamed.keys()]
    return result
