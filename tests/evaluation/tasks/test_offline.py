"""The hub's libraries are kept from asking it, and everything is as before afterwards."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from lmsmith.evaluation.tasks.offline import OFFLINE_VARIABLES, caches_alone, said_offline


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", OFFLINE_VARIABLES)
def test_each_variable_says_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert said_offline() == ""
    for text in ("", "0", "no"):
        monkeypatch.setenv(name, text)
        assert said_offline() == ""
    for text in ("1", "on", "Yes", "TRUE"):
        monkeypatch.setenv(name, text)
        assert said_offline() == name


def test_what_is_loaded_and_what_is_not_yet_are_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ModuleType("datasets.config")
    loaded.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets.config", loaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with caches_alone():
        assert loaded.HF_HUB_OFFLINE is True
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert loaded.HF_HUB_OFFLINE is False
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert "HF_DATASETS_OFFLINE" not in os.environ
