"""Tables in files: quotation marks, byte order marks, zip files, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.corpus.labelled.tables import as_finite, read_table


def rows_of(path: Path, content: str, **options: object) -> list[dict[str, object]]:
    path.write_text(content, encoding="utf-8", newline="")
    return [dict(row) for _, row in read_table(path, **options)]  # type: ignore[arg-type]


def test_quotation_marks_of_tab_separated_files_are_text(tmp_path: Path) -> None:
    """As in MRPC, where reading them as quotes joins hundreds of rows."""
    text = 'label\ta\tb\r\n1\t"Yes, he said\tsure\r\n0\tno "quotes"\t"\r\n'
    found = rows_of(tmp_path / "x.txt", text)
    assert found == [
        {"label": "1", "a": '"Yes, he said', "b": "sure"},
        {"label": "0", "a": 'no "quotes"', "b": '"'},
    ]


def test_those_of_comma_separated_files_are_quotes(tmp_path: Path) -> None:
    text = '\ufefftext,label\n"one, ""two""\nthree",yes\n\nfour,no\n'
    found = rows_of(tmp_path / "x.csv", text)
    assert found == [
        {"text": 'one, "two"\nthree', "label": "yes"},
        {"text": "four", "label": "no"},
    ]


def test_named_columns_and_more_fields_than_names(tmp_path: Path) -> None:
    found = rows_of(tmp_path / "x.tsv", "a\t1\textra\nb\t0\n", columns=("text", "label"))
    assert found == [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]


def test_a_member_of_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.tsv", "\ufeffa\tb\n1\t2\n")
    assert [dict(row) for _, row in read_table(tmp_path / "a.zip/in/x.tsv")] == [
        {"a": "1", "b": "2"}
    ]
    with pytest.raises(UserError, match=r"has no file in/y\.tsv") as caught:
        list(read_table(tmp_path / "a.zip/in/y.tsv"))
    assert "in/x.tsv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\tlabel\nonly\n", "line 2: 1 field, and the columns are text, label"),
        ("text\ttext\na\tb\n", "names the column 'text' twice"),
        ("text\tlabel\n", "no rows"),
        ("", "no rows"),
        ("text\tlabel\na\tb\tc\n", "line 2: 3 fields, and the columns are text, label"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path / "x.tsv", content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\nfine,pos\nI liked it, really,pos\n", "line 3: 3 fields, and the columns"),
        ('text,label\n"He said no,0\nfine,1\n', "line 3: unexpected end of data"),
        ('text,label\n"He said no,0\nfine,1\n"ok",1\n', "line 4: ',' expected after '\"'"),
    ],
)
def test_a_text_with_commas_needs_quotes(tmp_path: Path, content: str, said: str) -> None:
    """Else its end would be its label."""
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path / "x.csv", content)


def test_empty_columns_at_the_end_are_none(tmp_path: Path) -> None:
    found = rows_of(tmp_path / "x.csv", "text,label,,\na,yes,,\nb,no, ,\n")
    assert found == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]


def test_long_texts_are_read(tmp_path: Path) -> None:
    text = "long " * 40_000
    assert rows_of(tmp_path / "x.tsv", f"text\tlabel\n{text}\tyes\n")[0]["text"] == text


def test_json(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "x.json", '[{"text": "a"}, {"text": "b"}]')[1] == {"text": "b"}
    with pytest.raises(UserError, match="no rows"):
        rows_of(tmp_path / "x.jsonl", "\n")


def test_numbers_are_finite() -> None:
    assert as_finite("2.5") == 2.5
    unusable = ("nan", "inf", "", None, True, "x", 10**400)
    assert [as_finite(each) for each in unusable] == [None] * 7
