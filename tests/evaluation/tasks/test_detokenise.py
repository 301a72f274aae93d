"""De-tokenised corpora read as people write, and give their originals back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.evaluation.tasks.detokenise import (
    detokenise_moses,
    detokenise_penn,
    detokenise_wikitext,
    tokenise_moses,
    tokenise_penn,
    tokenise_wikitext,
)


@pytest.mark.parametrize(
    ("original", "written"),
    [
        (
            ' He had a guest @-@ starring role , as " Craig " , in 1 @,@ 000 shows . ',
            'He had a guest-starring role, as "Craig", in 1,000 shows.',
        ),
        (" = = Career = = ", "== Career =="),
        (
            " The <unk> 's reach ( 10 @.@ 4 miles ) is 5 % . ",
            "The <unk>'s reach (10.4 miles) is 5%.",
        ),
        (" Chang 'an and Li <unk> ; ", "Chang 'an and Li <unk>;"),
    ],
)
def test_wikitext_is_written_as_people_write_and_back(original: str, written: str) -> None:
    assert detokenise_wikitext(original) == written
    assert tokenise_wikitext(written) == original


def test_penn_is_written_as_people_write_and_back() -> None:
    original = " it did n't cost $ N or N cents\\/share to the firm 's owners "
    written = "it didn't cost $N or N cents/share to the firm's owners"
    assert detokenise_penn(original) == written
    assert tokenise_penn(written) == original


@pytest.mark.parametrize(
    ("original", "written"),
    [
        (
            "He said : \" It 's not 1,000 ( or 5 % ) , is it ? \" We don 't know .",
            "He said: \"It's not 1,000 (or 5%), is it?\" We don't know.",
        ),
        ("It costs $ 3.5 in the U.S. , Mr. Brown said ...", None),
        ("The bio-identical hormone ; Winfrey 's press .", None),
        ("a 17th-century house in Clapham , south-west London", None),
    ],
)
def test_one_billion_words_are_written_as_people_write_and_back(
    original: str, written: str | None
) -> None:
    found = detokenise_moses(original)
    assert tokenise_moses(found) == original
    assert found != original
    assert " ," not in found
    assert written in (None, found)


def test_a_line_that_would_not_come_back_is_left_as_it_is() -> None:
    line = " it was published at Musicnotes.com "
    assert tokenise_wikitext(line.strip()) != line
    assert detokenise_wikitext(f"{line}\n a , b ") == f"{line}\na, b"


@pytest.mark.parametrize(
    ("name", "undo", "again", "least"),
    [
        ("lm/wikitext2.test.txt", detokenise_wikitext, tokenise_wikitext, 0.94),
        ("lm/ptb.test.txt", detokenise_penn, tokenise_penn, 1.0),
    ],
)
def test_real_corpora_come_back(
    public_data: Callable[[str], Path],
    name: str,
    undo: Callable[[str], str],
    again: Callable[[str], str],
    least: float,
) -> None:
    text = public_data(name).read_text("utf-8")
    pairs = list(zip(text.split("\n"), undo(text).split("\n"), strict=True))
    lines = [(original, written) for original, written in pairs if original.strip()]
    changed = [(original, written) for original, written in lines if original != written]
    assert len(changed) >= least * len(lines)
    assert all(again(written) == original for original, written in changed)
