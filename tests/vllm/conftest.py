"""The real vLLM: skipped where it is not installed; a server for each kind of model, once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.progress import LoggedProgress
from lmsmith.generation.vllm import open_vllm
from lmsmith.generation.vllm_server import PYTHON, require_vllm
from tiny_models import random_decoder

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("server", "stages"))]

from served_kinds import ADAPTER, SETTINGS, SHAPES, TOKENIZER, Kind  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        require_vllm(SETTINGS)
    except UserError as error:
        reason = f"{error.problem}; make test-vllm, or {PYTHON}=PYTHON pytest -m vllm"
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kind]]:
    """Both kinds on their servers, float32; Llama's takes adapters."""
    with ExitStack() as closing:
        found = {}
        for name, shape in SHAPES.items():
            decoder = random_decoder(shape)
            model = closing.enter_context(
                open_vllm(
                    SETTINGS, decoder, TOKENIZER, tmp_path_factory.mktemp(name) / "vllm",
                    dtype="float32", progress=LoggedProgress(), adapter=ADAPTER,
                )
            )  # fmt: skip
            found[name] = Kind(name, decoder, model)
        yield found


@pytest.fixture(params=list(SHAPES))
def kind(kinds: dict[str, Kind], request: pytest.FixtureRequest) -> Kind:
    return kinds[request.param]
