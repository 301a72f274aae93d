"""A database of the first lmsmith, with all kinds of rows in it, opens without a loss.

`first_version.sql` was written by the code of that time (sqlite3's iterdump) and stays as it is.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Connection, DateTime, MetaData, Table, create_engine, text

from lmsmith.feedback import database as opening
from lmsmith.feedback.export import export
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import utc

FIRST = Path(__file__).with_name("first_version.sql")
TABLES = (
    "people", "conversations", "messages", "ratings", "better_answers", "comparisons", "rankings",
)  # fmt: skip


def write_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text(encoding="utf-8"))
    connection.close()


def rows_of(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Every row of a table, times as they are in UTC."""
    table = Table(name, MetaData(), autoload_with=connection)
    found = connection.execute(table.select().order_by(*table.primary_key))
    return [
        {
            column: utc(value) if isinstance(table.c[column].type, DateTime) else value
            for column, value in row._mapping.items()
        }
        for row in found
    ]


def all_rows(url: str) -> dict[str, list[dict[str, Any]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {name: rows_of(connection, name) for name in TABLES}
    engine.dispose()
    return found


def write_first(url: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The first tables in another database, with these rows."""
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(opening.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for name in TABLES:
            table = Table(name, MetaData(), autoload_with=connection)
            assert any(isinstance(c.type, JSON) for c in table.c) == (
                name in ("messages", "ratings", "rankings")
            )
            connection.execute(table.insert(), rows[name])
            if table.c.id.type.python_type is int:
                # The rows brought their numbers: the next comes after them, as it did then.
                connection.execute(
                    text(f"select setval('{name}_id_seq', (select max(id) from {name}))")
                )
    engine.dispose()


@pytest.fixture
def old(database: str, tmp_path: Path) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """A database of the first version, and what is in it."""
    write_sqlite(tmp_path / "first.db")
    first = f"sqlite:///{tmp_path / 'first.db'}"
    rows = all_rows(first)
    if "://" not in database:
        return first, rows
    url = opening._with_driver(database)
    write_first(url, rows)
    return url, rows


def test_no_row_and_no_word_is_lost(old: tuple[str, dict[str, list[dict[str, Any]]]]) -> None:
    url, before = old
    assert {name: len(before[name]) for name in TABLES} == dict(
        zip(TABLES, (2, 2, 8, 2, 1, 1, 1), strict=True)
    )
    Store(url).close()
    after = all_rows(url)
    for name in TABLES:
        kept = [{key: row[key] for key in before[name][0]} for row in after[name]]
        assert kept == before[name], name
    Store(url).close()  # and once more
    assert all_rows(url) == after


def test_it_is_read_searched_continued_and_exported(
    old: tuple[str, dict[str, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    store = Store(old[0])
    me, bob = store.person("owner").id, store.person("Bob").id
    (talk,) = store.conversations(me)
    assert talk.title == "雨和茶 🙂"
    assert [each.id for each in store.conversations(me, "茶是暖")] == [talk.id]
    tree = store.tree(me, talk.id)
    assert [each.parent_id for each in tree] == [None, 1, 2, 2, 2, 3, 6]
    assert tree[2].settings == {"temperature": 0.7, "seed": 5}
    assert tree[6].finish == "stopped"
    judged = store.judgements(me, talk.id)
    assert judged[3]["rating"]["reasons"] == ["helpful", "kind"]
    assert judged[4]["better"].startswith("Yes, both")
    said = store.add_message(me, talk.id, 7, "user", "and now?")
    assert [each.id for each in store.path(me, said.id)] == [1, 2, 3, 6, 7, said.id]
    with pytest.raises(NotThere):
        store.tree(bob, talk.id)
    export(store, tmp_path / "out", with_liked=True)
    lines = (tmp_path / "out/conversations.jsonl").read_text(encoding="utf-8").splitlines()
    ends = {json.loads(line)["messages"][-1]["content"] for line in lines}
    assert ends == {"I like **rain** and tea 🙂", "Yes, both: tea is warm, and rain smells good."}
    rankings = (tmp_path / "out/rankings.jsonl").read_text(encoding="utf-8")
    assert '"ranks":[1,2,2]' in rankings.replace(" ", "")
    store.close()


def test_everybody_compares_until_they_opt_out(
    old: tuple[str, dict[str, list[dict[str, Any]]]],
) -> None:
    store = Store(old[0])
    me, bob = store.person("owner").id, store.person("Bob").id
    assert (store.compares(me), store.compares(bob)) == (True, True)
    store.set_compares(bob, False)
    assert (store.compares(me), store.compares(bob)) == (True, False)
    assert store.compares(store.person("New").id)
    store.close()
