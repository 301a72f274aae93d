"""A server with the calls of vLLM's that lmsmith makes, which draws by our own engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.folders import read_transformers_folder
from loopback import JSONHandler, serving


@dataclass
class VLLMDouble:
    """What it holds, what it was asked, and what it refuses.

    Attributes:
        url: its address.
        folders: whose weights it read, in order.
        bodies: of requests to write.
        calls: paths of all requests, in order.
        logprobs_mode: as vLLM names it.
        has_calls: whether it lets its weights be exchanged.
        resets: whether it forgets its prefix cache.
        tokens, ends: of the next replies, where they are given: how many, and their finish reason.
    """

    url: str
    decoder: Decoder | None = None
    folders: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    logprobs_mode: str = "processed_logprobs"
    has_calls: bool = True
    resets: bool = True
    tokens: int | None = None
    ends: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, folder: str) -> None:
        config, state = read_transformers_folder(Path(folder))
        self.decoder = Decoder(config).eval()
        self.decoder.load_state_dict(state)
        self.folders.append(folder)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion of a prompt of token ids."""
        assert self.decoder is not None
        settings = SamplingSettings(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            stop_tokens=tuple(body["stop_token_ids"]),
            logit_bias={int(token): bias for token, bias in body.get("logit_bias", {}).items()},
            seed=body["seed"],
            log_probs=True,
        )
        ((reply,),) = answer(Engine(self.decoder), [Request(body["prompt"], settings)])
        tokens = reply.tokens[: self.tokens]
        log_probs = [each.log_prob for each in reply.log_probs[: self.tokens]]
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}
        return {"choices": [choice | {"text": "", "finish_reason": self.ends or reply.finish}]}


@contextmanager
def vllm_double() -> Iterator[VLLMDouble]:
    class Handler(JSONHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send({"data": [{"id": "base", "parent": None}]})
            elif self.path.startswith("/server_info") and state.has_calls:
                settings = {"logprobs_mode": state.logprobs_mode}
                self.send({"vllm_config": {"model_config": settings}})
            else:
                self.send({"detail": "Not Found"}, 404)

        def do_POST(self) -> None:
            body = self.body()
            with state.lock:
                state.calls.append(self.path)
                if self.path == "/v1/completions":
                    state.bodies.append(body)
                    self.send(state.complete(body))
                elif self.path == "/collective_rpc":
                    assert body["method"] == "reload_weights"
                    state.load(body["kwargs"]["weights_path"])
                    self.send({"results": [None]})
                else:
                    self.send({"success": state.resets})

    with serving(Handler) as url:
        state = VLLMDouble(url)
        yield state
