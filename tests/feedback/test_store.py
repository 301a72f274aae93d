"""The store: trees, judgements, privacy between people, and nothing lost or left behind."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.feedback import database
from lmsmith.feedback.export import export
from lmsmith.feedback.people import People
from lmsmith.feedback.store import NotThere, Store
from lmsmith.feedback.tables import Message, Table
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import data
from real_postgres import Postgres
from stores import rank, row_counts

SOURCE = str(Path(__file__).parents[2] / "src")


class Talk:
    """A conversation with two answers to its second question."""

    def __init__(self, store: Store, person: str, word: str = "tea") -> None:
        self.id = store.begin(person, f"about {word}").id

        def say(parent: int | None, role: str, content: str) -> int:
            return store.add_message(person, self.id, parent, role, content, model="m").id

        self.system = say(None, "system", "be kind")
        self.question = say(self.system, "user", f"do you like {word}?")
        self.answer = say(self.question, "assistant", f"I like {word}.")
        self.next = say(self.answer, "user", "why?")
        self.left = say(self.next, "assistant", f"{word} is warm")
        self.right = say(self.next, "assistant", f"{word} is wet")


def test_a_tree_has_paths_and_siblings(store: Store) -> None:
    ann = store.person("Ann").id
    talk = Talk(store, ann)
    path = store.path(ann, talk.right)
    assert [message.id for message in path] == [
        talk.system, talk.question, talk.answer, talk.next, talk.right,
    ]  # fmt: skip
    tree = store.tree(ann, talk.id)
    assert [m.id for m in tree if m.parent_id == talk.next] == [talk.left, talk.right]
    edited = store.add_message(ann, talk.id, talk.system, "user", "do you like rain?")
    assert len(store.path(ann, edited.id)) == 2
    assert path[-1].created.tzinfo is None or path[-1].created.utcoffset() is not None


def test_what_cannot_follow_is_refused(store: Store) -> None:
    ann = store.person("Ann").id
    talk, other = Talk(store, ann), Talk(store, ann)
    for parent, role in [
        (None, "assistant"), (talk.question, "system"), (talk.answer, "assistant"),
        (talk.answer, "system"), (None, "king"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match="cannot follow"):
            store.add_message(ann, talk.id, parent, role, "x")
    with pytest.raises(NotThere, match="another conversation"):
        store.add_message(ann, talk.id, other.answer, "user", "x")
    with pytest.raises(UserError, match="not an answer of a model"):
        store.rate(ann, talk.question, 1)
    with pytest.raises(UserError, match="not two answers"):
        store.compare(ann, talk.answer, talk.left, "left")
    with pytest.raises(UserError, match="verdict"):
        store.compare(ann, talk.left, talk.right, "up")
    with pytest.raises(UserError, match="value"):
        store.rate(ann, talk.answer, 5)
    with pytest.raises(UserError, match="ranks"):
        rank(store, ann, [{"role": "user", "content": "x"}], ["a", "b"], [1])
    with pytest.raises(UserError, match="role"):
        store.person("Bob", "king")


def test_nobody_reaches_what_is_anothers(store: Store) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob").id
    talk = Talk(store, ann)
    attempts = [
        lambda: store.tree(bob, talk.id),
        lambda: store.path(bob, talk.answer),
        lambda: store.rename(bob, talk.id, "mine"),
        lambda: store.delete(bob, talk.id),
        lambda: store.add_message(bob, talk.id, talk.answer, "user", "x"),
        lambda: store.rate(bob, talk.answer, 1),
        lambda: store.improve(bob, talk.answer, "x"),
        lambda: store.compare(bob, talk.left, talk.right, "left"),
        lambda: store.add_message(bob, store.begin(bob).id, talk.answer, "user", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(NotThere):
            attempt()
    assert [c.title for c in store.conversations(bob)] == [""]
    assert [c.title for c in store.conversations(ann)] == ["about tea"]


def test_conversations_are_found_and_renamed(store: Store) -> None:
    ann = store.person("Ann").id
    tea, rain = Talk(store, ann), Talk(store, ann, "rain_100%")
    assert [c.id for c in store.conversations(ann)] == [rain.id, tea.id]
    store.add_message(ann, tea.id, tea.left, "user", "and Coffee?")
    assert [c.id for c in store.conversations(ann)] == [tea.id, rain.id]
    assert [c.id for c in store.conversations(ann, "coffee")] == [tea.id]
    assert [c.id for c in store.conversations(ann, "100%")] == [rain.id]
    assert store.conversations(ann, "r_i") == []
    store.rename(ann, tea.id, "hot drinks")
    assert [c.id for c in store.conversations(ann, "DRINKS")] == [tea.id]


def test_a_second_judgement_takes_the_firsts_place(store: Store) -> None:
    ann = store.person("Ann").id
    talk = Talk(store, ann)
    for value in (1, -1):
        store.rate(ann, talk.answer, value, ["wrong"], "hm")
        store.improve(ann, talk.answer, f"better {value}")
    for verdict in ("left", "both_bad"):
        store.compare(ann, talk.left, talk.right, verdict)
    counts = row_counts(store)
    assert (counts["ratings"], counts["better_answers"], counts["comparisons"]) == (1, 1, 1)


def everything(store: Store) -> list[bytes]:
    """All rows of all tables."""
    with store.engine.connect() as connection:
        return [
            str(row).encode()
            for table in Table.metadata.sorted_tables
            for row in connection.execute(table.select())
        ]


def test_what_is_deleted_is_gone_from_the_files(store: Store, tmp_path: Path) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob").id
    talk, kept = Talk(store, ann, "absinthe"), Talk(store, bob, "lemonade")
    second = Talk(store, ann, "vermouth")
    for person, each in ((ann, talk), (ann, second), (bob, kept)):
        store.rate(person, each.answer, 1, comment="of absinthe" if each is talk else "")
        store.improve(person, each.answer, "better")
        store.compare(person, each.left, each.right, "tie")
    rank(store, ann, [{"role": "user", "content": "gin?"}], ["a", "b"], [1, 2])
    store.delete(ann, talk.id)
    assert row_counts(store)["comparisons"] == 2

    def on_disk(word: bytes) -> bool:
        if store.engine.dialect.name == "sqlite":
            return any(word in path.read_bytes() for path in tmp_path.glob("feedback.db*"))
        return any(word in row for row in everything(store))

    assert not on_disk(b"absinthe")
    assert on_disk(b"vermouth")
    store.delete_person(ann)
    assert not on_disk(b"vermouth")
    assert not on_disk(b"gin?")
    assert on_disk(b"lemonade")
    counts = row_counts(store)
    assert (counts["people"], counts["ratings"], counts["rankings"]) == (1, 1, 0)
    rows = export(store, tmp_path / "out", with_liked=True)
    assert rows["conversations.jsonl"] == 1


WRITER = """
import sys
from lmsmith.feedback.store import Store
store = Store(sys.argv[1])
person = store.person("Ann").id
talk = store.begin(person).id
for number in range(1000):
    message = store.add_message(person, talk, None, "user", f"message {number}")
    print(number, flush=True)
