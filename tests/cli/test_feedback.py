"""lmsmith feedback export: for people, as JSON, and when there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmsmith import cli

pytest.importorskip("sqlalchemy")


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lmsmith.feedback.store import Store

    database, out = tmp_path / "feedback.db", tmp_path / "out"
    words = ["feedback", "export", str(out), "--database", str(database)]
    assert cli.main(words) == 2
    assert "no such file" in capsys.readouterr().err
    store = Store(database)
    assert cli.main(words) == 0
    assert "nobody has judged anything yet" in capsys.readouterr().out
    prompt = [{"role": "user", "content": "x"}]
    store.rank(store.person("Ann").id, prompt, ["a", "b", "c"], [1, 2, 2])
    store.close()
    assert cli.main(words) == 0
    assert f"{out / 'rankings.jsonl'}: 1 rows" in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (rows["rankings.jsonl"], rows["conversations.jsonl"]) == (1, 0)
    assert cli.main([*words, "--held-out", "2"]) == 2
    assert "held_out = 2" in capsys.readouterr().err
