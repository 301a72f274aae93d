"""Property tests: no deadline for one example, since a busy machine is no bug. One thread each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("lmsmith", deadline=None)
settings.load_profile("lmsmith")


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
