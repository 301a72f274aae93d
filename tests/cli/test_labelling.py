"""The whole way: answers are sampled, labelled, measured, and exported to what a run reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith import cli
from lmsmith.core.files import read_jsonl, write_jsonl
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from tiny_models import random_decoder

pytest.importorskip("sqlalchemy")

from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store

RECIPE = """
[data]
conversations = ["{out}/conversations.jsonl"]
rankings = ["{out}/rankings.jsonl"]
[data.splits]
demonstrations = 0.6
comparisons = 0.0
prompts = 0.0
judge = 0.0
test = 0.0
validation = 0.4
[tokenizer]
vocabulary_size = 300
[pretrain]
tokens = 2048
batch_tokens = 256
validations = 1
[pretrain.model]
layers = 1
width = 32
heads = 2
context = 64
[sft]
epochs = 1.0
validations = 1
[rankings]
validation_fraction = 0.3
[reward]
epochs = 1
"""


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def go(*words: str, code: int = 0) -> Any:
        where = [] if words[0] == "run" else ["--database", "feedback.db"]
        assert cli.main([*words, *where, "--json"]) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        return json.loads(captured.out) if code == 0 else captured.err

    return go


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    texts = ["what do you like? I like rain and tea, said the cat."] * 9
    tokenizer = Tokenizer.train(texts, 300)
    found = []
    for seed, name in enumerate(("first", "second")):
        config = ModelConfig(1, 32, 2, 64, tokenizer.vocabulary_size)
        save_model(tmp_path / name, random_decoder(config, seed), tokenizer, {})
        found.append(str(tmp_path / name))
    return found


def label(store: Store, name: str, kind: str) -> None:
    """Do all there is; the shorter answer is the better one."""
    queue, person = Queue(store), store.person(name, "labeler").id
    while (held := queue.next(person, kind)) is not None:
        assignment, task = held
        if kind == "demonstration":
            answer: dict[str, Any] = {"content": f"I like {task.prompt[-1]['content']} too."}
        elif kind == "rating":
            answer = {"score": 3, "flags": ["hallucination"]}
        else:
            lengths = [len(task.responses[place]) for place in assignment.shown]
            answer = {"ranks": [1 + sorted(lengths).index(length) for length in lengths]}
        queue.submit(person, assignment.id, answer)


def test_answers_are_sampled_labelled_exported_and_learned_from(
    call: Any,
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [{"prompt": f"{word} number {n}"} for word in ("tea", "rain") for n in range(12)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    options = ["--prompts", "prompts.jsonl", "--max-tokens", "6", "--overlap", "2"]
    words = ["feedback", "sample", *models, *options, "--count", "20"]
    made = call(*words)
    assert made["tasks"] >= 15
    assert made["tasks"] + made["dropped"] == 20
    again = call(*words)
    assert (again["tasks"], again["known"]) == (0, made["tasks"])
    rated = call("feedback", "sample", models[0], *options, "--kind", "rating", "--count", "3")
    assert rated["tasks"] == 3
    asked = call("feedback", "sample", *options, "--kind", "demonstration")
    assert asked["tasks"] == 24
    store = Store(tmp_path / "feedback.db")
    for name in ("Lee", "Li"):
        for kind in ("demonstration", "rating", "ranking"):
            label(store, name, kind)
    store.close()
    found = call("feedback", "stats")
    assert found["tasks"]["ranking"] == {
        "tasks": made["tasks"], "complete": made["tasks"], "gold": 0,
    }  # fmt: skip
    agreement = found["agreement"]["ranking"]
    assert agreement["pairwise"]["value"] == agreement["tau_b"]["value"] == 1
    assert {each["model"] for each in found["leaderboard"]} == {"first", "second"}
    assert cli.main(["feedback", "stats", "--database", "feedback.db"]) == 0
    shown = capsys.readouterr().out
    assert "ranking, Krippendorff α" in shown
    assert "first" in shown

    rows = call("feedback", "export", "out")["rows"]
    assert rows["rankings.jsonl"] == 2 * made["tasks"]
    assert (rows["conversations.jsonl"], rows["ratings.jsonl"]) == (48, 6)
    ratings = [row for _, row in read_jsonl(tmp_path / "out/ratings.jsonl")]
    assert {(row["scale"], row["score"]) for row in ratings} == {("1-7", 3)}
    (tmp_path / "mine.toml").write_text(RECIPE.format(out="out"))
    run = call("run", "mine.toml")
    assert [each["action"] for each in run["stages"].values()] == ["run"] * 6
    reward = [row for _, row in read_jsonl(tmp_path / "runs/mine/rankings/train.jsonl")]
    assert 0 < len(reward) <= 2 * made["tasks"]
    assert {row["source"] for row in reward} == {"feedback.labelled"}


def test_a_prompt_stands_on_one_side_whoever_judged_it(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "feedback.db")
    queue = Queue(store)
    for number in range(30):
        asker = store.person(f"asker {number % 10}").id
        talk = store.begin(asker).id
        text = f"question {number}"
        message = store.add_message(asker, talk, None, "user", text).id
        for kind in ("ranking", "demonstration"):
            responses = ["a", "b", "c", "d"] if kind == "ranking" else []
            queue.add(kind, text, responses, overlap=2, message=message)
            queue.add(kind, f"other {text}", responses, overlap=2)
    for name in ("Lee", "Li"):
        label(store, name, "ranking")
        label(store, name, "demonstration")
    store.close()
    call("feedback", "export", "out", "--held-out", "0.4")

    def asked(part: str) -> set[str]:
        rankings = [row["prompt"] for _, row in read_jsonl(tmp_path / part / "rankings.jsonl")]
        talks = [row["messages"] for _, row in read_jsonl(tmp_path / part / "conversations.jsonl")]
        return {messages[0]["content"] for messages in [*rankings, *talks]}  # type: ignore[index]

    kept, held_out = asked("out"), asked("out/held_out")
    assert len(kept | held_out) == 60
    assert not kept & held_out
    assert len(held_out) > 8

    def askers(texts: set[str]) -> set[int]:
        return {int(text.split()[1]) % 10 for text in texts if text.startswith("question")}

    assert not askers(kept) & askers(held_out)


def test_mistakes(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file" in call("feedback", "stats", code=2)
    assert "no such file" in call("users", "ls", code=2)
    assert "which prompts" in call("feedback", "sample", code=2)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "x"}])
    words = ["feedback", "sample", "--prompts", "prompts.jsonl"]
    assert "name a model" in call(*words, code=2)
    assert "2 to 9" in call(*words, "--answers", "1", code=2)
    assert "--count" in call(*words, "--count", "0", code=2)
    write_jsonl(tmp_path / "bad.jsonl", [{"text": "x"}])
    assert "bad.jsonl, line 1" in call("feedback", "sample", "--prompts", "bad.jsonl", code=2)
    assert "bad.jsonl, line 1" in call("feedback", "import", "bad.jsonl", code=2)


def test_names_that_look_alike_are_one_person(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call("users", "add", "Jose\u0301 Mar\u00eda", "--role", "labeler")
    for name in ("Jos\u00e9 Mari\u0301a", " José  María ", "\u200fJosé María\u200e"):
        assert "already" in call("users", "add", name, code=2)
    assert "U+0007" in call("users", "add", "Jo\u0007", code=2)
    assert [each["name"] for each in call("users", "ls")["users"]] == ["José María", "owner"]


def test_users(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    added = call("users", "add", "Ann", "--role", "labeler")
    assert added["role"] == "labeler"
    assert added["owner_token"]
    assert "already" in call("users", "add", "Ann", code=2)
    listed = call("users", "ls")["users"]
    assert listed == [
        {"name": "Ann", "role": "labeler", "may_log_in": True},
        {"name": "owner", "role": "admin", "may_log_in": True},
    ]
    assert "an admin" in call("users", "role", "owner", "user", code=2)
    assert "rows that name nobody" in call("users", "add", "import", code=2)
    for name in ("Import", "OWNER", "Ｏwner"):
        assert "of lmsmith's own" in call("users", "add", name, code=2)
    assert call("users", "role", "Ann", "admin") == {"name": "Ann", "role": "admin"}
    assert call("users", "ls")["users"][0]["role"] == "admin"
    assert "no user" in call("users", "role", "Bo", "admin", code=2)
    renewed = call("users", "token", "Ann")
    assert renewed["token"] != added["token"]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("feedback.db*"))
    for token in (added["token"], renewed["token"]):
        assert token.partition(".")[2].encode() not in on_disk
    assert call("users", "rm", "Ann") == {"deleted": "Ann", "versions": []}
    assert "lmsmith users ls --database feedback.db" in call("users", "rm", "Ann", code=2)
    assert call("users", "rm", "owner") == {"deleted": "owner", "versions": []}
    assert call("users", "ls")["users"] == []
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "lmsmith"))
    assert cli.main(["users", "add", "Bo"]) == 0  # in the server's own database
    assert (tmp_path / "lmsmith/conversations.db").is_file()
    assert cli.main(["users", "ls"]) == 0
