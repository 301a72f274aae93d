"""The real vLLM takes weights by its own NCCL protocol; gloo stands in for NCCL alone.

``gloo_ranks`` is in place of PyTorch's four calls here, and, by ``stand_in/``, of the communicator
of vLLM's workers. Every other line of both runs as on GPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_ranks import all_reduce, broadcast, init_rank, unique_id
from served_kinds import SETTINGS, SHAPES, TOKENIZER, Kind, assert_equal, replies_of

from lmsmith.catalogue.export import token_ids
from lmsmith.catalogue.remote import Call
from lmsmith.core.errors import UserError
from lmsmith.core.progress import LoggedProgress
from lmsmith.device import HOST
from lmsmith.generation import vllm_server, weight_transfer
from lmsmith.generation.vllm import VLLMModel, open_vllm
from lmsmith.generation.vllm_server import running_server
from lmsmith.generation.weight_transfer import Route, choose_route
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.folders import write_transformers_model
from lmsmith.tokenizers.hugging_face import to_hugging_face
from tiny_models import random_decoder

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL on both sides by gloo, and a GPU that no training process has."""
    for call in (unique_id, init_rank, all_reduce, broadcast):
        monkeypatch.setattr(torch.cuda.nccl, call.__name__, call)
    monkeypatch.setattr(weight_transfer, "sends_by_nccl", lambda device: True)
    monkeypatch.setattr(weight_transfer, "free_gpus", lambda: ["0"])
    environment = vllm_server._environment

    def with_stand_in(python: Path | None = None, gpus: Sequence[str] = ()) -> Mapping[str, str]:
        return environment(python, gpus) | {"PYTHONPATH": f"{HERE / 'stand_in'}:{HERE}"}

    monkeypatch.setattr(vllm_server, "_environment", with_stand_in)


@contextmanager
def tied_server(folder: Path, decoder: Decoder) -> Iterator[str]:
    """One that runs already, with a folder as people have it: no unembedding but the embedding."""
    base = folder / "base"
    base.mkdir()
    to_hugging_face(TOKENIZER, base)
    state, tokens = decoder.state_dict(), token_ids(TOKENIZER)
    write_transformers_model(base, decoder.config, state, tokens=tokens)
    with running_server(
        SETTINGS, base, context=decoder.config.context, dtype="float32", lora_rank=0, nccl=True,
        folder=folder, progress=LoggedProgress(),
    ) as server:  # fmt: skip
        yield server.url


def exchange_twice(model: VLLMModel, before: Decoder) -> None:
    """Tokens and log-probabilities are those of our engine with each new weights."""
    written = [replies_of(model)]
    for seed in (5, 6):
        decoder, version = random_decoder(before.config, seed), model.version
        assert model.bring(decoder) == version + 1
        assert assert_equal(model, decoder) > 200
        written.append(replies_of(model))
    for one, other in itertools.pairwise(written):
        for reply, changed in zip(one, other, strict=True):
            assert [token for token, *_ in reply] != [token for token, *_ in changed]


@pytest.mark.usefixtures("nccl")
def test_a_running_server_of_a_tied_model_takes_weights_by_nccl(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPES["gpt2"])
    assert decoder.config.tied_embeddings
    with tied_server(tmp_path, decoder) as url:
        settings = replace(SETTINGS, vllm_url=url)
        for stage in ("rankings", "ppo"):  # each makes a group of its own
            with open_vllm(
                settings, decoder, TOKENIZER, tmp_path / stage, dtype="float32",
                progress=LoggedProgress(), seconds=60.0,
            ) as model:  # fmt: skip
                assert assert_equal(model, decoder) > 200
                exchange_twice(model, decoder)
                assert not list((tmp_path / stage).iterdir())


@pytest.mark.usefixtures("nccl")
def test_our_own_server_takes_weights_by_nccl(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPES["llama"])
    with open_vllm(
        replace(SETTINGS, vllm_transfer="nccl"), decoder, TOKENIZER, tmp_path / "vllm",
        dtype="float32", progress=LoggedProgress(), seconds=60.0,
    ) as model:  # fmt: skip
        assert assert_equal(model, decoder) > 200
        exchange_twice(model, decoder)
        failed = Call(model.server, "/update_weights", {"update_info": {"names": ["x"]}})
        with pytest.raises(UserError):
            failed.result()


def test_a_server_that_was_not_started_for_nccl_gets_files(
    kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_transfer, "sends_by_nccl", lambda device: True)
    settings = replace(SETTINGS, vllm_url=kinds["gpt2"].url)
    assert choose_route(settings, HOST) == Route()
    with pytest.raises(UserError, match=r"--weight-transfer-config '.\"backend\": \"nccl\".'"):
        choose_route(replace(settings, vllm_transfer="nccl"), HOST)
