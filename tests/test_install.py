"""What the Makefile and the README tell a new user to type is found."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("target", ["install", "serve", "demo", "chat"])
def test_make_says_how_lmsmith_becomes_a_command(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    done = subprocess.run(
        ["make", "-n", target], cwd=HERE, capture_output=True, text=True, check=True
    )
    assert f"source '{HERE}/.venv/bin/activate'" in done.stdout
    lines = done.stdout.splitlines()
    told = next(number for number, line in enumerate(lines) if "activate'" in line)
    used = [number for number, line in enumerate(lines) if line.startswith(".venv/bin/lmsmith")]
    assert all(told < number for number in used)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_activates_before_the_first_lmsmith(name: str) -> None:
    blocks = re.findall(r"```console\n(.*?)```", (HERE / name).read_text("utf-8"), re.DOTALL)
    assert "$ source .venv/bin/activate" in blocks[0]
    assert "$ make install" in blocks[0]
    serving = next(block for block in blocks if "make serve" in block).splitlines()
    found = [line.split()[1] for line in serving]
    assert found[:3] == ["make", "source", "lmsmith"]


def test_what_is_installed_is_enough_for_the_readmes_exports() -> None:
    """`lmsmith export … --to gguf` stands there without another line to install something."""
    makefile = (HERE / "Makefile").read_text("utf-8")
    extras = re.findall(r"--editable '\.\[([a-z,]+)\]'", makefile)
    assert {"demo", "serve", "gguf"} <= {extra for each in extras for extra in each.split(",")}
