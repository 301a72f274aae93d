"""The user's data is in one place, on every system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmsmith.core import paths


def test_lmsmith_home_holds_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LMSMITH_HOME", "~/mine")
    monkeypatch.delenv("LMSMITH_CACHE", raising=False)
    home = tmp_path / "mine"
    assert paths.models_folder() == home / "models"
    assert paths.task_folders() == [paths.tasks_folder()] == [home / "tasks"]
    assert paths.database_file() == home / "conversations.db"
    assert paths.cache_folder() == home / "cache"
    monkeypatch.setenv("LMSMITH_CACHE", "~/elsewhere")
    assert paths.cache_folder() == tmp_path / "elsewhere"
    assert paths.models_folder() == home / "models"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is of Linux")
def test_xdg_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMSMITH_HOME")
    monkeypatch.delenv("LMSMITH_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cached"))
    assert paths.models_folder() == tmp_path / "data" / "lmsmith" / "models"
    assert paths.database_file() == tmp_path / "data" / "lmsmith" / "conversations.db"
    assert paths.cache_folder() == tmp_path / "cached" / "lmsmith"
    earlier = tmp_path / ".local" / "share" / "lmsmith" / "tasks"
    assert paths.task_folders() == [earlier, tmp_path / "data" / "lmsmith" / "tasks"]
    monkeypatch.delenv("XDG_DATA_HOME")
    assert paths.task_folders() == [earlier] == [paths.tasks_folder()]


def test_a_database_beside_a_home_called_models_is_still_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "models"))
    assert paths.database_file() == tmp_path / "models" / "conversations.db"
    (tmp_path / "conversations.db").touch()
    assert paths.database_file() == tmp_path / "conversations.db"


def test_versions_may_be_kept_elsewhere_for_a_while(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    with paths.versions_in(tmp_path / "simulated"):
        assert paths.versions_folder() == tmp_path / "simulated"
        assert paths.models_folder() == tmp_path / "models"
    assert paths.versions_folder() == tmp_path / "versions"
