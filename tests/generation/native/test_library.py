"""Kernels are compiled or built for instructions that the processor has; without them PyTorch's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.generation.native import instructions, library
from lmsmith.generation.native.instructions import SETS, InstructionSet
from lmsmith.generation.native.targets import FLAGS

HERE = [each for each in SETS if each.runs_here]

SMALL = """
#if defined(__AVX512BF16__)
extern "C" int compiled_for() { return 0; }
#elif defined(__AVX2__)
extern "C" int compiled_for() { return 1; }
#elif defined(__ARM_NEON)
extern "C" int compiled_for() { return 2; }
#endif
"""
"""Says for which of SETS it is compiled."""


def elsewhere(*script: str, **variables: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        env={"PYTHONPATH": ":".join(sys.path), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_compiler_pytorch_is_used() -> None:
    script = (
        "from lmsmith.generation.native.library import describe_kernels",
        "from lmsmith.generation.native.operations import best_kernels",
        "print(type(best_kernels()).__name__, describe_kernels())",
    )
    assert elsewhere(*script, PATH="").startswith("TorchKernels none: without the C++ kernels")
    off = elsewhere(*script, PATH="", LMSMITH_NATIVE="0")
    assert off.startswith("TorchKernels none (LMSMITH_NATIVE=0)")


def test_a_compiler_that_fails_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, text = library._load.__wrapped__()
    assert found is None
    assert "false cannot compile them" in text
    assert "are being compiled for this machine, once" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="wheels with kernels are for Linux")
@pytest.mark.parametrize(("needs", "advised"), [((), True), (("no such instruction",), False)])
def test_the_wheel_is_advised_where_it_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needs: tuple[str, ...], advised: bool
) -> None:
    machine = instructions.MACHINES[instructions.platform.machine()]
    monkeypatch.setattr(instructions, "BUILT", tmp_path)
    monkeypatch.setattr(instructions, "SETS", (InstructionSet("fake", machine, (), (), needs),))
    monkeypatch.setattr(library, "_load", lambda: (None, ""))
    said = library.advice_on_kernels()
    assert "install g++" in said
    assert ("wheel for this platform" in said) == advised
    InstructionSet("fake", machine, (), (), needs).built.touch()
    assert "wheel" not in library.advice_on_kernels()


@pytest.mark.skipif(not HERE or not shutil.which("g++"), reason="no set, or no C++ compiler here")
def test_a_set_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = HERE[-1]
    small = tmp_path / "small.cpp"
    small.write_text(SMALL)
    monkeypatch.setattr(library, "SOURCE", small)
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path))
    monkeypatch.setenv(instructions.VARIABLE, chosen.name)
    found, text = library._load.__wrapped__()
    assert found is not None
    assert text.startswith(f"compiled for {chosen.name} by ")
    assert SETS[found.compiled_for()] is chosen


@pytest.mark.parametrize("name", ["avx1024", "AVX2", ""])
def test_an_unknown_set_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(instructions.VARIABLE, name)
    with pytest.raises(UserError, match="there is no such set") as caught:
        library._load.__wrapped__()
    assert "choose native" in str(caught.value)


def test_a_processor_runs_no_set_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instructions, "BUILT", tmp_path)
    for each in SETS:
        each.built.touch()
    able = dict.fromkeys([name for each in SETS for name in each.needs], True)
    monkeypatch.setattr(instructions.platform, "machine", lambda: "x86_64")
    for lacks, expected in (("", "avx512"), ("avx512_bf16", "avx2"), ("fma3", None)):
        found = {**able, lacks: False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        path = instructions.built_here()
        assert (path.stem if path else None) == expected
        if expected != "avx512":
            monkeypatch.setenv(instructions.VARIABLE, "avx512")
            with pytest.raises(UserError, match="this processor has no such instructions"):
                instructions.chosen_set()
    monkeypatch.setattr(instructions.platform, "machine", lambda: "arm64")
    path = instructions.built_here()
    assert path is not None
    assert path.stem == "neon"
    monkeypatch.setattr(instructions.platform, "machine", lambda: "riscv64")
    assert instructions.built_here() is None


def test_the_wheels_builder_reads_the_sets_where_nothing_is_installed() -> None:
    """In a Python without packages, compiling each set that a processor may choose."""
    script = (
        "import runpy, sys",
        "from pathlib import Path",
        "hook = runpy.run_path(sys.argv[1])",
        "hook['subprocess'].run = lambda command, check: print(*command)",
        "for name in hook['MACHINES']: hook['build_kernels'](name, Path(sys.argv[2]))",
    )
    hook, folder = Path(__file__).parents[3] / "hatch_build.py", Path(__file__).parent
    command = [sys.executable, "-I", "-S", "-c", "\n".join(script), str(hook), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    for line, each in zip(lines, SETS, strict=True):
        assert f"-target {each.machine}-linux" in line
        assert f"/{each.built.name} " in line
        assert " ".join((*each.zig, *FLAGS)) in line


def test_a_damaged_built_library_is_left_for_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instructions, "BUILT", tmp_path)
    fake = InstructionSet(
        "fake", instructions.MACHINES[instructions.platform.machine()], (), (), ()
    )
    monkeypatch.setattr(instructions, "SETS", (fake,))
    fake.built.write_bytes(b"no library")
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    found, text = library._load.__wrapped__()
    assert found is None
    assert "cannot compile" in text