"""


def test_what_is_acknowledged_survives_a_kill(database: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, database], stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            break
    process.kill()
    rest = process.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest else 20
    store = Store(database)
    person = store.person("Ann").id
    (talk,) = store.conversations(person)
    kept = [message.content for message in store.tree(person, talk.id)]
    assert kept[: acknowledged + 1] == [f"message {n}" for n in range(acknowledged + 1)]
    store.close()


def test_what_postgres_acknowledged_survives_the_end_of_postgres(postgres: Postgres) -> None:
    url = postgres.new_database()
    store = Store(url)
    person = store.person("Ann").id
    talk = store.begin(person).id
    for number in range(5):
        store.add_message(person, talk, None, "user", f"message {number}")
    postgres.kill()
    postgres.start()
    kept = [message.content for message in store.tree(person, talk)]  # by a new connection
    assert kept == [f"message {number}" for number in range(5)]
    store.close()


def test_any_text_is_kept(store: Store) -> None:
    ann = store.person("Ann").id
    talk = store.begin(ann, "nul \x00 title").id
    for said in ("nul \x00 text", "é你🙂", "'; drop table people; --", "%s %(x)s :y \\"):
        message = store.add_message(ann, talk, None, "user", said, settings={"a\x00": "b\x00"})
        (kept,) = [each for each in store.tree(ann, talk) if each.id == message.id]
        assert kept.content.replace("\ufffd", "\x00") == said
        assert [each.id for each in store.conversations(ann, said)] == [talk]


def test_no_error_repeats_what_was_said(store: Store) -> None:
    ann = store.person("Ann").id
    talk = store.begin(ann).id
    with pytest.raises(DatabaseError) as error, store.session.begin() as session:
        session.add(Message(conversation_id=talk, parent_id=9, role="user", content="my secret"))
    assert "INSERT" in str(error.value)
    assert "my secret" not in str(error.value)


def test_many_threads_write_together(store: Store) -> None:
    people = [store.person(f"person {n}").id for n in range(4)]

    def work(person: str) -> None:
        for _ in range(5):
            talk = Talk(store, person)
            store.rate(person, talk.answer, 1)

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert row_counts(store) | {
        "people": 4,
        "conversations": 20,
        "messages": 120,
        "ratings": 20,
    } == (row_counts(store))


def test_migrations_make_the_tables_of_the_code(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []


def test_a_database_of_the_first_version_opens_with_all_that_is_in_it(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text("insert into people values ('p', 'Ann', 'user', '2026-01-01 00:00:00.000000')")
        )
        connection.execute(
            text(
                "insert into conversations values ('c', 'p', 'old talk', "
                "'2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')"
            )
        )
    engine.dispose()
    store = Store(tmp_path / "old.db")
    assert [talk.title for talk in store.conversations(store.person("Ann").id)] == ["old talk"]
    people = People(store)
    assert not people.anybody()
    for token in ("p.", "p", "."):
        assert people.by_token(token) is None
    token = people.add("Ann", "labeler")
    found = people.by_token(token)
    assert found is not None
    assert (found.id, found.role) == ("p", "labeler")
    store.close()


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, but a longer text " * 50)
    with pytest.raises(UserError, match="not a database"):
        Store(tmp_path / "text.db")
    Store(tmp_path / "later.db").close()
    with sqlite3.connect(tmp_path / "later.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    with pytest.raises(UserError, match="later lmsmith"):
        Store(tmp_path / "later.db")
    with pytest.raises(UserError, match="no database") as error:
        Store("nothing://user:secret@host/name")
    assert "secret" not in str(error.value)


def test_sqlite_is_safe(sqlite_store: Store) -> None:
    with sqlite_store.engine.connect() as connection:

        def setting(name: str) -> object:
            return connection.execute(text(f"PRAGMA {name}")).scalar()

        assert setting("journal_mode") == "wal"
        assert setting("synchronous") == 2
        assert setting("foreign_keys") == 1
        assert setting("secure_delete") == 1


def fill(store: Store, count: int) -> None:
    source = random.Random(0)
    for number in range(count):
        person = store.person(f"person {number}").id
        talk = Talk(store, person, f"thing {number}")
        store.rate(person, talk.answer, source.choice([-1, 1]), ["kind"])
        store.rate(person, talk.left, 1)
        store.improve(person, talk.answer, f"I love thing {number}, do you?")
        store.compare(
            person, talk.left, talk.right, ["left", "right", "tie", "both_bad"][number % 4]
        )
        prompt = [{"role": "user", "content": f"say {number}"}]
        rank(store, person, prompt, ["a", "b", "c", "d"], [2, 1, 2, 4])


def test_an_export_is_what_a_run_reads(store: Store, tmp_path: Path) -> None:
    fill(store, 8)
    out = tmp_path / "export"
    counts = export(store, out)
    assert counts["conversations.jsonl"] == 8
    assert counts["rankings.jsonl"] == 24
    conversations = list(read_conversations(out / "conversations.jsonl"))
    assert {conversation.messages[-1]["content"] for conversation in conversations} == {
        f"I love thing {number}, do you?" for number in range(8)
    }
    rankings = list(read_rankings(out / "rankings.jsonl"))
    by_source = {ranking.source for ranking in rankings}
    assert by_source == {"feedback.ranking", "feedback.comparison", "feedback.better"}
    assert {tuple(r.ranks) for r in rankings if r.source == "feedback.comparison"} == {
        (1, 2), (2, 1), (1, 1),
    }  # fmt: skip
    improved = [ranking for ranking in rankings if ranking.source == "feedback.better"]
    assert all(r.responses[0].startswith("I love") and r.ranks == [1, 2] for r in improved)
    assert export(store, out, with_liked=True)["conversations.jsonl"] == 8 + 8
    ratings = [row for _, row in read_jsonl(out / "ratings.jsonl")]
    assert {row["value"] for row in ratings} == {1, -1}
    (tmp_path / "stage").mkdir()
    folder = StageFolder(tmp_path / "stage", 1, MachineConfig(), QuietProgress())
    config = data.DataConfig(
        conversations=(str(out / "conversations.jsonl"),),
        rankings=(str(out / "rankings.jsonl"),),
        splits=data.Splits(1.0, 0, 0, 0, 0, 0),
    )
    metrics = data.run(config, {}, folder)
    assert metrics["conversations.demonstrations"] == 16
    assert metrics["rankings"] == 24


def test_a_persons_rows_stand_on_one_side(store: Store, tmp_path: Path) -> None:
    fill(store, 30)
    counts = export(store, tmp_path / "out", held_out=0.4)
    assert counts["conversations.jsonl"] + counts["held_out/conversations.jsonl"] == 30

    def people(part: str) -> set[object]:
        rows = [*read_jsonl(tmp_path / "out" / part / "rankings.jsonl")]
        rows += read_jsonl(tmp_path / "out" / part / "ratings.jsonl")
        # Rankings that were made elsewhere are nobody's prompts.
        return {row["labeler"] for _, row in rows if row.get("source") != "feedback.ranking"}

    assert people("")
    assert people("held_out")
    assert not people("") & people("held_out")
    assert len(people("") | people("held_out")) == 30
    # A later export without a held-out part leaves none of it behind.
    export(store, tmp_path / "out")
    assert (tmp_path / "out/held_out/rankings.jsonl").read_text() == ""
    with pytest.raises(UserError, match="held_out"):
        export(store, tmp_path / "out", held_out=1.0)
