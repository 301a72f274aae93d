"""One server for all contract tests, with a client of each kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from worlds import HTTP, Running, running


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with running() as found:
        yield found
    HTTP.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as made:
        yield made
