"""lmsmith feedback export and import: for people, as JSON, and when there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmsmith import cli, judgements
from lmsmith.cli.parsing import printed
from stores import rank

pytest.importorskip("sqlalchemy")


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lmsmith.feedback.queue import Queue
    from lmsmith.feedback.store import Store

    database, out = tmp_path / "feedback.db", tmp_path / "out"
    words = ["feedback", "export", str(out), "--database", str(database)]
    assert cli.main(words) == 2
    assert "no such file" in capsys.readouterr().err
    store = Store(database)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "nobody has judged anything yet" in said
    assert f"lmsmith feedback sample MODEL --prompts FILE --database {database}" in said
    files = ["conversations.jsonl", "rankings.jsonl", "ratings.jsonl"]
    assert [(path.name, path.read_text()) for path in sorted(out.iterdir())] == [
        (name, "") for name in files
    ]
    Queue(store).add("demonstration", "x?")
    assert cli.main(words) == 2
    assert "1 tasks wait for labelers" in capsys.readouterr().err
    prompt = [{"role": "user", "content": "x"}]
    rank(store, store.person("Ann").id, prompt, ["a", "b", "c"], [1, 2, 2])
    store.close()
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"{out / 'rankings.jsonl'}: 1 rows" in said
    assert f"a recipe reads {out / 'rankings.jsonl'} by data.rankings\n" in said
    assert sorted(path.name for path in out.iterdir()) == files
    assert cli.main([*words, "--held-out", "0.5"]) == 0
    assert sorted(path.name for path in (out / "held_out").iterdir()) == files
    said = capsys.readouterr().out
    assert all(f"{out / 'held_out' / name}: " in said for name in files)
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (rows["rankings.jsonl"], rows["conversations.jsonl"]) == (1, 0)
    assert cli.main([*words, "--held-out", "2"]) == 2
    assert "held_out = 2" in capsys.readouterr().err


def test_ratings_alone_teach_nothing_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsmith.feedback.store import Store

    store = Store(tmp_path / "x.db")
    me = store.person("Ann").id
    talk = store.begin(me).id
    asked = store.add_message(me, talk, None, "user", "tea?").id
    store.rate(me, store.add_message(me, talk, asked, "assistant", "yes").id, 1)
    store.close()
    words = ["feedback", "export", str(tmp_path / "out"), "--database", str(tmp_path / "x.db")]
    assert cli.main(words) == 0
    assert "--with-liked makes demonstrations" in capsys.readouterr().out
    assert cli.main([*words, "--with-liked"]) == 0
    assert "conversations.jsonl by data.conversations\n" in capsys.readouterr().out
    store = Store(tmp_path / "x.db")
    store.rate(me, store.add_message(me, talk, asked, "assistant", "no").id, -1)
    store.rate(me, 2, -1)
    store.close()
    assert cli.main([*words, "--with-liked"]) == 0
    assert "--with-liked" not in capsys.readouterr().out


def test_sampling_says_how_many_different_answers_were_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lmsmith.cli import feedback

    def nothing(models: tuple[str, ...], *, kind: str, answers: int = 4) -> judgements.FeedbackRows:
        return judgements.FeedbackRows("x.db", {"tasks": 0, "known": 0, "dropped": 2}, kind=kind)

    sample = printed(nothing, feedback._show_sample)
    for options, wanted in (({}, 4), ({"answers": 3}, 3), ({"kind": "rating"}, 1)):
        assert sample((), **{"kind": "ranking", **options}) == 0
        assert f"2 prompts left out: not {wanted} different" in capsys.readouterr().out


ROWS = {
    "demonstration": '{"prompt": "a?"}',
    "prompt of messages": '{"prompt": [{"role": "user", "content": "a?"}]}',
    "rating": '{"prompt": "a?", "responses": ["b"]}',
    "ranking to be made": '{"prompt": "a?", "responses": ["b", "c"], "models": ["x", "y"]}',
    "gold rating": '{"prompt": "a?", "responses": ["b"], "gold": {"score": 2}}',
    "gold ranking": '{"prompt": "a?", "responses": ["b", "c"], "gold": {"ranks": [1, 2]}}',
    "ranking": '{"prompt": "a?", "responses": ["b", "c"], "ranks": [1, 2]}',
    "ranking by name": '{"prompt": "a?", "responses": ["b", "c"], "ranks": [1, 1], "labeler": "L"}',
    "conversation": '{"messages": [{"role": "user", "content": "a"},'
    ' {"role": "assistant", "content": "b"}]}',
    "ShareGPT": '{"conversations": [{"from": "human", "value": "a"},'
    ' {"from": "gpt", "value": "b"}]}',
    "Alpaca": '{"instruction": "a", "input": "", "output": "b"}',
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_file_that_is_imported_twice_adds_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, file = str(tmp_path / "x.db"), tmp_path / "x.jsonl"
    file.write_text(ROWS[kind] + "\n")
    words = ["feedback", "import", str(file), "--database", database, "--json"]
    assert cli.main(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["tasks"] + first["rankings"] + first["conversations"] == 1
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\n")
    assert cli.main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["tasks"], again["rankings"], again["conversations"]) == (0, 0, 0)
    assert again["known"] == 1
    assert cli.main(words[:-1]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing new\n1 rows were there already")
    assert "next:" not in said


def test_what_to_do_next_names_the_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, file = str(tmp_path / "my data.db"), tmp_path / "x.jsonl"
    file.write_text("")
    assert cli.main(["feedback", "import", str(file), "--database", database]) == 2
    assert "no rows" in capsys.readouterr().err
    words = ["feedback", "sample", "--kind", "demonstration", "--database", database]
    assert cli.main([*words, "--prompts", str(file)]) == 2
    assert "no prompts" in capsys.readouterr().err
    assert cli.main([*words, "--logged"]) == 2
    assert "nobody has asked anything yet" in capsys.readouterr().err
    file.write_text('{"prompt": "a?"}\n')
    advice = f"lmsmith users add NAME --role labeler --database '{database}'"
    assert cli.main(["feedback", "import", str(file), "--database", database]) == 0
    assert advice in capsys.readouterr().out
    assert cli.main([*words, "--prompts", str(file)]) == 0
    assert advice in capsys.readouterr().out
