"""Python where a wheel is installed: on this processor, or on one that qemu emulates.

`make test-wheels` makes the two environments, with the wheels' dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmsmith.core.version import VERSION

REPOSITORY = Path(__file__).parents[1]
SECONDS = 1200
"""Guards a hang; an emulated processor takes half a minute to import PyTorch."""

PROCESSORS = {  # parts of Arm's, with instructions as Linux names them
    "cortex-a57": (0xD07, "fp asimd aes pmull sha1 sha2 crc32 cpuid"),
    "cortex-a76": (0xD0B, "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimddp"),
    "max": (0x051, "fp asimd atomics fphp asimdhp cpuid asimddp sve sve2 i8mm bf16"),
}
"""ARM's as qemu emulates them: of 2012 (ARMv8.0), of 2018 (dot products), and all it knows."""


@dataclass(frozen=True)
class Environment:
    """Where a wheel is installed.

    Attributes:
        machine: ``x86_64`` or ``aarch64``.
        folder: a virtual environment, or the root of a Debian for ARM.
    """

    machine: str
    folder: Path

    @property
    def is_arm(self) -> bool:
        return self.machine == "aarch64"

    def install(self, wheel: Path) -> None:
        """The wheel alone; what it depends on is there."""
        words = ["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        if self.is_arm:
            packages = self.folder / "usr/local/lib/python3.11/dist-packages"
            tag = wheel.stem.rpartition("-")[2]
            words += ["--upgrade", "--target", str(packages), "--platform", tag]
            words += ["--only-binary=:all:", "--python-version", "3.11"]
            python = sys.executable
        else:
            words.append("--force-reinstall")
            python = str(self.folder / "bin/python")
        subprocess.run([python, *words, str(wheel)], check=True, timeout=SECONDS)

    def python(
        self, words: Sequence[str], processor: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python, in which no compiler is found.

        Args:
            processor: one that qemu emulates; this machine's if empty.
        """
        command = self._emulated(processor) if processor else [str(self.folder / "bin/python")]
        done = subprocess.run(
            [*command, *words],
            env={"PATH": "", "OMP_NUM_THREADS": "1", "QEMU_CPU": processor, **variables},
            cwd=REPOSITORY / "tests",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def _emulated(self, processor: str) -> list[str]:
        emulator = shutil.which(f"qemu-{self.machine}-static")
        if emulator is None:
            pytest.skip("qemu is not installed: apt install qemu-user-static")
        if not self.is_arm:
            return [emulator, str(self.folder / "bin/python")]
        self._describe(processor)
        # A script, so that the emulated Python can start another one.
        script = self.folder / "usr/bin/python"
        real = self.folder / "usr/bin/python3.11"
        script.write_text(f'#!/bin/sh\nexec {emulator} -L {self.folder} -0 "$0" {real} "$@"\n')
        script.chmod(0o755)
        return [str(script)]

    def _describe(self, processor: str) -> None:
        """What Linux says of the processor; qemu shows this machine's, of which PyTorch dies."""
        part, features = PROCESSORS[processor]
        lines = (f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8")
        lines = (*lines, "CPU variant\t: 0x0", f"CPU part\t: {part:#x}", "CPU revision\t: 1")
        cores = range(os.cpu_count() or 1)
        text = "".join("\n".join((f"processor\t: {n}", *lines, "\n")) for n in cores)
        path = self.folder / "proc/cpuinfo"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def environment_for(machine: str) -> Environment:
    """The one that `make test-wheels` made; the test is skipped without it."""
    root = os.environ.get("LMSMITH_WHEEL_ENV")
    if not root:
        pytest.skip("wheels are not installed here: make test-wheels")
    return Environment(machine, Path(root) / machine)


def wheel_for(machine: str) -> Path:
    """The wheel that `make wheels` made, of this version."""
    found = sorted((REPOSITORY / "dist").glob(f"lmsmith-{VERSION}-*{machine}.whl"))
    assert found, f"no wheel for {machine} in dist/: make wheels"
    return found[-1]
