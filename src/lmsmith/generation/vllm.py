"""vLLM as an engine: requests in tokens, the weights of every new policy, replies in tokens.

Prompts and replies travel as token ids, so what is trained on is what was drawn. vLLM knows nothing
of characters (`lmsmith.generation.vocabulary`): it draws from the whole softmax of the tokens, and
so must the log-probabilities be that are compared with its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from lmsmith.catalogue.remote import Call, RemoteError, RemoteModel
from lmsmith.core.errors import UserError
from lmsmith.core.progress import Progress
from lmsmith.core.recipe import GenerationConfig
from lmsmith.core.terminal import in_one_line
from lmsmith.device import HOST
from lmsmith.generation.remote import MOST_SEED, RemoteScheduler, Running
from lmsmith.generation.requests import (
    FinishReason,
    Request,
    RunningSequence,
    TokenLogProb,
    check_requests,
)
from lmsmith.generation.scheduler import Event
from lmsmith.generation.vllm_server import has_lora, require_vllm, running_server, server_at
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.generation.weight_transfer import (
    SECONDS,
    FileTransfer,
    NCCLTransfer,
    WeightTransfer,
    ask,
    choose_route,
    empty_folder,
    write_model,
)
from lmsmith.models.adapters import AdapterConfig, TrainedState, has_adapters
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.peft import write_peft_folder
from lmsmith.models.interop.transformers import family_of
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from lmsmith.training.parallel import team

Dtype = Literal["float32", "bfloat16"]

FORBIDDEN = -100.0
"""Logit bias of ids without a token; vLLM takes none below."""

FAMILIES, WITH_ADAPTERS = ("gpt2", "llama"), "llama"
"""Families of our models that vLLM has, and the one that it has adapters for."""

ADAPTER = "adapter"
"""Name of the adapters on the server."""


class VLLMModel:
    """A model on vLLM's server, whose weights come from here.

    Args:
        config: its shape.
        tokenizer: its tokenizer.
        folder: gets adapters on their way; the server reads them there.
        adapter: settings of the adapters that are exchanged; None where whole weights are.
        requests: maximum number of replies in progress.
        server: None in a process that only waits for the replies of another one.
        transfer: way of whole weights to the server; files in ``folder`` if None.

    Attributes:
        version: number of times that the weights were exchanged.
        vocabulary: ids that are drawn.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        folder: Path,
        adapter: AdapterConfig | None = None,
        requests: int = 128,
        server: RemoteModel | None = None,
        transfer: WeightTransfer | None = None,
    ) -> None:
        self.config, self.tokenizer, self.requests = config, tokenizer, requests
        self.vocabulary = Vocabulary(tokenizer, config.vocabulary_size, breaks=True)
        self.version = 0
        self._folder, self._adapter, self._server = folder, adapter, server
        self._name = server.model if server is not None else ""
        if server is not None and transfer is None:
            transfer = FileTransfer(server, folder, tokenizer)
        self._transfer = transfer

    @property
    def server(self) -> RemoteModel:
        assert self._server is not None
        return self._server

    @property
    def name(self) -> str:
        """What requests call the model: the adapters, once there are any."""
        return self._name

    def bring(self, decoder: Decoder) -> int:
        """Give the server the decoder's weights, and forget what it keeps of the ones before.

        Returns:
            The version from now on.

        Raises:
            UserError: another shape than the server's, or the server refuses.
        """
        if decoder.config != self.config:
            raise UserError(
                "vLLM's server holds a model of another shape than the one that shall write",
                'set generation.engine = "lmsmith"',
            )
        if self._adapter is not None and has_adapters(decoder):
            place = empty_folder(self._folder / f"adapter-{self.version % 2}")
            state = TrainedState(decoder).state_dict()
            write_peft_folder(place, self.server.model, self.config, self._adapter, state)
            loaded = {"lora_name": ADAPTER, "lora_path": str(place.absolute())}
            body = loaded | {"load_inplace": True}
            ask(Call(self.server, "/v1/load_lora_adapter", body), text=True)
            self._name = ADAPTER
        else:
            assert self._transfer is not None
            self._transfer.send(decoder)
            self._name = self.server.model
        if ask(Call(self.server, "/reset_prefix_cache", {})).get("success") is not True:
            raise UserError("vLLM's server kept rows of the weights before", "see its log")
        self.version += 1
        return self.version

    def close(self) -> None:
        """Leave the server, whose weights are no longer exchanged."""
        if self._transfer is not None:
            self._transfer.close()


