"""Stores in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsmith.feedback.store import Store


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    yield made
    made.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "feedback.db")
    yield made
    made.close()
