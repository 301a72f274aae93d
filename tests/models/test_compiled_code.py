"""Half-written compiled code of a killed run does not stop the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lmsmith.models.compiled_code import is_unfinished, remove_unfinished_libraries

WORK = """
import torch
from lmsmith.models.compiled_code import remove_unfinished_libraries
if {removing}:
    remove_unfinished_libraries()
print(float(torch.compile(lambda x: x.sin() * 2)(torch.ones(8))[0]))
"""


needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux"
)


@needs_compiler
def test_a_cut_library_is_known(tmp_path: Path) -> None:
    made, cut, other = (tmp_path / f"{name}.so" for name in ("made", "cut", "other"))
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(made)]
    subprocess.run(command, input=b"int one() { return 1; }", check=True)
    whole = made.read_bytes()
    for size in (0, 3, 63, 64, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        assert is_unfinished(cut), size
    assert not is_unfinished(made)
    other.write_bytes(b"no library at all")
    assert not is_unfinished(other)
    assert not is_unfinished(tmp_path / "absent.so")


def test_what_another_process_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for name in ("dead", "busy"):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / f"{name}.main.so").touch()
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / "busy.lock"):
        remove_unfinished_libraries.__wrapped__()
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["busy.main.so"]


@needs_compiler
def test_the_next_run_compiles_again(tmp_path: Path) -> None:
    def run(*, removing: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WORK.format(removing=removing)],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    first = run(removing=False)
    assert first.returncode == 0, first.stderr
    libraries = list(tmp_path.glob("*/*.main.so"))
    assert libraries
    for path in libraries:
        path.write_bytes(b"")
    again = run(removing=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
