"""A server with the calls of vLLM's that lmsmith makes, which draws by our own engine."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.cuda import nccl

from lmsmith.device import current_device, synchronise
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.folders import read_transformers_folder
from lmsmith.models.interop.transformers import family_of, from_transformers
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
        device: takes weights by NCCL there; None if it was not started for that.
        dtype: as vLLM names its weights' type.
        shape: of the model whose weights come by NCCL.
        refused: path → status of its failure.
        joined, updates: what came with the calls that make it join NCCL, and receive.
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
    device: torch.device | None = None
    dtype: str = "torch.float32"
    shape: ModelConfig | None = None
    refused: dict[str, int] = field(default_factory=dict)
    joined: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, folder: str) -> None:
        config, state = read_transformers_folder(Path(folder))
        self.decoder = Decoder(config).eval()
        self.decoder.load_state_dict(state)
        self.folders.append(folder)

    def join(self, about: dict[str, Any]) -> None:
        """Rank 1 of the group, which adds up one number first, as vLLM's workers do."""
        assert self.device is not None
        self.joined.append(about)
        name = base64.b64decode(about["nccl_unique_id_b64"], validate=True)
        with current_device(self.device):
            self.group = nccl.init_rank(about["world_size"], name, about["rank_offset"])
            nccl.all_reduce([torch.zeros(1, device=self.device)], comms=[self.group])
            synchronise(self.device)

    def leave(self) -> None:
        """The group is over."""

    def receive(self, about: dict[str, Any]) -> None:
        """Weights in the announced order; the model has them once the update is finished."""
        assert self.device is not None
        assert self.shape is not None
        self.updates.append(about)
        state = {}
        names, shapes = about["names"], about["shapes"]
        with current_device(self.device):
            for name, dtype, shape in zip(names, about["dtype_names"], shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                nccl.broadcast([weight], comms=[self.group])
                state[name] = weight
            synchronise(self.device)
        _, settings = family_of(replace(self.shape, tied_embeddings=False))
        config, read = from_transformers(settings, state)
        self.decoder = Decoder(config).eval()
        self.decoder.load_state_dict(read)

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
                settings = {"logprobs_mode": state.logprobs_mode, "dtype": state.dtype}
                way = {"backend": "nccl"} if state.device is not None else None
                found = {"model_config": settings, "weight_transfer_config": way}
                self.send({"vllm_config": found})
            elif self.path == "/get_world_size":
                self.send({"world_size": 1})
            else:
                self.send({"detail": "Not Found"}, 404)

        def do_POST(self) -> None:
            body = self.body()
            with state.lock:
                state.calls.append(self.path)
                if self.path in state.refused:
                    self.send({"error": {"message": "no such group"}}, state.refused[self.path])
                elif self.path == "/init_weight_transfer_engine":
                    state.join(body["init_info"])
                    self.send({"message": "Weight transfer initialized"})
                elif self.path == "/update_weights":
                    state.receive(body["update_info"])
                    self.send({"message": "Weights updated"})
                elif self.path == "/shutdown_weight_transfer_engine":
                    self.send({}, 200 if state.leave() is None else 500)
                elif self.path == "/v1/completions":
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
