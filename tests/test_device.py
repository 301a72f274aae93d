"""Devices: one module names them, models stay on theirs, and all stages run on another."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lmsmith import cli, device
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation import inference
from lmsmith.generation.decode_graphs import DecodeGraphs
from lmsmith.generation.device_kernels import DeviceKernels
from lmsmith.gpu_check import check_gpu, describe_check, graph_check, missing_gpu
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import EncoderDecoderConfig, ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.heads import ScalarModel
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.presets import PRESETS, bert
from lmsmith.training.machine import resolve_machine
from recorded_operations import RecordedOperations

SOURCE = Path(device.__file__).parent
TESTS = Path(__file__).parent
NAMES = ("cpu", "cuda", "mps")


def named_devices(text: str) -> list[int]:
    """Lines of a source that name a device in a call, or move a tensor to one by ``.cpu()``."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") == "get":
            continue  # a dictionary's field
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        named = [each for each in given if isinstance(each, ast.Constant)]
        if any(str(each.value).split(":")[0] in NAMES for each in named):
            lines.append(node.lineno)
        if isinstance(node.func, ast.Attribute) and node.func.attr in NAMES and not given:
            lines.append(node.lineno)
    return lines


def test_no_module_but_one_names_a_device() -> None:
    assert named_devices('torch.zeros(3, device="cpu")\nx.to("cuda:1")\ny = z.cpu()') == [1, 2, 3]
    found = {
        path.relative_to(SOURCE).as_posix(): lines
        for path in SOURCE.rglob("*.py")
        if (lines := named_devices(path.read_text(encoding="utf-8")))
    }
    assert set(found) == {"device.py"}


SHAPE = ModelConfig(2, 16, 2, 32, 40)
EVERYTHING = replace(
    SHAPE,
    kv_heads=1,
    positions="rotary",
    attention_pattern=("dense", "banded"),
    window=8,
    activation="swiglu",
    norm="rms",
)


@pytest.mark.parametrize("shape", [SHAPE, EVERYTHING, replace(SHAPE, positions="sinusoidal")])
@pytest.mark.parametrize("explicit", [False, True])
def test_decoders_compute_on_the_device_of_their_weights(
    shape: ModelConfig, explicit: bool
) -> None:
    model = ScalarModel(Decoder(shape).to("meta")).to("meta")
    for block in model.decoder.blocks:
        block.attention.explicit = explicit  # type: ignore[union-attr]
    tokens = torch.zeros(2, 20, dtype=torch.long, device="meta")
    mask = torch.ones(2, 20, 20, dtype=torch.bool, device="meta")
    assert model(tokens).device.type == "meta"
    model(tokens, tokens, mask).sum().backward()


def test_other_models_compute_on_the_device_of_their_weights() -> None:
    tokens = torch.zeros(2, 9, dtype=torch.long, device="meta")
    lengths = torch.full((2,), 9, device="meta")
    encoder = replace(bert(2, 16, 2, 32, 40), pooler=True)
    models: list[nn.Module] = [Encoder(encoder), MaskedLM(MaskedLMConfig(encoder, True))]
    for model in models:
        model.to("meta")
        body = model if isinstance(model, Encoder) else model.encoder
        assert body(tokens).device.type == "meta"
    for body in (Decoder(SHAPE), Encoder(encoder)):
        settings = ClassifierConfig(body.config, "t", "classification", ("text",), (), ("a", "b"))
        classifier = Classifier(settings, body).to("meta")
        assert classifier(tokens, lengths, [1, 1]).device.type == "meta"
    translator = EncoderDecoder(EncoderDecoderConfig(SHAPE)).to("meta")
    assert translator(tokens, tokens, lengths).device.type == "meta"


