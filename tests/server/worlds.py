"""Two tiny models for a server: a parrot that says one sentence, and one of random weights."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch

from lmsmith.catalogue import versions
from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.remote import RemoteModel
from lmsmith.catalogue.resolve import Source
from lmsmith.catalogue.versions import Version
from lmsmith.core.recipe import MachineConfig
from lmsmith.feedback.store import Store
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.server.app import Server, bound_socket, create_app
from lmsmith.server.connections import ConnectionLimits
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.models import Loader, read_models, serve_models, serve_remote
from lmsmith.server.requests import Limits
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from tiny_models import random_decoder

TOKENIZER = Tokenizer.train(["what do you like? I like rain and tea, said the cat."] * 9, 300)
SENTENCE = "é你🙂 and tea"
"""What the parrot says: no byte of it comes twice, and its characters are split across tokens."""

CONTEXT = 512
HTTP = httpx.Client(verify=False, trust_env=False, timeout=30)
MACHINE = resolve_machine(MachineConfig(precision="fp32"))
LIMITS = Limits(streams=8, queue=4, seconds=30, drain_seconds=5)


def parrot(for_ever: bool = False, sentence: str = SENTENCE) -> Decoder:
    """After a token comes the one that follows it in the sentence, whatever was before; at its
    end the parrot ends, or begins again."""
    width, count = 128, TOKENIZER.vocabulary_size
    config = ModelConfig(1, width, 2, CONTEXT, count, tied_embeddings=False)
    decoder = Decoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(count, width, generator=generator)
    said = [TOKENIZER.role_token("assistant"), *TOKENIZER.encode(sentence), TOKENIZER.end_of_turn]
    assert len(set(said)) == len(said)
    if for_ever:
        said[-1] = said[1]
    unembedding = torch.zeros(count, width)
    for token, following in itertools.pairwise(said):
        unembedding[following] += directions[token]
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        decoder.token_embedding.weight.copy_(directions)
        decoder.unembedding_weight.copy_(unembedding)
    return decoder


RANDOM = random_decoder(ModelConfig(2, 32, 4, CONTEXT, TOKENIZER.vocabulary_size))


def read(decoder: Decoder) -> ReadModel:
    return ReadModel(decoder, TOKENIZER, Source("lmsmith", Path("nowhere"), "tiny"), {})


def put_version(name: str, number: int, decoder: Decoder) -> Version:
    """A complete version of a model, as a round leaves it."""
    folder = versions.folder_of(name) / versions.NEXT
    save_model(folder / "model", decoder, TOKENIZER, {})
    sha256 = versions.hash_model(folder / "model")
    parents = (number - 1,) if number > 1 else ()
    made = Version(name, number, "model", sha256, "tiny", "2026-11-29", parents)
    versions.write_version(folder, made)
    versions.put_in_place(made)
    if number == 1:
        versions.found_lineage(made, "me")
    return made


@dataclass
class Running:
    """A server in a thread of its own."""

    address: str
    engine: AsyncEngine
    server: Server


@contextmanager
def running(
    models: dict[str, Decoder] | None = None,
    limits: Limits = LIMITS,
    prepare: Callable[[AsyncEngine], None] = lambda _: None,
    store: Store | None = None,
    draft: str = "",
    words: Sequence[str] = (),
    memory_bytes: int = 60_000_000,
    connections: ConnectionLimits | None = None,
    remote: Mapping[str, RemoteModel] | None = None,
    **options: Any,
) -> Any:
    """A real server on a free port; it is stopped at the end, and must end.

    With ``words`` it serves models as the command line names them, and follows their versions;
    ``remote`` models are behind other servers.
    """
    if store is None:
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(Store(Path(folder) / "feedback.db")) as made,
            running(
                models,
                limits,
                prepare,
                made,
                draft,
                words,
                memory_bytes,
                connections,
                remote,
                **options,
            ) as served,
        ):
            yield served
        return
    chosen = models if models is not None else {"parrot": parrot(), "random": RANDOM}
    loader = Loader(MACHINE, "model", memory_bytes, limits.streams, draft)
    if words:
        served = loader.first(read_models(words))
        options["loader"] = loader
    else:
        served = serve_models(
            {name: read(decoder) for name, decoder in chosen.items()},
            machine=MACHINE,
            weights="model",
            draft=draft,
            memory_bytes=memory_bytes,
            streams=limits.streams,
        )
    served += [serve_remote(name, each, limits.streams) for name, each in (remote or {}).items()]
    engine = AsyncEngine(served, limits)
    prepare(engine)
    listening, ready = bound_socket("127.0.0.1", 0), threading.Event()
    app = create_app(engine, store, **options)
    server = Server(app, engine, listening, ready.set, connections)
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        assert ready.wait(20)
        port = listening.getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", engine, server)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def words(count: int) -> str:
    return " ".join(["tea"] * count)


def said_by(message: str, before: Sequence[dict[str, str]] = ()) -> list[dict[str, str]]:
    return [*before, {"role": "user", "content": message}]
