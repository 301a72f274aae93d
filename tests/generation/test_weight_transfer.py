"""Weights by NCCL, in front of doubles of it and of vLLM's server; tests/vllm asks the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith import device
from lmsmith.api import run
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import GenerationConfig
from lmsmith.device import HOST
from lmsmith.generation import weight_transfer
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.vllm import VLLMModel, open_vllm
from lmsmith.generation.weight_transfer import Route, choose_route
from lmsmith.models.config import ModelConfig
from lmsmith.tokenizers import Tokenizer
from nccl_double import UNIQUE_ID, two_ranks
from tiny_models import TEXTS, random_decoder
from vllm_double import VLLMDouble, vllm_double

TOKENIZER = Tokenizer.train(TEXTS, 300)
SHAPE = ModelConfig(2, 16, 2, 48, TOKENIZER.vocabulary_size)
PROMPTS = [[0, 40, 41], [0, 50], [0, 60, 61, 62]]
ENGINE = GenerationConfig(engine="vllm")
OPENING = ["/init_weight_transfer_engine"]
UPDATE = [
    "/pause?mode=wait", "/start_weight_update", "/update_weights", "/finish_weight_update",
    "/resume", "/reset_prefix_cache",
]  # fmt: skip


@contextmanager
def nccl_server() -> Iterator[VLLMDouble]:
    with vllm_double() as server:
        server.device, server.shape = HOST, SHAPE
        yield server


@contextmanager
def opened(
    folder: Path, server: VLLMDouble, seconds: float = 10.0, seed: int = 0
) -> Iterator[VLLMModel]:
    with open_vllm(
        replace(ENGINE, vllm_url=server.url), random_decoder(SHAPE, seed), TOKENIZER,
        folder / "weights", dtype="float32", progress=QuietProgress(), seconds=seconds,
    ) as model:  # fmt: skip
        yield model


def test_weights_go_by_nccl_in_the_order_that_vllm_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = SamplingSettings(8, temperature=0)
    with two_ranks(monkeypatch) as ranks, nccl_server() as server:
        with opened(tmp_path, server) as model:
            assert (server.calls, model.version) == (OPENING + UPDATE, 1)
            for version, seed in enumerate((1, 2), start=2):
                decoder = random_decoder(SHAPE, seed)
                assert model.bring(decoder) == version
                written = generate(model, PROMPTS, greedy, tokenizer=TOKENIZER)
                assert written == generate(decoder, PROMPTS, greedy, tokenizer=TOKENIZER)
            server.dtype = "torch.bfloat16"  # is asked for once
        exchanges = [path for path in server.calls if path != "/v1/completions"]
    assert exchanges == OPENING + UPDATE * 3 + ["/shutdown_weight_transfer_engine"]
    (joined,) = server.joined
    assert joined.pop("nccl_unique_id_b64").startswith("AAECAwQFBgcICQ")
    assert (len(UNIQUE_ID), joined) == (
        128, {"rank_offset": 1, "world_size": 2, "packed": False},
    )  # fmt: skip
    names = server.updates[0]["names"]
    assert "lm_head.weight" in names
    assert set(server.updates[0]["dtype_names"]) == {"float32"}
    assert ranks.calls == ["init_rank", "all_reduce"] + ["broadcast"] * 3 * len(names)
    assert server.folders == []


def test_both_sides_leave_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a communicator is a call that ranks on one machine make together."""
    left = threading.Event()

    class Communicator(int):
        def __del__(self) -> None:
            left.set()

    def leave(server: VLLMDouble) -> None:
        assert left.wait(5)

    with nccl_server() as server, two_ranks(monkeypatch) as ranks:
        real = ranks.init_rank
        monkeypatch.setattr(
            torch.cuda.nccl, "init_rank",
            lambda count, name, rank: real(count, name, rank) if rank else Communicator(
                real(count, name, rank)
            ),
        )  # fmt: skip
        monkeypatch.setattr(VLLMDouble, "leave", leave)
        with opened(tmp_path, server):
            pass
    assert left.is_set()


def test_weights_go_in_the_type_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_ranks(monkeypatch), nccl_server() as server:
        server.dtype = "torch.bfloat16"
        with opened(tmp_path, server, seed=3):
            pass
    assert set(server.updates[0]["dtype_names"]) == {"bfloat16"}
    assert server.decoder is not None
    ours, theirs = random_decoder(SHAPE, 3).state_dict(), server.decoder.state_dict()
    for name, weight in ours.items():
        assert torch.equal(theirs[name], weight.bfloat16().to(theirs[name].dtype)), name


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/init_weight_transfer_engine", 500, "NCCL version"),
        ("/start_weight_update", 400, "vllm_transfer"),
        ("/update_weights", 500, "it has a part of the weights"),
        ("/finish_weight_update", 500, "vllm_transfer"),
    ],
)
def test_what_the_server_refuses_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, status: int, said: str
) -> None:
    """Also while this process waits for it in NCCL."""
    with two_ranks(monkeypatch, seconds=60.0), nccl_server() as server:
        server.refused[path] = status
        began = time.monotonic()
        with pytest.raises(UserError, match=r"did not take the weights.*no such group") as raised:  # noqa: SIM117
            with opened(tmp_path, server, seconds=60.0):
                pass
        assert time.monotonic() - began < 20
    assert said in str(raised.value)
    assert "/resume" not in server.calls


