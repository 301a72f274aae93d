"""Prompts that are deleted while models answer them make no tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lmsmith.core.progress import QuietProgress
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.sample import fill_queue, logged_prompts
from lmsmith.feedback.store import Store


@pytest.mark.parametrize("reused", [False, True])
def test_a_prompt_that_is_deleted_meanwhile_is_dropped(store: Store, reused: bool) -> None:
    ann, bob = store.person("Ann").id, store.person("Bob").id
    kept = store.begin(bob).id
    first = store.add_message(bob, kept, None, "user", "Who is there?").id
    store.add_message(bob, kept, first, "user", "Hello?")
    talk = store.begin(ann).id
    store.add_message(ann, talk, None, "user", "a secret")

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        if prompt[0]["content"] == "a secret":
            store.delete(ann, talk)
            if reused:  # SQLite gives the id again
                store.add_message(bob, store.begin(bob).id, None, "user", "another question")
        return ["one", "two"]

    counts = fill_queue(
        Queue(store),
        logged_prompts(store)[::-1],
        {"ours": write},
        kind="ranking",
        answers=2,
        overlap=1,
        seed=0,
        progress=QuietProgress(),
    )
    assert counts == {"tasks": 2, "known": 0, "dropped": 1}
    queue, prompts = Queue(store), []
    while (held := queue.next(ann)) is not None:
        queue.submit(ann, held[0].id, {"ranks": [1, 2]})
        prompts.append([turn["content"] for turn in held[1].prompt])
    assert sorted(prompts) == [["Who is there?"], ["Who is there?\n\nHello?"]]
