"""The database's files: read by their owner alone, and nothing is acknowledged that is lost."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from lmsmith.core.errors import UserError
from lmsmith.feedback.export import export
from lmsmith.feedback.store import Store, open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(path)
    yield made
    made.close()


def modes(folder: Path) -> dict[str, int]:
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_reads_the_database(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(path)
        store.person("Ann")
        found = modes(path.parent)
        assert found == dict.fromkeys(("feedback.db", "feedback.db-wal", "feedback.db-shm"), 0o600)
        store.close()
    finally:
        os.umask(before)


def test_files_that_others_could_read_are_mended(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Store(path)
    first.person("Ann")
    for each in path.parent.iterdir():
        each.chmod(0o664)
    second = Store(path)  # beside the first, as a command beside a server
    assert set(modes(path.parent).values()) == {0o600}
    assert len(caplog.records) == 3
    assert f"{path}: others on this machine could read it" in caplog.text
    second.close()
    first.close()


def test_only_the_owner_reads_exports(store: Store, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/ratings.jsonl").touch(0o666)  # of an earlier version
        export(store, tmp_path / "out", held_out=0.5)
        files = [each for each in (tmp_path / "out").rglob("*") if each.is_file()]
        assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
        export(store, tmp_path / "new", held_out=0.5)
        for folder in (tmp_path / "new", tmp_path / "new/held_out"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(files) == 6
    finally:
        os.umask(before)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = Store(path.with_name("other.db"))
    other.close()
    path.with_name("other.db").replace(path)


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def remove_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


LOSSES = [remove, replace, replace_by_a_copy, move_away, move_folder]


@pytest.mark.parametrize("lose", LOSSES)
def test_nothing_is_acknowledged_in_a_lost_file(tmp_path: Path, lose: object) -> None:
    path = tmp_path / "folder/feedback.db"
    store = Store(path)
    person = store.person("Ann").id
    talk = store.begin(person).id
    lose(path)  # type: ignore[operator]
    for _ in range(3):
        with pytest.raises(OperationalError, match=r"removed or replaced|unable to open"):
            store.add_message(person, talk, None, "user", "tea?")
    store.close()


def test_a_log_that_is_lost_is_noticed_and_begun_again(path: Path, store: Store) -> None:
    person = store.person("Ann").id
    first = store.begin(person).id
    remove_log(path)
    with pytest.raises(OperationalError, match="removed or replaced"):
        store.begin(person)
    second = store.begin(person).id  # what was in the lost one is in the database now
    with closing(sqlite3.connect(path)) as other:
        assert {row[0] for row in other.execute("select id from conversations")} == {first, second}


@pytest.mark.parametrize("lose", [*LOSSES, remove_log])
def test_a_file_that_is_lost_within_a_transaction_is_noticed(tmp_path: Path, lose: object) -> None:
    path = tmp_path / "folder/feedback.db"
    store = Store(path)
    store.person("Ann")

    def rename() -> None:
        with store.session.begin() as session:
            session.execute(text("update people set name = 'Bob'"))
            lose(path)  # type: ignore[operator]

    with pytest.raises(OperationalError, match="removed or replaced"):
        rename()
    store.close()


def test_a_file_that_is_back_is_used_again(path: Path, store: Store) -> None:
    person = store.person("Ann").id
    path.rename(path.with_name("moved"))
    with pytest.raises(OperationalError):
        store.begin(person)
    path.with_name("moved").rename(path)
    assert store.begin(person).id in {each.id for each in store.conversations(person)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8192, b"SQLite format 3\0" + bytes(8176)])
def test_another_file_in_its_place_costs_nothing_of_the_log(path: Path, content: bytes) -> None:
    with closing(Store(path)) as store:
        person = store.person("Ann").id
        talk = store.begin(person).id  # in the log alone
        path.rename(path.with_name("moved"))
        path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(OperationalError, match="removed or replaced"):
                store.begin(person)
        path.with_name("moved").replace(path)
        assert store.begin(person).id in {each.id for each in store.conversations(person)}
        assert talk in {each.id for each in store.conversations(person)}


def test_no_empty_database_takes_the_place_of_a_removed_one(path: Path, store: Store) -> None:
    path.unlink()
    with pytest.raises(OperationalError):
        store.conversations("x")
    assert not path.exists()


def test_a_command_on_a_database_that_fails_says_so(path: Path, store: Store) -> None:
    store.person("Ann")

    def command() -> None:
        with open_store(str(path)) as opened, opened.session.begin() as session:
            session.execute(text("pragma query_only = on"))
            session.execute(text("delete from people"))

    with pytest.raises(UserError, match="the database failed"):
        command()