@contextlib.contextmanager
def stage_engine(
    out: StageFolder, decoder: Decoder, tokenizer: Tokenizer, adapter: AdapterConfig | None = None
) -> Iterator[VLLMModel | None]:
    """The engine of a stage, as ``generation.engine`` says; None where this process draws.

    Processes that train together share the server of the first one.
    """
    if out.generation.engine == "lmsmith":
        yield None
        return
    folder, machine = out.checkpoints / "vllm", resolve_machine(out.machine)
    dtype: Dtype = "bfloat16" if machine.precision == "bf16" else "float32"
    with open_vllm(
        out.generation,
        decoder,
        tokenizer,
        folder,
        dtype=dtype,
        progress=out.progress,
        adapter=adapter,
        leads=team().leads,
        device=machine.place,
        seconds=out.machine.timeout_seconds,
    ) as model:
        yield model


@contextlib.contextmanager
def open_vllm(
    settings: GenerationConfig,
    decoder: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: Dtype,
    progress: Progress,
    adapter: AdapterConfig | None = None,
    leads: bool = True,
    device: torch.device = HOST,
    seconds: float = SECONDS,
) -> Iterator[VLLMModel]:
    """A model on vLLM's server: one that is started for the block, or one that runs.

    Args:
        settings: which Python starts it, or its address.
        decoder: the model, without its adapters.
        tokenizer: its tokenizer.
        folder: made for weights and log, and removed with the block unless it fails.
        dtype: of products.
        progress: shows the start.
        adapter: settings of adapters that are brought later. Where vLLM has none for the model's
            architecture, they are merged.
        leads: whether this process asks the server; another one starts none.
        device: of the weights in this process.
        seconds: longest time of one call of a transfer by NCCL.

    Raises:
        UserError: vLLM is not there, has no such model, or takes no weights by NCCL where the
            settings name it.
    """
    family, _ = family_of(decoder.config)
    if family.model_type not in FAMILIES:
        what = f"vLLM has no model of this shape ({family.model_type})"
        raise UserError(what, 'set generation.engine = "lmsmith"')
    if adapter is not None and not (adapter.rank and family.model_type == WITH_ADAPTERS):
        adapter = None
    if not leads:
        yield VLLMModel(decoder.config, tokenizer, folder)
        return
    require_vllm(settings)
    if settings.vllm_url and not has_lora(settings.vllm_url):
        adapter = None
    route = choose_route(settings, device, adapters=adapter is not None)

    def model_on(server: RemoteModel) -> VLLMModel:
        transfer = NCCLTransfer(server, device, seconds) if route.nccl else None
        about = decoder.config, tokenizer, folder, adapter, settings.vllm_requests
        return VLLMModel(*about, server, transfer)

    empty_folder(folder)
    if route.nccl:
        progress.note("weights go to vLLM's server by NCCL")
    if settings.vllm_url:
        model = model_on(find_server(settings.vllm_url))
        model.bring(decoder)
        yield model
        model.close()
    else:
        base = folder / "base"
        base.mkdir()
        write_model(base, decoder, tokenizer)
        with running_server(
            settings,
            base,
            context=decoder.config.context,
            dtype=dtype,
            lora_rank=adapter.rank if adapter is not None else 0,
            gpus=route.gpus,
            nccl=route.nccl,
            folder=folder,
            progress=progress,
        ) as server:
            yield model_on(server)
    shutil.rmtree(folder)


def find_server(url: str) -> RemoteModel:
    """The server at an address, and the model that it was started with."""
    server = server_at(url)
    rows = Call(server, "/v1/models", None).result()["data"]
    return dataclasses.replace(server, model=next(row["id"] for row in rows if not row["parent"]))


