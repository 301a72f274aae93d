"""A process of its own that cuts texts by a tokenizer's regular expressions, to time it.

Started by path, it imports nothing of lmsmith. A request is eight bytes for its size and a pickled
dictionary; the answer is a line. The library cannot be interrupted: the kernel ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import signal
import sys
from collections.abc import Mapping
from typing import Any

import tokenizers

MEMORY = 4 << 30
"""Most bytes of address space."""


@functools.lru_cache(maxsize=4)
def _cutter(steps: str) -> Any:
    """A tokenizer of the same added tokens, normaliser and pre-tokenizer, without a vocabulary."""
    given = json.loads(steps)
    empty = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    parts = {"normalizer": given["normalizer"], "pre_tokenizer": given["pre_tokenizer"]}
    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": empty,
        "post_processor": None,
    }
    made = tokenizers.Tokenizer.from_str(json.dumps(whole | parts | {"decoder": None}))
    for token in given["added_tokens"]:
        how = ("single_word", "lstrip", "rstrip", "normalized")
        facts = {each: bool(token.get(each)) for each in how}
        special = bool(token.get("special"))
        added = tokenizers.AddedToken(token["content"], special=special, **facts)
        (made.add_special_tokens if special else made.add_tokens)([added])
    return made


def cut(request: Mapping[str, Any]) -> None:
    """Cut the texts; an error is none of ours, since encoding will say it."""
    with contextlib.suppress(BaseException):
        _cutter(request["steps"]).encode_batch_fast(request["texts"], add_special_tokens=False)


def main() -> None:
    """Answer until the other side closes."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    while size := int.from_bytes(sys.stdin.buffer.read(8), "big"):
        request = pickle.loads(sys.stdin.buffer.read(size))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        cut(request)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print("cut", flush=True)


if __name__ == "__main__":
    main()
