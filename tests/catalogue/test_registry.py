"""Names of models: kept whole or not at all, listed, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmsmith.catalogue import registry
from lmsmith.catalogue.registry import Record
from lmsmith.core.errors import UserError


def put(name: str, **values: object) -> Record:
    record = Record(name, "gguf", "m.gguf", "here", "ab" * 32, 3, registry.now(), **values)  # type: ignore[arg-type]
    with registry.registering(name) as partial:
        (partial / "m.gguf").write_bytes(b"abc")
        registry.write_record(partial, record)
    return record


def test_what_is_registered_is_found_and_removed() -> None:
    assert registry.records() == []
    assert registry.find("one") is None
    one, two = put("one"), put("two.b-1", licence="MIT")
    assert registry.find("one") == one
    assert registry.records() == [one, two]
    assert one.path.read_bytes() == b"abc"
    assert one.as_dict()["path"] == str(registry.home() / "one" / "m.gguf")
    assert registry.remove("one") == one
    assert registry.records() == [two]
    assert [path.name for path in registry.home().iterdir()] == ["two.b-1"]
    with pytest.raises(UserError, match=r"one: no model of that name.*\n.*two.b-1"):
        registry.remove("one")


def test_a_failed_registering_leaves_the_old_one() -> None:
    one = put("one")

    def fail() -> None:
        with registry.registering("one") as partial:
            (partial / "m.gguf").write_bytes(b"other")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert registry.find("one") == one
    assert one.path.read_bytes() == b"abc"
    assert len(list(registry.home().iterdir())) == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "é"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    assert registry.find(name) is None
    with pytest.raises(UserError, match="cannot be a model's name"), registry.registering(name):
        pass
    with pytest.raises(UserError, match="no model of that name"):
        registry.remove(name)


def test_a_damaged_record_is_named() -> None:
    path = put("one").path.with_name("record.json")
    path.write_text(json.dumps({"name": "one"}), encoding="utf-8")
    with pytest.raises(UserError, match="not the record of a model"):
        registry.find("one")
    assert registry.records() == []


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMSMITH_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert registry.home() == tmp_path / "lmsmith" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert registry.home() == Path.home() / ".local" / "share" / "lmsmith" / "models"
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Application Support" in str(registry.home())