class VLLMScheduler(RemoteScheduler):
    """Requests in, events of tokens out; each sample is a request to the server.

    Args:
        model: whose weights are the latest brought.
        tokenizer: turns tokens into the text of events.
        waits: whether `step` waits for an event.
    """

    def __init__(
        self, model: VLLMModel, tokenizer: Tokenizer | None = None, *, waits: bool = False
    ) -> None:
        super().__init__(model.server, rows=model.requests, waits=waits)
        self._of, self._tokenizer, self.vocabulary = model, tokenizer, model.vocabulary

    def check(self, request: Request) -> None:
        """Raises UserError for settings out of range, and for what vLLM does not give."""
        settings = request.settings
        if settings.prompt_log_probs or request.forced or settings.top_log_probs:
            what = "log-probabilities of given texts, or of other tokens than those drawn"
            raise UserError(f"{what}: vLLM is asked for none", 'use engine = "lmsmith"')
        check_requests(self._of.config, [request], self._tokenizer)

    def _asked(self, request: Request, sample: int) -> tuple[str, dict[str, Any]]:
        settings, biases = request.settings, dict(request.settings.logit_bias)
        biases |= dict.fromkeys(self.vocabulary.without_token, -math.inf)
        body: dict[str, Any] = {
            "model": self._of.name,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens(self._of.config.context),
            "return_token_ids": True,
            "logprobs": 0,
            # Each setting is sent: one that is left out may be a default of the server.
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p,
            "repetition_penalty": settings.repetition_penalty,
            "presence_penalty": settings.presence_penalty,
            "frequency_penalty": settings.frequency_penalty,
            "seed": (settings.seed + request.stream + sample) % MOST_SEED,
            "stop_token_ids": list(settings.stop_tokens),
            "ignore_eos": True,
        }
        if biases:
            body["logit_bias"] = {f"{token}": max(FORBIDDEN, b) for token, b in biases.items()}
        if settings.stop:
            body["stop"] = list(settings.stop)
        return "/v1/completions", body

    def _events_of(self, running: Running, sample: int, call: Call) -> Iterator[Event]:
        """A reply's events, once it is whole."""
        request = running.request
        drawn, ends = _reply_of(call.result(), self._of.config.vocabulary_size)
        most = request.max_tokens(self._of.config.context)
        place = running.number, sample, 0
        reply = RunningSequence(request, *place, most, self.vocabulary, self._tokenizer)
        for count, (token, log_prob) in enumerate(drawn, start=1):
            wanted = request.settings.log_probs
            event = reply.append(token, TokenLogProb(token, log_prob) if wanted else None)
            if count == len(drawn) and event.finish is None:  # a stop text, or vLLM's own limit
                event = dataclasses.replace(event, finish=ends)
            yield event
            if event.finish is not None:
                return


def _reply_of(found: Any, vocabulary_size: int) -> tuple[list[tuple[int, float]], FinishReason]:
    """Tokens of a whole reply with their log-probabilities, and why it ends.

    Raises:
        RemoteError: vLLM gave the reply up, or it has no tokens, or ones that no model has.
    """
    try:
        (choice,) = found["choices"]
        ends = choice["finish_reason"]
        tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        drawn = list(zip(tokens, log_probs, strict=True))
        are_known = all(type(token) is int and 0 <= token < vocabulary_size for token in tokens)
        are_numbers = all(map(math.isfinite, log_probs))
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteError("vLLM's reply has no tokens", code="upstream_invalid") from error
    if ends not in ("stop", "length"):
        what = f"vLLM did not finish a reply (finish_reason: {in_one_line(str(ends))})"
        raise RemoteError(what, "see the log of its server", code="upstream_error")
    if not (drawn and are_known and are_numbers):
        what = "vLLM's reply has no tokens, or ones that the model does not have"
        raise RemoteError(what, "see the log of its server", code="upstream_invalid")
    return drawn, "length" if ends == "length" else "stop"
