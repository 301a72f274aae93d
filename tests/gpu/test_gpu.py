"""On a GPU: every stage as on the processor, resuming to the bit, compiling, speeds.

``pytest -m gpu`` runs them where there is one; elsewhere they are skipped and say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_world import stage_folder
from scenario import PRETRAIN, TOKENIZER, documents, run_generation, run_stages, write_data

from lmsmith.core.errors import Interrupted
from lmsmith.core.files import write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.generation.vllm import open_vllm
from lmsmith.gpu_check import generation_speed, graph_check, training_speed
from lmsmith.models.config import ModelConfig
from lmsmith.models.presets import PRESETS
from lmsmith.stages import pretrain
from lmsmith.training import loop
from lmsmith.training.machine import prepare_process
from tiny_models import random_decoder
from vllm_double import vllm_double

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def nondeterministic_again() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def agree(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for name in one:
        if name in ("rankings", "replies"):
            continue  # a near tie may be drawn otherwise
        for ours, theirs in zip(one[name], other[name], strict=True):
            assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), name


def test_every_stage_agrees_with_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name in ("cpu", "cuda"):
        monkeypatch.setenv("LMSMITH_DEVICE", name)
        found[name] = run_stages(tmp_path / name) | run_generation()
    agree(found["cpu"], found["cuda"], 2e-3)
    same = [a == b for a, b in zip(found["cpu"]["replies"], found["cuda"]["replies"], strict=True)]
    assert any(same), "no reply is drawn as on the processor"


def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSMITH_DEVICE", "cuda")
    prepare_process(MachineConfig())
    data = write_data(
        tmp_path / "data", documents=documents(12, 1), validation_documents=documents(3, 2)
    )
    write_json(data / "mixture.json", {})
    TOKENIZER.save(tmp_path / "tokenizer")
    inputs = {"data": data, "tokenizer": tmp_path / "tokenizer"}
    whole, parts = stage_folder(tmp_path / "whole"), stage_folder(tmp_path / "parts")
    pretrain.run(PRETRAIN, inputs, whole)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: 2)
        with pytest.raises(Interrupted):
            pretrain.run(PRETRAIN, inputs, parts)
    pretrain.run(PRETRAIN, inputs, parts)
    files = [out / "model/model.safetensors" for out in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_gpt2_trains_at_a_good_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSMITH_DEVICE", "cuda")
    machine, shape = prepare_process(MachineConfig(deterministic=False)), PRESETS["gpt2"].config
    eager = training_speed(machine, shape)
    compiled = training_speed(machine, shape, compiled=True)
    print(eager, compiled)
    assert compiled["share_of_peak"] > 0.2
    assert compiled["tokens_per_second"] > eager["tokens_per_second"]


def test_many_replies_are_written_faster_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSMITH_DEVICE", "cuda")
    machine, shape = prepare_process(MachineConfig(deterministic=False)), PRESETS["gpt2"].config
    one, many = (generation_speed(machine, shape, streams) for streams in (1, 64))
    print(one, many)
    assert many > 8 * one


def test_decode_graphs_give_the_same_logits_and_more_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSMITH_DEVICE", "cuda")
    machine, shape = prepare_process(MachineConfig(deterministic=False)), PRESETS["gpt2"].config
    found = graph_check(machine)
    print(found)
    assert (found["failure"], found["shapes"]) == ("", [(8, 1), (8, 2)])
    assert found["difference"] < 1e-3  # PyTorch may multiply another number of rows by TF32's rules
    for streams in (1, 8, 64):
        speeds = [generation_speed(machine, shape, streams, graphs=each) for each in (True, False)]
        print(streams, speeds)
        if streams == 1:
            assert speeds[0] > speeds[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs: NCCL needs two")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_go_to_another_gpu_by_nccl(tmp_path: Path, dtype: str) -> None:
    """A double of vLLM's server has the second GPU, and receives by PyTorch's own calls."""
    shape = ModelConfig(2, 64, 2, 128, TOKENIZER.vocabulary_size)
    policies = [random_decoder(shape, seed).to(torch.device("cuda", 0)) for seed in (0, 1)]
    with vllm_double() as server:
        server.device, server.shape = torch.device("cuda", 1), shape
        server.dtype = f"torch.{dtype}"
        config = GenerationConfig("vllm", vllm_url=server.url, vllm_transfer="nccl")
        with open_vllm(
            config, policies[0], TOKENIZER, tmp_path / "weights", dtype="float32",
            progress=QuietProgress(), device=torch.device("cuda", 0), seconds=60.0,
        ) as model:  # fmt: skip
            model.bring(policies[1])
        assert server.decoder is not None
        for name, weight in policies[1].state_dict().items():
            there = server.decoder.state_dict()[name]
            assert torch.equal(there, weight.to(there.device, getattr(torch, dtype)).float()), name
