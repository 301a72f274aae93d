"""The hub's library reads data; without a network it is asked once, and told at once."""

from __future__ import annotations

import socket
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import MissingData, read_data
from lmsmith.evaluation.tasks.sources import OFFLINE_VARIABLES
from lmsmith.evaluation.tasks.spec import DataSpec, TaskSpec


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in OFFLINE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def put(**data: str) -> TaskSpec:
    return TaskSpec("made", "perplexity", DataSpec(**data))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_splits_is_read_by_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (folder / "test.jsonl").write_text('{"text": "c"}\n')
    read = read_data(put(hub=str(folder), split="test", examples="train"), [])
    assert [item.fields for item in read.items] == [{"text": "c"}]
    assert [item.fields["text"] for item in read.pool] == ["a", "b"]
    with pytest.raises(UserError, match=r"split nosplit: .*nosplit.*train"):
        read_data(put(hub=str(folder), split="nosplit"), [])


@pytest.mark.filterwarnings("ignore")
def test_offline_it_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # a port that nobody listens to
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(MissingData, match=r"not in the cache of data sets.*cannot be reached"):
        read_data(put(hub="someone/something", split="test"), [])


@pytest.mark.filterwarnings("ignore")
def test_the_variable_is_honoured_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(MissingData, match="HF_HUB_OFFLINE is set"):
        read_data(put(hub="someone/something", split="test"), [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("revision", ["", "0" * 40])
def test_what_is_in_the_cache_is_read_offline(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache as the library leaves it: a folder of Arrow files named by the data set."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text('{"text": "c"}\n')
    read_data(put(hub=str(folder), split="test"), [])
    (arrow,) = (tmp_path / "cache").rglob("*-test.arrow")
    kept = tmp_path / "cache" / "someone___something" / "default" / "0.0.0" / ("0" * 40)
    kept.parent.mkdir(parents=True)
    arrow.parent.rename(kept)
    (kept / arrow.name).rename(kept / "something-test.arrow")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = put(hub="someone/something", split="test", revision=revision)
    assert [item.fields for item in read_data(task, []).items] == [{"text": "c"}]
    with pytest.raises(MissingData, match=r"the cache holds 0{40}, not revision 1{40}"):
        read_data(put(hub="someone/something", split="test", revision="1" * 40), [])


@pytest.mark.parametrize("version", [None, "2.21.0"])
def test_the_library_is_there_and_runs_no_code(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError("datasets")
        return version

    monkeypatch.setattr(metadata, "version", found)
    with pytest.raises(UserError, match="pip install"):
        read_data(put(hub="someone/something", split="test"), [])
