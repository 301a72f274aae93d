"""lmsmith models compare: versions side by side, from their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith import cli, improvement
from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Gate, Learnt, Verdict, Version
from lmsmith.core.errors import UserError
from lmsmith.feedback.store import Store


def put(number: int, verdict: Verdict, people: tuple[str, ...] = (), **figures: float) -> None:
    folder = versions.folder_of("ours") / versions.NEXT
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text(str(number))
    gates: tuple[Gate, ...] = ()
    if number > 1:
        gates = (
            Gate("win_rate", "passed", 0.6 + number / 100, 0.55, 0.7, 0.5, "by the judge"),
            Gate("tasks", "not shown", reason="gates.tasks names none"),
        )
    made = Version(
        "ours",
        number,
        "model",
        versions.hash_model(folder / "model"),
        "round" if number > 1 else "runs/quickstart",
        "2026-11-29T12:00:00+00:00",
        (number - 1,) if number > 1 else (),
        Learnt("ab" * 32, {"reward/train": 1000 * number, "reward/thumbs": 0}, people),
        verdict,
        gates,
        {f"gates.{name}": value for name, value in figures.items()},
        against=1 if number == 3 else None,
    )
    versions.write_version(folder, made)
    versions.put_in_place(made)
    if number == 1:
        versions.found_lineage(made, "me")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three versions, the third on trial; one vote on it, one between the first two."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    store = Store(tmp_path / "chat.db")
    ann, gone = store.person("Ann").id, store.person("Bob").id
    put(1, "first")
    put(2, "refused", (ann, gone), win_rate=0.62, win_rate_low=0.55, reward_accuracy=0.7)
    accuracy = {"reward_accuracy": 0.71, "reward_accuracy_low": 0.6, "reward_accuracy_high": 0.8}
    put(3, "passed", (ann,), **accuracy)
    versions.set_trial("ours", 3)
    for better, worse in (("ours@3", "ours@1"), ("ours@2", "ours@1")):
        talk = store.begin(ann).id
        asked = store.add_message(ann, talk, None, "user", f"{better}?").id
        left, right = (
            store.add_message(ann, talk, asked, "assistant", word, model=word).id
            for word in (worse, better)
        )
        store.compare(ann, left, right, "right")
    store.delete_person(gone)
    store.close()
    return str(tmp_path / "chat.db")


def compared(*words: str, database: str = "") -> dict[str, Any]:
    return improvement.compare_versions(words, database=database).record


def words_of(record: dict[str, Any]) -> list[str]:
    return [each["word"] for each in record["versions"]]


def test_all_versions_of_a_name(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "compare", "ours", "--database", database, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert words_of(found) == ["ours@1", "ours@2", "ours@3"]
    marks = [(each["is_promoted"], each["is_on_trial"]) for each in found["versions"]]
    assert marks == [(True, False), (False, False), (False, True)]
    assert [each["deleted"] for each in found["versions"]] == [0, 1, 0]
    assert [each["compared_with"] for each in found["versions"]] == ["", "ours@1", "ours@1"]
    assert found["versions"][2]["gates"][0]["value"] == pytest.approx(0.63)
    assert found["versions"][2]["learnt"]["counts"]["reward/train"] == 3000
    votes = [(each["candidate"], each["current"], each["on_trial"]) for each in found["votes"]]
    assert votes == [("ours@3", "ours@1", True), ("ours@2", "ours@1", False)]
    assert [(each["votes"], each["share"]["value"]) for each in found["votes"]] == [(1, 1.0)] * 2
    assert found["measure"] == "lmsmith compare ours@3 ours@2 ours@1"


def test_they_stand_side_by_side(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "compare", "ours", "--database", database]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["state"] == ["promoted", "on", "trial"]
    assert rows["verdict"] == ["first", "refused", "passed"]
    assert rows["reward/train"] == ["1,000", "2,000", "3,000"]
    assert rows["of them deleted since"] == ["1"]
    win_rates = "0.62 (0.55 to 0.7) passed 0.63 (0.55 to 0.7) passed"
    assert " ".join(rows["win_rate"]) == win_rates
    assert rows["tasks"] == ["not", "shown", "not", "shown"]
    assert " ".join(rows["reward_accuracy"]) == "0.7 0.71 (0.6 to 0.8)"
    assert "reward/thumbs" not in rows
    text = "\n".join(lines)
    assert "ours@3 and ours@1: 1 votes of 1 people: 100.0% for ours@3" in text
    assert "lmsmith compare ours@3 ours@2 ours@1 --tasks" in text


def test_versions_that_are_named(database: str) -> None:
    assert words_of(compared("ours@3", "ours@2", "ours@3")) == ["ours@3", "ours@2"]
    assert words_of(compared("ours", "ours@2")) == ["ours@1", "ours@2"]  # NAME is the promoted one
    assert words_of(compared("ours@3")) == ["ours@1", "ours@3"]  # which its gates compare it with
    assert words_of(compared("ours@1")) == ["ours@1"]
    assert compared("ours@3", "ours@2", database=database)["votes"] == []
    assert compared("ours")["votes"] == []  # there is no database of the server's


def test_what_is_not_there_is_said(database: str) -> None:
    with pytest.raises(UserError, match="no versions to compare"):
        compared()
    with pytest.raises(UserError, match=r"theirs has no versions\n.*these have: ours"):
        compared("ours", "theirs@2")
    with pytest.raises(UserError, match="ours@9: no such version"):
        compared("ours@9")
    with pytest.raises(UserError, match="runs/quickstart has no versions"):
        compared("runs/quickstart")
