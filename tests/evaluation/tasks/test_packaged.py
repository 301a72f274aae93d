"""A package's file is found without running the package."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import MissingData, read_data
from lmsmith.evaluation.tasks.sources import package_file
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec, read_tasks


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails when its code is run, with a distribution of another name."""
    folder = tmp_path / "made_rows"
    (folder / "inner").mkdir(parents=True)
    for each in (folder, folder / "inner"):
        (each / "__init__.py").write_text("raise SystemExit('was run')\n")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    (folder / "inner" / "shots.jsonl").write_text('{"text": "c"}\n')
    about = tmp_path / "rows_by_us-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rows-by-us\nVersion: 1.0\n")
    (about / "top_level.txt").write_text("made_rows\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_rows_are_read_from_inside_a_package(package: Path) -> None:
    data = DataSpec(package="made_rows", path="rows.jsonl", examples="inner/shots.jsonl")
    read = read_data(TaskSpec("made", "perplexity", data), [])
    assert [item.fields["text"] for item in read.items] == ["a", "b"]
    assert [item.fields["text"] for item in read.pool] == ["c"]
    assert "made_rows" not in sys.modules


def test_it_may_be_named_as_imported_as_installed_or_by_an_inner_part(package: Path) -> None:
    inner = package / "inner" / "shots.jsonl"
    assert package_file("rows-by-us", "inner/shots.jsonl") == inner
    assert package_file("made_rows.inner", "shots.jsonl") == inner


def test_what_is_missing_is_told(package: Path) -> None:
    with pytest.raises(
        MissingData, match=r"not_here_at_all: no such .*\n.*pip install not-here-at"
    ):
        package_file("not_here_at_all", "x.jsonl")
    with pytest.raises(UserError, match="made_rows: no file y"):
        package_file("made_rows", "y.jsonl")
    with pytest.raises(UserError, match="not inside the package"):
        package_file("made_rows", "../secret.jsonl")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('package = "x"', "data.path"),
        ('package = "x"\npath = "y"\nfile = "z"', "one of file, package, hub and generator"),
        ('hub = "x"', "data.split"),
        ('file = "x"\nsubset = "y"', "data.subset"),
        ('hub = "x"\nsplit = "y"\nbeside = "z"', "data.beside"),
    ],
)
def test_where_data_is_is_said_once_and_whole(data: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_tasks(f'name = "x"\nkind = "perplexity"\n[data]\n{data}\n', "x.toml")