def test_all_stages_and_replies_are_the_same_on_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A simulated one (`far_device`): what mixes tensors of two devices fails."""
    folders = (TESTS, TESTS / "stages", TESTS / "gpu")
    paths = map(str, (SOURCE.parent, *folders))
    command = [sys.executable, str(TESTS / "gpu/scenario.py")]
    environment = {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        for folder in folders[1:]:
            monkeypatch.syspath_prepend(str(folder))
        import scenario

        near = json.loads(json.dumps(scenario.run_all()))
        out, error = child.communicate(timeout=300)
    assert child.returncode == 0, error[-3000:]
    far = json.loads(out)
    assert near["replies"] == far["replies"]
    assert near["rankings"] == far["rankings"]
    assert set(near) == set(far)
    for name in set(near) - {"replies", "rankings"}:
        for ours, theirs in zip(near[name], far[name], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), name


def test_auto_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMSMITH_DEVICE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose_device("auto") == device.HOST
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(device.choose_device("auto")) == "cuda:0"
    monkeypatch.setenv("LMSMITH_DEVICE", "cpu")
    assert device.choose_device("auto") == device.HOST
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(device.choose_device("cuda")) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="no GPU of its own"):
        device.choose_device("cuda")
    monkeypatch.setenv("LMSMITH_DEVICE", "tpu")
    with pytest.raises(UserError, match="LMSMITH_DEVICE=tpu"):
        device.choose_device("auto")


def test_a_known_gpu_has_its_makers_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989.5,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA A100-SXM4-40GB": 312.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA GeForce RTX 4090": 165.2,
    }
    place = torch.device("cuda", 0)
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert device.known_peak(place, torch.bfloat16) == 1e3 * peak
    assert device.known_peak(place, torch.float32) is None


@pytest.mark.parametrize("words", [["--device", "cuda"], ["--device=mps"]])
def test_a_missing_device_is_one_message(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing_gpu() == "":
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("LMSMITH_DEVICE", "")
    assert cli.main(["run", "quickstart", "--folder", str(tmp_path / "run"), *words]) == 2
    assert not list(tmp_path.glob("run/*/"))
    message = capsys.readouterr().err
    assert "this machine has no such device" in message
    assert "Traceback" not in message


def test_no_command_takes_a_device_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those too that compute nothing; help is shown all the same."""
    monkeypatch.setenv("LMSMITH_DEVICE", "foo")
    for command in cli.COMMANDS:
        assert cli.main(command.name.split()) == 2
        said = capsys.readouterr().err
        assert "LMSMITH_DEVICE=foo (or --device foo): no such device" in said, command.name
        assert "give auto, cpu, cuda, mps" in said
    assert cli.main(["plan", "--help"]) == cli.main(["--help"]) == 0
    assert "--gpus" in capsys.readouterr().out


def test_a_recipe_says_that_its_own_device_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMSMITH_DEVICE", "cuda")
    (tmp_path / "a.txt").write_text("")
    words = ["run", "own", "--folder", str(tmp_path / "run"), "--set", "machine.device=cpu"]
    words += ["--set", f"data.documents=['{tmp_path / 'a.txt'}']", "--only", "data"]
    cli.main(words)
    assert "machine.device = cpu counts; LMSMITH_DEVICE=cuda" in capsys.readouterr().err


def test_the_doctor_says_why_it_measures_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if missing_gpu() == "":
        pytest.skip("there is a GPU here")
    assert cli.main(["doctor", "--gpu"]) == 0
    assert "skipped: no GPU" in capsys.readouterr().out
    assert cli.main(["doctor", "--gpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu"] is None


def test_the_check_of_a_gpu_measures_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, of a tiny model; what a GPU makes of it, it shows itself."""
    tiny = replace(PRESETS["gpt2"], config=replace(SHAPE, context=160))
    monkeypatch.setitem(PRESETS, "gpt2", tiny)  # type: ignore[arg-type]
    monkeypatch.setattr(Decoder, "compile_blocks", lambda self: None)
    found = check_gpu()
    assert found["difference_from_processor"] == 0.0
    assert found["training_eager"]["tokens_per_second"] > 0
    assert 0 < found["training_eager"]["share_of_peak"] < 1
    assert found["generation"]["64"] > found["generation"]["1"] > 0
    lines = describe_check(found)
    assert "64 at once" in " ".join(lines)
    assert "without CUDA graphs" in " ".join(lines.values())
    assert lines["CUDA graphs"] == "this device has no CUDA graphs"


def test_the_check_compares_recorded_decode_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded as `RecordedOperations` does it; what a GPU records, it shows itself."""
    monkeypatch.setattr(inference, "kernels_for", lambda _: DeviceKernels())
    graphs = partial(DecodeGraphs, device.HOST, RecordedOperations)
    monkeypatch.setattr(inference, "graphs_for", lambda *_: graphs())
    found = graph_check(resolve_machine(MachineConfig(threads=1)))
    assert found["shapes"] == [(8, 1), (8, 2)]
    assert found["failure"] == ""
    assert found["difference"] < 1e-5
