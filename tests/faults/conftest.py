"""Inputs of known faults, from ../shared/faults; tests skip where that folder is absent."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[3] / "shared" / "faults"


@pytest.fixture(scope="session")
def faults() -> Callable[[str], Path]:
    """The folder of one kind of fault, by its name."""

    def folder(name: str) -> Path:
        path = FAULTS / name
        if not path.exists():
            pytest.skip(f"the inputs of known faults are not here: ../shared/faults/{name}")
        return path

    return folder


@pytest.fixture(scope="session")
def zoo(faults: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models with odd tokenizers, made by zoo.py."""
    script = faults("20-padded-vocabulary") / "zoo.py"
    root = tmp_path_factory.mktemp("zoo")
    subprocess.run([sys.executable, str(script), str(root)], check=True, capture_output=True)
    return root
