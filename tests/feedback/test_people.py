"""One person has one name, however it is written; names of earlier databases are still found."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.errors import UserError

pytest.importorskip("sqlalchemy")

from lmsmith.feedback.imports import import_file
from lmsmith.feedback.people import People, person_name
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Person
from stores import row_counts

SPELLINGS = [
    ("José Ñandú", unicodedata.normalize("NFD", "José Ñandú")),
    ("Ann Lee", " Ann  Lee\t"),
    ("Ann Lee", "Ann\u00a0Lee\u3000"),
    ("Ann", "\u200eAnn\u200f"),
    ("Ann", "\u202aAnn\u202c\u2066\u2069"),
    ("Ann", "A\u200bn\u2060n\ufeff"),
    ("Ann", "An\u00adn\u200d\ufe0f\u034f"),
    ("Ann Lee 7", "Ａｎｎ　Ｌｅｅ ７"),
    ("カナ", "ｶﾅ"),
    ("王小明", "王\u200b小明 "),
    ("각", unicodedata.normalize("NFD", "각")),
    ("Ann", "\u3164Ann\u2800"),
]


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_one_person_in_two_spellings(tmp_path: Path, name: str, spelling: str) -> None:
    store = Store(tmp_path / "x.db")
    people = People(store)
    people.add(spelling, "labeler")
    with pytest.raises(UserError, match="already"):
        people.add(name, "labeler")
    assert [each.name for each in people.all()] == [name]
    people.change(spelling, "admin")
    assert people.all()[0].role == "admin"
    assert people.by_token(people.renew(name)) is not None
    people.remove(spelling)
    assert people.all() == []
    store.close()


@pytest.mark.parametrize(
    "name", ["", " ", "\u200b", "\u3164", "A\x07", "A\x00", "A\x9b", "x" * 201]
)
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "x.db")
    with pytest.raises(UserError, match=r"name|character"):
        People(store).add(name, "labeler")
    with pytest.raises(UserError, match=r"name|character"):
        store.person(name)
    assert row_counts(store)["people"] == 0
    store.close()


@given(st.text(max_size=30))
def test_the_form_of_a_name_is_final(name: str) -> None:
    try:
        found = person_name(name)
    except UserError:
        return
    assert person_name(found) == found
    assert person_name(f" {found}\u200e") == found


def test_labelers_of_a_file_are_one_person_and_known_twice(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    row = '{"prompt": "a?", "responses": ["b", "c"], "ranks": [1, 2], "labeler": "%s"}\n'
    file = tmp_path / "rankings.jsonl"
    for spelling in ("José", unicodedata.normalize("NFD", "José"), "\u200eJosé ", "Ｊｏｓé"):
        file.write_text(row % spelling, encoding="utf-8")
        counts = import_file(store, file, person="import")
        assert counts["rankings"] + counts["known"] == 1
    assert [each.name for each in People(store).all()] == ["José"]
    assert row_counts(store)["rankings"] == 1
    file.write_text(row % "A\\u0007", encoding="utf-8")
    with pytest.raises(UserError, match=r"rankings\.jsonl, line 1: .*U\+0007"):
        import_file(store, file, person="import")
    with pytest.raises(UserError, match=r"U\+0007"):
        import_file(store, file, person="B\x07")
    store.close()


def test_names_of_earlier_databases_are_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    decomposed = unicodedata.normalize("NFD", "José")
    with store.session.begin() as session:
        for name in (decomposed, "José", "Bob ", "Al\x07", "Ｃａｔ"):
            session.add(Person(name=name))
    people = People(store)
    ids = {each.name: each.id for each in people.all()}
    for typed, stored in [
        ("José", "José"), (decomposed, decomposed), ("Bob", "Bob "), ("Al\x07", "Al\x07"),
        ("Cat", "Ｃａｔ"), ("Ｃａｔ", "Ｃａｔ"),
    ]:  # fmt: skip
        found = people.by_token(people.renew(typed))
        assert found is not None
        assert found.id == ids[stored] == store.person(typed).id
    people.change("Al\x07", "labeler")
    for name in list(ids):
        people.remove(name)
    assert people.all() == []
    store.close()
