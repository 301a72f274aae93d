"""C4's rules: lines and documents for each."""

from __future__ import annotations

from typing import Any

import pytest

from lmsmith.corpus.build.c4 import C4Config, apply_c4, c4_line, c4_text
from lmsmith.corpus.build.document import Document


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("This line has enough words.", ""),
        ("And this one asks something, too?", ""),
        ("Home | Products | Contact us now", "terminal mark"),
        ("Only four words here.", "line words"),
        ("Please enable JavaScript in your browser.", "javascript"),
        ("By staying you accept our Privacy Policy.", "policies"),
        ("这是一个完整的句子。", ""),
        ("你好。", "line words"),
    ],
)
def test_c4_removes_lines(line: str, rule: str) -> None:
    assert c4_line(line, C4Config()) == rule


def test_c4_removes_documents_and_marks_of_citations() -> None:
    three = "One sentence of five words.[1] Another of five words.\nMenu\nThe third one has six."
    text, gone, rule = c4_text(three, C4Config())
    assert (text, rule) == (three.replace("[1]", "").replace("Menu\n", ""), "")
    assert gone == {"terminal mark": 4}
    for bad, why in [("Lorem Ipsum dolor. ", "lorem ipsum"), ("x = {} ", "curly bracket")]:
        assert c4_text(bad + three, C4Config())[2] == why
    assert c4_text(three.partition("\n")[0], C4Config())[2] == "sentences"
    found: list[Any] = list(
        apply_c4([Document("a", "s", three), Document("b", "s", "x")], ("books",), C4Config())
    )
    assert [type(each).__name__ for each in found] == ["Count", "Document", "Count", "Removed"]
