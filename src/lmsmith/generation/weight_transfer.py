"""Two ways of whole weights to vLLM's server: files that it reads, or NCCL from GPU to GPU.

Adapters are small and always travel as files (`lmsmith.generation.vllm`).
"""

from __future__ import annotations

import argparse
import base64
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.cuda.nccl
from torch import Tensor

from lmsmith.catalogue.export import token_ids
from lmsmith.catalogue.remote import Call, Patience, RemoteError, RemoteModel
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import GenerationConfig
from lmsmith.core.terminal import in_one_line
from lmsmith.device import current_device, free_gpus, sends_by_nccl, synchronise
from lmsmith.generation.vllm_server import NCCL_OPTION, server_settings
from lmsmith.models.adapters import merged_state
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.folders import write_transformers_model
from lmsmith.models.interop.transformers import to_transformers
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import to_hugging_face

SECONDS = 600.0
"""Longest time of one call of a transfer, unless ``machine.timeout_seconds`` says otherwise."""

nccl: Any = torch.cuda.nccl
"""PyTorch's calls of NCCL, which have no types."""

_PARALLEL = (
    ("-tp", "tensor"),
    ("-pp", "pipeline"),
    ("-dp", "data"),
    ("-pcp", "prefill-context"),
)
"""Options of a server that say how many processes it divides its work among, each a factor."""

FILES = 'set generation.vllm_transfer = "files"'


class WeightTransfer(Protocol):
    """A way of whole weights to the server; it forgets no prefix cache."""

    def send(self, decoder: Decoder) -> None:
        """Replace the server's weights by the decoder's. Raises UserError if that fails."""

    def close(self) -> None:
        """Leave the server; the last `send` has succeeded."""


@dataclass(frozen=True)
class Route:
    """How weights travel, and where a server that is started computes.

    Attributes:
        nccl: by NCCL, else as files.
        gpus: CUDA's names of the server's GPUs; empty if it sees those that this process sees.
    """

    nccl: bool = False
    gpus: tuple[str, ...] = ()


def choose_route(
    settings: GenerationConfig, device: torch.device, *, adapters: bool = False
) -> Route:
    """The way that ``generation.vllm_transfer`` names; ``auto`` takes NCCL where it is certain.

    Certain is it of a server that is started on GPUs that no training process has, and of a
    running one that was started for NCCL.

    Args:
        settings: of the engine; a running server is asked.
        device: of the weights in this process.
        adapters: whether adapters travel after the first weights; ``auto`` takes files then.

    Raises:
        UserError: NCCL is named and cannot be.
    """
    sends, gpus = sends_by_nccl(device), tuple[str, ...]()
    if sends and not settings.vllm_url:
        gpus = _server_gpus(settings.vllm_options)
    wanted = settings.vllm_transfer
    if wanted == "files" or (wanted == "auto" and (adapters or not sends)):
        return Route(gpus=gpus)
    problem, fix = "", f"{FILES}, or auto"
    if not sends:
        problem = f"weights go from GPU to GPU by CUDA, and this run's are on {device}"
    elif not settings.vllm_url and not gpus:
        problem = (
            f"its server needs {_gpus_needed(settings.vllm_options)} GPU(s) that no training "
            f"process has, and {len(free_gpus())} are free"
        )
        fix = f"start fewer processes, or {fix}"
    elif settings.vllm_url and not _takes_nccl(settings.vllm_url):
        problem = f"the server at {in_one_line(settings.vllm_url)} was not started for it"
        fix = f"start vLLM with {NCCL_OPTION[0]} '{NCCL_OPTION[1]}', or {fix}"
    if problem and wanted == "nccl":
        raise UserError(f"generation.vllm_transfer = nccl: {problem}", fix)
    return Route(not problem, gpus)


def _takes_nccl(url: str) -> bool:
    found = server_settings(url).get("weight_transfer_config")
    return isinstance(found, dict) and found.get("backend") == "nccl"


def _server_gpus(options: Sequence[str]) -> tuple[str, ...]:
    """GPUs of a server that no training process has; none if they are too few."""
    free, needed = free_gpus(), _gpus_needed(options)
    return tuple(free[:needed]) if len(free) >= needed else ()


def _gpus_needed(options: Sequence[str]) -> int:
    """Processes of a server with these options: by tensors, layers, requests and prompts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for short, name in _PARALLEL:
        parser.add_argument(short, f"--{name}-parallel-size", type=int, default=1)
    try:
        found, _ = parser.parse_known_args([each.replace("_", "-") for each in options])
    except argparse.ArgumentError as error:
        raise UserError(f"generation.vllm_options: {error}", "give a number") from error
    for name, size in vars(found).items():
        if size < 1:
            where = f"generation.vllm_options: --{name.replace('_', '-')} = {size}"
            raise UserError(where, "give 1 or more")
    return math.prod(vars(found).values())


def as_loaded(decoder: Decoder) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights as the server loads them, with adapters merged.

    The unembedding stands by itself where it is the token embedding: vLLM's build for processors
    (0.32) keeps a packed copy of it, which new weights replace only if they name it.
    """
    config, state = decoder.config, merged_state(decoder)
    if config.tied_embeddings:
        state["unembedding.weight"] = state["token_embedding.weight"]
        config = replace(config, tied_embeddings=False)
    return config, state


def write_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Weights, config and tokenizer as a Hugging Face folder."""
    config, state = as_loaded(decoder)
    to_hugging_face(tokenizer, folder)
    write_transformers_model(folder, config, state, tokens=token_ids(tokenizer))


def empty_folder(folder: Path) -> Path:
    """The folder, made again without contents."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def ask(call: Call, fix: str = "see its log", *, text: bool = False) -> Any:
    """The server's answer about weights; its failure as a UserError."""
    try:
        return call.text() if text else call.result()
    except RemoteError as error:
        raise _refused(error, fix) from error


