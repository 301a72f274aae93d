"""Inputs of known faults, from ../shared/faults; tests skip where that folder is absent."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.core.renamed_keys import RENAMED_KEYS
from lmsmith.stages.table import STAGES

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
def with_new_keys() -> Callable[[str], str]:
    """Makes a recipe's text of an earlier version one of today: keys before 0.2 are renamed."""
    keys = {
        stage.name: {each.name for each in dataclasses.fields(stage.config_type())}
        for stage in STAGES
    }

    def renamed(text: str) -> str:
        table, lines = "", []
        for line in text.splitlines():
            table = line.strip("[]") if line.startswith("[") else table
            key, here = line.split(" =")[0], keys.get(table, set())
            new = [name for name in RENAMED_KEYS.get(key, ()) if name in here]
            lines.append(new[0] + line[len(key) :] if new and key not in here else line)
        return "\n".join(lines) + "\n"

    return renamed


@pytest.fixture(scope="session")
def zoo(faults: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models with odd tokenizers, made by zoo.py."""
    script = faults("20-padded-vocabulary") / "zoo.py"
    root = tmp_path_factory.mktemp("zoo")
    subprocess.run([sys.executable, str(script), str(root)], check=True, capture_output=True)
    return root
