"""Names of models: kept whole or not at all, listed, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmsmith.catalogue import registry
from lmsmith.catalogue.registry import Record
from lmsmith.core.errors import UserError
from lmsmith.core.paths import models_folder


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
    assert one.as_dict()["path"] == str(models_folder() / "one" / "m.gguf")
    assert registry.remove("one") == one
    assert registry.records() == [two]
    assert [path.name for path in models_folder().iterdir()] == ["two.b-1"]
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
    assert len(list(models_folder().iterdir())) == 1


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


@pytest.mark.parametrize("name", ["tasks", "models", "cache", "conversations.db"])
def test_a_model_may_have_any_name_without_harm_to_other_data(home: Path, name: str) -> None:
    (home / "tasks").mkdir(parents=True)
    (home / "tasks" / "mine.toml").write_text("[mine]", encoding="utf-8")
    (home / "conversations.db").write_bytes(b"judgements")
    one = put("one")
    assert registry.remove(put(name).name).path.parts[-2] == name
    assert (home / "tasks" / "mine.toml").read_text(encoding="utf-8") == "[mine]"
    assert (home / "conversations.db").read_bytes() == b"judgements"
    assert registry.records() == [one]


def test_models_of_earlier_versions_are_found_replaced_and_removed(home: Path) -> None:
    for name in ("old", "replaced"):
        put(name)
        (models_folder() / name).rename(home / name)
    assert [each.name for each in registry.records()] == ["old", "replaced"]
    assert registry.find("old").path == home / "old" / "m.gguf"  # type: ignore[union-attr]
    assert put("replaced").path == models_folder() / "replaced" / "m.gguf"
    registry.remove("old")
    assert [each.name for each in registry.records()] == ["replaced"]