def _refused(error: Exception, fix: str) -> UserError:
    said = error.problem if isinstance(error, UserError) else in_one_line(str(error))
    return UserError(f"vLLM's server did not take the weights: {said}", fix)


class FileTransfer:
    """Weights as a Hugging Face folder that the server reads; two folders take turns.

    Args:
        server: its address.
        folder: gets the folders; the server reads them there.
        tokenizer: written with the weights.
    """

    def __init__(self, server: RemoteModel, folder: Path, tokenizer: Tokenizer) -> None:
        self._server, self._folder, self._tokenizer = server, folder, tokenizer
        self._sent = 0

    def send(self, decoder: Decoder) -> None:
        place = empty_folder(self._folder / f"weights-{self._sent % 2}")
        write_model(place, decoder, self._tokenizer)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(place.absolute())}}
        ask(Call(self._server, "/collective_rpc", body))
        self._sent += 1

    def close(self) -> None: ...


class NCCLTransfer:
    """Weights from this process's GPU to the server's, by NCCL broadcasts.

    The protocol is that of vLLM 0.32 (``vllm/distributed/weight_transfer/nccl_engine.py``) for a
    trainer without vLLM: this process is rank 0 of a group whose other ranks are the server's
    workers. Each call over HTTP that makes them meet us in NCCL ends only when we have; so it runs
    beside our part, and whichever fails first ends both. The server is paused meanwhile, since its
    layers have no weights until all have come.

    Args:
        server: its address.
        device: GPU of this process.
        seconds: longest time of one call.
    """

    def __init__(self, server: RemoteModel, device: torch.device, seconds: float = SECONDS) -> None:
        self._device, self._seconds = device, seconds
        # Never sent twice: after a failure the ranks no longer meet in the same call.
        self._server = replace(server, patience=Patience(read=seconds + 10, retries=0))
        self._group: Any = None

    def send(self, decoder: Decoder) -> None:
        if self._group is None:
            self._open()
        with torch.no_grad():
            _, weights = to_transformers(*as_loaded(decoder))
        announced = {
            "names": list(weights),
            "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(weights),
            "shapes": [list(weight.shape) for weight in weights.values()],
        }
        self._post("/pause?mode=wait")
        self._post("/start_weight_update")
        self._meet(
            "/update_weights",
            {"update_info": announced},
            lambda: self._broadcast(weights.values()),
            f"start it again: it has a part of the weights; or {FILES}",
        )
        self._post("/finish_weight_update")
        self._post("/resume")

    def close(self) -> None:
        """Leave together with the server: NCCL's ranks on one machine may wait for each other."""
        if self._group is not None:
            self._meet(
                "/shutdown_weight_transfer_engine", {}, self._leave, f"see its log; or {FILES}"
            )

    def _leave(self) -> None:
        self._group = None  # the only reference

    def _open(self) -> None:
        """Make the group of this process and all workers."""
        self._dtype = _dtype_of(self._server.url)
        workers = ask(Call(self._server, "/get_world_size", None))["world_size"]
        try:
            name = nccl.unique_id()
        except RuntimeError as error:
            raise _refused(error, FILES) from error
        joined = list[Any]()

        def join() -> None:
            group = nccl.init_rank(1 + workers, name, 0)
            # vLLM's workers add up one number before anything else, so that NCCL connects.
            nccl.all_reduce([torch.zeros(1, device=self._device)], comms=[group])
            joined.append(group)

        about = {
            "nccl_unique_id_b64": base64.b64encode(name).decode(),
            "rank_offset": 1,
            "world_size": 1 + workers,
            "packed": False,
        }
        fix = (
            "see its log; it needs a GPU of its own and the NCCL version of this Python's "
            f"PyTorch; or {FILES}"
        )
        self._meet("/init_weight_transfer_engine", {"init_info": about}, join, fix)
        (self._group,) = joined

    def _broadcast(self, weights: Iterable[Tensor]) -> None:
        for weight in weights:
            sent = weight.to(self._device, self._dtype).contiguous()
            nccl.broadcast([sent], comms=[self._group])

    def _post(self, path: str) -> None:
        ask(Call(self._server, path, {}), f"see its log; or {FILES}")

    def _meet(self, path: str, body: dict[str, Any], ours: Callable[[], None], fix: str) -> None:
        """Post to the server, whose workers wait for ``ours``, which runs at the same time.

        Raises:
            UserError: either fails, or both have not ended in time. A thread that waits in NCCL
                cannot be woken up: it ends with the process.
        """
        call, ends = Call(self._server, path, body), queue.SimpleQueue[Exception | None]()

        def run_ours() -> None:
            with current_device(self._device), torch.no_grad():
                ours()
                synchronise(self._device)

        def run(work: Callable[[], object]) -> None:
            try:
                work()
                ends.put(None)
            except Exception as error:
                ends.put(error)

        for work in (call.result, run_ours):
            threading.Thread(target=run, args=(work,), daemon=True).start()
        until = time.monotonic() + self._seconds
        for _ in range(2):
            try:
                error = ends.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                what = f"it and this process did not meet in NCCL within {self._seconds:g} seconds"
                error = TimeoutError(f"{what} (machine.timeout_seconds)")
            if error is not None:
                call.cancel()
                is_expected = isinstance(error, (RuntimeError, TimeoutError, UserError))
                raise _refused(error, fix) if is_expected else error from error


def _dtype_of(url: str) -> torch.dtype:
    """Type of the server's weights: what comes in another one would be cast there."""
    name = str(server_settings(url)["model_config"].get("dtype")).removeprefix("torch.")
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else torch.float32