def test_a_server_that_never_comes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_ranks(monkeypatch), nccl_server() as server:
        monkeypatch.setattr(VLLMDouble, "join", lambda server, about: time.sleep(3))
        with pytest.raises(UserError, match=r"within 0.2 seconds .machine.timeout_seconds"):  # noqa: SIM117
            with opened(tmp_path, server, seconds=0.2):
                pass


def test_nccls_own_failure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object) -> None:
        if given and given[-1] == 1:  # the server's rank, which notices later
            time.sleep(0.5)
        raise RuntimeError("NCCL Error 5: invalid usage")

    with two_ranks(monkeypatch), nccl_server() as server:
        for name in ("init_rank", "unique_id"):
            monkeypatch.setattr(torch.cuda.nccl, name, failing)
            with pytest.raises(UserError, match="NCCL Error 5: invalid usage"):  # noqa: SIM117
                with opened(tmp_path, server):
                    pass


def test_auto_takes_nccl_where_it_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken to running servers that were started for it, and to ours with their own GPUs."""
    with vllm_double() as plain, nccl_server() as server:
        running, other = (replace(ENGINE, vllm_url=each.url) for each in (server, plain))
        assert choose_route(running, HOST) == Route()
        monkeypatch.setattr(weight_transfer, "sends_by_nccl", lambda device: True)
        assert choose_route(running, HOST) == Route(nccl=True)
        assert choose_route(running, HOST, adapters=True) == Route()
        assert choose_route(other, HOST) == Route()
        assert choose_route(replace(running, vllm_transfer="files"), HOST) == Route()

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert choose_route(ENGINE, HOST) == Route(True, ("2",))
        two = replace(ENGINE, vllm_options=("--enforce-eager", "--tensor_parallel_size=2"))
        assert choose_route(two, HOST) == Route(True, ("2", "3"))
        assert choose_route(two, HOST, adapters=True) == Route(False, ("2", "3"))
        assert choose_route(replace(two, vllm_transfer="files"), HOST) == Route(False, ("2", "3"))
        four = replace(two, vllm_options=("-tp", "2", "--pipeline-parallel-size", "2"))
        assert choose_route(four, HOST) == Route()
        prompts = replace(two, vllm_options=("--prefill_context_parallel_size", "2"))
        assert choose_route(prompts, HOST) == Route(True, ("2", "3"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,GPU-7")
        assert choose_route(two, HOST) == Route(True, ("6", "GPU-7"))
        wrong = replace(ENGINE, vllm_options=("--tensor-parallel-size=many",))
        with pytest.raises(UserError, match=r"generation.vllm_options: .*'many'"):
            choose_route(wrong, HOST)
        none = replace(ENGINE, vllm_options=("-tp=0",))
        with pytest.raises(UserError, match=r"vllm_options: --tensor-parallel-size = 0"):
            choose_route(none, HOST)


def test_nccl_that_cannot_be_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(settings: GenerationConfig) -> str:
        with pytest.raises(UserError, match=r"generation.vllm_transfer = nccl: ") as raised:
            choose_route(replace(settings, vllm_transfer="nccl"), HOST)
        assert 'vllm_transfer = "files"' in str(raised.value)
        return str(raised.value)

    assert f"this run's are on {HOST}" in refused(ENGINE)
    monkeypatch.setattr(weight_transfer, "sends_by_nccl", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "needs 1 GPU(s) that no training process has, and 0 are free" in refused(ENGINE)
    with vllm_double() as server:
        said = refused(replace(ENGINE, vllm_url=server.url))
    assert '--weight-transfer-config \'{"backend": "nccl"}\'' in said


@pytest.fixture
def vllm_python(tmp_path: Path) -> str:
    """A Python whose vLLM says how it is started, and ends."""
    python, told = tmp_path / "python", "$CUDA_VISIBLE_DEVICES of $*"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "Error: {told}"; exit 3\n')
    python.chmod(0o755)
    return str(python)


def test_a_run_refuses_nccl_before_it_begins(tmp_path: Path, vllm_python: str) -> None:
    words = ["engine=vllm", "vllm_transfer=nccl", f"vllm_python={vllm_python}"]
    settings = ["machine.device=cpu", *(f"generation.{word}" for word in words)]
    with pytest.raises(UserError, match=r"vllm_transfer = nccl: .* this run's are on cpu"):
        run("quickstart", set=settings, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_a_server_is_started_for_nccl_on_free_gpus(
    tmp_path: Path, vllm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with two_ranks(monkeypatch), pytest.raises(UserError, match="ended at its start"):  # noqa: SIM117
        with open_vllm(
            replace(ENGINE, vllm_python=vllm_python), random_decoder(SHAPE), TOKENIZER,
            tmp_path / "weights", dtype="float32", progress=QuietProgress(),
        ):  # fmt: skip
            pass
    log = (tmp_path / "weights" / "vllm.log").read_text()
    assert log.startswith("Error: 7 of ")
    assert '--weight-transfer-config {"backend": "nccl"}' in log


def test_only_a_gpu_by_cuda_sends_by_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_nccl_init_rank", None, raising=False)
    names = ("cpu", "mps", "cuda:1")
    assert [device.sends_by_nccl(torch.device(name)) for name in names] == [False, False, True]
    monkeypatch.delattr(torch._C, "_nccl_init_rank")
    assert not device.sends_by_nccl(torch.device("cuda:1"))
