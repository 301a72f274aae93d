"""Prompts of long conversations take what their text takes, not its square."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmsmith.feedback import paths
from lmsmith.feedback.collect import collect
from lmsmith.feedback.export import export
from lmsmith.feedback.sample import logged_prompts
from lmsmith.feedback.store import Store
from lmsmith.feedback.trees import ImportedMessage, Tree, import_trees

UP = {"value": 1, "reasons": [], "comment": ""}


def chain(count: int) -> list[ImportedMessage]:
    """Each message after the one before, and a thumb for every answer."""
    return [
        ImportedMessage(n - 1 if n else None, "user", "tea?")
        if n % 2 == 0
        else ImportedMessage(n - 1, "assistant", "tea.", rating=UP)
        for n in range(count)
    ]


def wide(count: int) -> list[ImportedMessage]:
    """Many answers to one long message."""
    first = ImportedMessage(None, "user", "tea " * 2_000)
    return [first, *[ImportedMessage(0, "assistant", "tea.", rating=UP) for _ in range(count)]]


@pytest.mark.parametrize("messages", [chain(2_000), wide(1_000)])
def test_prompts_of_a_conversation_are_bounded_together(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    messages: list[ImportedMessage],
) -> None:
    monkeypatch.setattr(paths, "MOST_CHARACTERS", 300_000)
    ann = store.person("Ann").id
    short = chain(4)
    import_trees(store, ann, [Tree("long", messages, "long"), Tree("short", short, "short")])
    thumbs = [each for each in collect(store).judgements if each.kind == "thumb"]
    written = sum(len(turn["content"]) for each in thumbs for turn in each.prompt)
    assert 30 < len(thumbs) < 500
    assert written < 300_000
    assert thumbs[-1].prompt == [
        {"role": "user", "content": "tea?"},
        {"role": "assistant", "content": "tea."},
        {"role": "user", "content": "tea?"},
    ]  # that of the short conversation
    assert caplog.text.count("left out") == 1
    assert export(store, tmp_path)["ratings.jsonl"] == len(thumbs)
    asked = logged_prompts(store)
    assert sum(len(turn["content"]) for each in asked for turn in each.messages) < 400_000


def test_a_turn_is_one_object_in_all_prompts(store: Store) -> None:
    import_trees(store, store.person("Ann").id, [Tree("a", chain(6), "a")])
    thumbs = [each for each in collect(store).judgements if each.kind == "thumb"]
    assert [len(each.prompt) for each in thumbs] == [1, 3, 5]
    assert len({id(each.prompt[0]) for each in thumbs}) == 1
