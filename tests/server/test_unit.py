"""The systemd unit of docs/deploy.md, by systemd's own check."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith import cli

DOCS = Path(__file__).parents[2] / "docs/deploy.md"
PROGRAM = "/opt/lmsmith/bin/lmsmith"


def unit() -> str:
    (found,) = re.findall(r"```ini\n(\[Unit\].*?)```", DOCS.read_text(), re.DOTALL)
    return str(found)


@pytest.mark.parametrize("fault", ["", "Restrat=on-failure", "TimeoutStopSec=soon"])
def test_systemd_reads_the_unit(tmp_path: Path, fault: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    text = unit().replace(PROGRAM, sys.executable)
    assert text != unit()
    if fault:
        text = text.replace("[Install]", f"{fault}\n\n[Install]")
    file = tmp_path / "lmsmith.service"
    file.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    said = [line for line in done.stderr.splitlines() if "lmsmith.service" in line]
    assert bool(said) == bool(fault), done.stderr


def test_its_command_has_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"ExecStart=(.*?)\n(?!\s)", unit(), re.DOTALL)
    options = re.findall(r"--[a-z-]+", line)
    assert len(options) == 5
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in options)
