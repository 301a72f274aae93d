"""Tokens and their log-probabilities as OpenAI's API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmsmith.generation.log_probs import TokenLogProb
from lmsmith.generation.requests import Reply
from lmsmith.server.served import ServedModel
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.token_bytes import BOUNDARY


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; ``bytes:\\xe4\\xbd`` where that is no whole character."""
    if token in tokenizer.control_tokens:
        return str(tokenizer.control_tokens[token])
    if token >= tokenizer.vocabulary_size:
        return ""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Texts of tokens that follow one another, as a reader sees them.

    Tokens that only together make whole characters show these at the first of them; the others
    of the run, and what makes no character, are as `token_text` has them.
    """
    texts = [token_text(tokenizer, token) for token in tokens]
    begun, state = 0, BOUNDARY
    for place, token in enumerate(tokens):
        if state == BOUNDARY:
            begun = place
        state = int(tokenizer.utf8.next_sv[state, token])
        if state == BOUNDARY and begun < place:
            joined = b"".join(map(tokenizer.token_bytes, tokens[begun : place + 1]))
            try:
                texts[begun] = joined.decode()
            except UnicodeDecodeError:
                continue
    return texts


def shown_log_probs(model: ServedModel, reply: Reply, start: int = 0) -> list[TokenLogProb]:
    """Those of a reply's tokens from ``start`` on, but for the token that ended it."""
    found = reply.log_probs[start:]
    ended = reply.finish == "stop" and reply.tokens[-1] in model.tokenizer.stop_tokens
    return found[:-1] if ended else found


def chat_log_probs(tokenizer: Tokenizer, found: Sequence[TokenLogProb]) -> list[dict[str, Any]]:
    """The ``content`` of a chat choice's ``logprobs``."""
    return [
        {
            **_entry(tokenizer, each.token, each.log_prob),
            "top_logprobs": [_entry(tokenizer, *pair) for pair in each.top],
        }
        for each in found
    ]


def _entry(tokenizer: Tokenizer, token: int, log_prob: float) -> dict[str, Any]:
    control = token in tokenizer.control_tokens or token >= tokenizer.vocabulary_size
    content = b"" if control else tokenizer.token_bytes(token)
    text = token_text(tokenizer, token)
    return {"token": text, "logprob": max(log_prob, -9999.0), "bytes": list(content)}


class Offsets:
    """Where tokens begin in a text, in characters, one after another.

    A token in the midst of a character begins where the character does.

    Args:
        tokenizer: theirs.
        after: tokens that the text goes on from.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer, self._decoder = tokenizer, StreamDecoder(tokenizer, after)
        self._at = 0

    def next(self, token: int) -> int:
        """Of the token that follows."""
        at = self._at
        if token < self._tokenizer.vocabulary_size:
            self._at += len(self._decoder.push(token))
        return at


def completion_log_probs(
    tokenizer: Tokenizer, found: Sequence[TokenLogProb | int], offsets: Offsets
) -> dict[str, Any]:
    """A completion choice's ``logprobs``.

    Args:
        tokenizer: the model's.
        found: a bare token is one without a probability: the first of a prompt.
        offsets: in the choice's text, gone on from what was shown of it before.
    """
    result: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for each in found:
        token = each if isinstance(each, int) else each.token
        result["tokens"].append(token_text(tokenizer, token))
        result["text_offset"].append(offsets.next(token))
        if isinstance(each, int):
            result["token_logprobs"].append(None)
            result["top_logprobs"].append(None)
        else:
            log_prob = max(each.log_prob, -9999.0)
            top = {token_text(tokenizer, t): max(value, -9999.0) for t, value in each.top}
            result["token_logprobs"].append(log_prob)
            result["top_logprobs"].append(top)
    return result


def usage(prompt: int, written: int, reused: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def finish_reason(reply: Reply) -> str | None:
    """``stop`` or ``length``, as the API knows no other end."""
    if reply.finish is None:
        return None
    return "stop" if reply.finish == "stop" else "length"
