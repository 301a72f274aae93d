"""Backup and restore of the database, while others write; PostgreSQL's own commands."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from lmsmith import cli, judgements
from lmsmith.core.errors import UserError
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from real_postgres import Postgres, _program


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "chat.db")
    yield made
    made.close()


def say(store: Store, person: str, text: str) -> str:
    talk = store.begin(person).id
    store.add_message(person, talk, None, "user", text)
    return talk


def texts(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as found:
        return [row[0] for row in found.execute("SELECT content FROM messages ORDER BY id")]


def test_a_backup_is_one_moment_of_a_database_that_is_written(tmp_path: Path, store: Store) -> None:
    """Messages come in order: a backup holds the first of them, without a gap, and at least those
    that were acknowledged before it began."""
    ann, written, stop = store.person("Ann").id, [], threading.Event()

    def write() -> None:
        talk = store.begin(ann).id
        last = None
        while not stop.is_set():
            last = store.add_message(ann, talk, last, "user", f"{len(written)} " + "x" * 2000).id
            written.append(last)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 20:
            pass
        for number in range(5):
            least = len(written)
            found = judgements.backup_feedback(
                tmp_path / f"{number}.db", database=str(tmp_path / "chat.db")
            )
            numbers = [int(text.split()[0]) for text in texts(found.file)]
            assert numbers == list(range(len(numbers)))
            assert least <= len(numbers) == found.rows["messages"]
            assert stat.S_IMODE(found.file.stat().st_mode) == 0o600
        assert len(written) > least
    finally:
        stop.set()
        writer.join()
    assert not list(tmp_path.glob("[0-9].db-*"))  # one file, which needs no other


def test_a_restore_brings_it_back_under_a_running_store(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, saved = store.person("Ann").id, str(tmp_path / "saved.db")
    talk = say(store, ann, "before")
    assert cli.main(["feedback", "backup", saved, "--database", str(tmp_path / "chat.db")]) == 0
    advice = capsys.readouterr().out.splitlines()[-1]
    token = People(store).add("Bob", "user")
    say(store, ann, "after")
    assert cli.main(advice.partition("lmsmith ")[2].split()) == 0
    assert [each.id for each in store.conversations(ann)] == [talk]
    assert People(store).by_token(token) is None
    say(store, ann, "and on")  # the store that was open writes on, into the same file
    assert texts(tmp_path / "chat.db") == ["before", "and on"]
    (before,) = tmp_path.glob("chat.db.before-restore-*")
    assert texts(before) == ["before", "after"]
    assert str(before) in capsys.readouterr().out


def test_a_backup_of_an_earlier_version_gets_the_present_tables(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as made:
        made.executescript((Path(__file__).parent / "first_version.sql").read_text())
    before = old.read_bytes()
    where = tmp_path / "new" / "chat.db"
    found = judgements.restore_feedback(old, database=str(where))
    assert old.read_bytes() == before
    assert found.before is None
    with closing(Store(where)) as store:
        assert len(People(store).all()) == found.rows["people"]


@pytest.mark.parametrize("kind", ["text", "another program's", "damaged", "later", "missing"])
def test_what_is_no_backup_changes_nothing(tmp_path: Path, store: Store, kind: str) -> None:
    say(store, store.person("Ann").id, "kept " * 2000)
    where, given = str(tmp_path / "chat.db"), tmp_path / "given.db"
    if kind in ("damaged", "later"):
        judgements.backup_feedback(given, database=where)
    if kind == "text":
        given.write_text("no database " * 500)
    elif kind == "damaged":
        data = bytearray(given.read_bytes())
        data[4096 * 2 : 4096 * 3] = b"\xff" * 4096
        given.write_bytes(data)
    elif kind != "missing":
        with closing(sqlite3.connect(given)) as made, made:
            later = "UPDATE alembic_version SET version_num = 'later'"
            made.execute(later if kind == "later" else "CREATE TABLE x (y)")
    with pytest.raises(UserError, match=re.escape(str(given))) as error:
        judgements.restore_feedback(given, database=where)
    assert error.value.fix
    assert texts(Path(where)) == ["kept " * 2000]
    assert not list(tmp_path.glob("*before*"))
    assert not list(tmp_path.glob(".restore*"))


def test_a_backup_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["feedback", "backup", str(tmp_path / "b.db"), "--database", str(tmp_path / "chat.db")]
    assert cli.main(words) == 2
    assert "chat.db: no such file" in capsys.readouterr().err
    assert not (tmp_path / "chat.db").exists()
    Store(tmp_path / "chat.db").close()
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["people"] == 0
    before = (tmp_path / "b.db").read_bytes()
    assert cli.main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "b.db").read_bytes() == before


def test_postgresqls_own_commands_are_told_and_work(tmp_path: Path, postgres: Postgres) -> None:
    if _program("pg_dump") is None:
        pytest.skip("pg_dump is not here: apt-get install postgresql-client")
    url, file = postgres.new_database(), tmp_path / "saved.dump"
    with closing(Store(url)) as store:
        ann = store.person("Ann").id
        say(store, ann, "before")
        for work in (judgements.backup_feedback, judgements.restore_feedback):
            with pytest.raises(UserError) as error:
                work(file, database=url)
            command = re.fullmatch(r"run: (.*) \(the password.*", error.value.fix)
            assert command is not None
            program, _, rest = command[1].partition(" ")
            if work is judgements.restore_feedback:
                say(store, ann, "after")
            done = subprocess.run(
                f"{_program(program)} {rest}", shell=True, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        assert len(store.conversations(ann)) == 1


def test_no_password_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        judgements.backup_feedback(
            tmp_path / "x", database="postgresql://ann:secret@db.example/chat"
        )
    assert "secret" not in str(error.value)
    assert "postgresql://ann@db.example/chat" in str(error.value)
