"""Each wheel is installed without a compiler and used, on processors that are here or emulated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.resolve import Source
from lmsmith.generation.native.instructions import SETS
from lmsmith.models.folder import save_model
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.models.interop.quantised import PackedTensor
from lmsmith.models.presets import llama
from lmsmith.runs.stage_folder import available_cores
from lmsmith.tokenizers import Tokenizer
from packed_tensors import random_packed, write_packed
from tiny_models import TEXTS, random_decoder
from wheel_environments import PROCESSORS, REPOSITORY, Environment, environment_for, wheel_for

TOKENS = 16
NEAR = {"fp32": 1e-3, "bf16": 0.15}
"""Most that rounding changes of a log-probability, by the type of the activations."""

HERE = next((each.name for each in SETS if each.runs_here), "")
CASES = [
    ("x86_64", "", f"built for {HERE}" if HERE else "none"),
    ("x86_64", "Haswell", "built for avx2"),
    ("x86_64", "Nehalem", "none: without the C++ kernels"),
    ("any", "", "none: without the C++ kernels"),
    *(("aarch64", processor, "built for neon") for processor in PROCESSORS),
]
"""Wheel, processor (this one if empty), and the kernels that are used."""


def installed(wheel: str) -> Environment:
    """The environment of a wheel's processors, with the wheel newly installed."""
    environment = environment_for("x86_64" if wheel == "any" else wheel)
    path = wheel_for(wheel)
    if path not in _installed.get(environment.machine, []):
        environment.install(path)
        _installed[environment.machine] = [path]
    return environment


_installed: dict[str, list[Path]] = {}
"""By machine, the wheel that is in its environment."""


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `replies.py` is to do: a model in float32 and in bf16, and files of 8 and of 4 bits."""
    environment_for("x86_64")
    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train(TEXTS, 300)
    config = replace(llama(2, 256, 4, 2, 512, 64), vocabulary_size=300)
    decoder = random_decoder(config)
    save_model(folder / "plain", decoder, tokenizer, {})
    read = ReadModel(decoder, tokenizer, Source("lmsmith", folder, "tiny"), {})
    whole = export(read, folder / "export", "gguf", "f32").path
    models = {"float32": (folder / "plain", "fp32"), "bf16": (folder / "plain", "bf16")}
    for name in ("Q8_0", "Q4_0"):
        path, seeds = folder / f"{name}.gguf", iter(range(1000))

        def packed(_: str, tensor: PackedTensor, name: str = name, seeds: Any = seeds) -> Any:
            matrix = len(tensor.shape) == 2
            return random_packed(name, *tensor.shape, seed=next(seeds)) if matrix else tensor

        write_packed(path, open_gguf(whole), packed)
        models[name] = (path, "bf16")
    prompt = tokenizer.encode("The dog ran to the river")
    models_as_text = {name: (str(path), precision) for name, (path, precision) in models.items()}
    path = folder / "order.json"
    path.write_text(json.dumps({"models": models_as_text, "prompt": prompt, "tokens": TOKENS}))
    return path


@pytest.fixture(scope="module")
def expected(order: Path) -> dict[str, Any]:
    """What this processor writes, with the kernels compiled for it."""
    script = str(Path(__file__).with_name("replies.py"))
    words = [sys.executable, script, str(order)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["operations"] == "NativeKernels"
    return found


@pytest.mark.parametrize(("wheel", "processor", "kernels"), CASES)
def test_it_writes_what_this_processor_writes(
    order: Path, expected: dict[str, Any], wheel: str, processor: str, kernels: str, tmp_path: Path
) -> None:
    """A processor that lacked an instruction of the kernels would end by SIGILL."""
    environment = installed(wheel)
    script = str(Path(__file__).with_name("replies.py"))
    done = environment.python([script, str(order)], processor, LMSMITH_HOME=str(tmp_path))
    found = json.loads(done.stdout)
    print({name: found[name] for name in ("torch", "kernels")})
    assert found["package"].startswith(str(environment.folder))
    assert found["kernels"].startswith(kernels)
    built = kernels.startswith("built")
    assert found["operations"] == ("NativeKernels" if built else "TorchKernels")
    for name, (_, precision) in json.loads(order.read_text())["models"].items():
        assert_same(found[name], expected[name], NEAR[precision])


def assert_same(found: list[Any], expected: list[Any], near: float) -> None:
    """Token for token, up to a place where the two likeliest are as near as rounding."""
    assert len(found) == len(expected) == TOKENS
    for place, (mine, other) in enumerate(zip(found, expected, strict=True)):
        if mine["token"] != other["token"]:
            first, second = other["top"]
            assert first - second < near, place
            assert place, "not one token is the same"
            print(f"the same up to a near-tie at {place}")
            return
        assert abs(mine["log_prob"] - other["log_prob"]) < near, place


def test_the_environment_of_arm_has_no_compiler() -> None:
    folder = installed("aarch64").folder
    names = {path.name for path in (folder / "usr/bin").iterdir()}
    assert "python3.11" in names
    assert not [name for name in names if {"cc", "gcc", "g++", "c++", "clang"} & {*name.split("-")}]


@pytest.mark.parametrize(
    ("processor", "flags"),
    [("cortex-a57", []), ("cortex-a76", ["asimddp"]), ("max", ["asimddp", "i8mm", "bf16", "sve"])],
)
def test_the_doctor_names_the_kernels_on_arm(
    processor: str, flags: list[str], tmp_path: Path
) -> None:
    """It uses as many threads as PyTorch bears, and says what the processor has."""
    done = installed("aarch64").python(
        ["-m", "lmsmith", "doctor", "--json"], processor, LMSMITH_HOME=str(tmp_path)
    )
    said = json.loads(done.stdout)
    assert said["kernels"] == "built for neon"
    assert said["hardware"]["flags"] == ["asimd", *flags]
    assert said["machine"]["threads"] == (1 if processor == "cortex-a57" else available_cores())
    assert "mkldnn_matmul" not in done.stderr
    assert said["reading_measured"]["bf16"]["one_row"] > 0


@pytest.mark.parametrize("processor", ["cortex-a57", "max"])
def test_the_kernels_on_arm_compute_what_pytorch_computes(processor: str, tmp_path: Path) -> None:
    """The tests of kernels run in the emulated Python, with the wheel's kernels."""
    tests = REPOSITORY / "tests/generation/native"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY)]
    words += [f"--basetemp={tmp_path / 'its'}", "-k", "not simulated and not matrix_units"]
    words += ["-W", "ignore:mkldnn_matmul"]  # PyTorch says that an old ARM lacks bf16
    words += [str(tests / f"test_{name}.py") for name in ("operations", "packed", "draw")]
    done = installed("aarch64").python(words, processor, LMSMITH_HOME=str(tmp_path))
    print(done.stdout[-200:])
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 150
    assert "skipped" not in done.stdout
