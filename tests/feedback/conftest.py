"""Stores in both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmsmith.feedback.store import Store


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    yield made
    made.close()
