"""Files that systems, editors and downloads leave: each is read, left alone or named."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.cli import main
from lmsmith.core.recipe import recipe_text
from lmsmith.corpus.sources import conversations_of

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def test_a_recipe_with_a_byte_order_mark(faults: Callable[[str], Path]) -> None:
    file = faults("38-odd-files") / "recipe-bom.toml"
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    assert not recipe_text(file)[1].startswith("\ufeff")
    tables = recipe_text(file)[1]
    assert "[" in tables


def test_what_lies_beside_the_data_is_left_alone(tmp_path: Path) -> None:
    for name in ("A.JSONL", "._A.JSONL", ".ipynb_checkpoints/A-checkpoint.jsonl", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW if name == "A.JSONL" else b"\x00\x05\x16\x07")
    assert len(list(conversations_of(str(tmp_path)))) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.jsonl.gz", gzip.compress(ROW * 50, mtime=0)[:40], "damaged, or not packed by gzip"),
        ("plain.jsonl.gz", ROW, "damaged, or not packed by gzip"),
        ("PLAIN.JSONL.GZ", ROW, "damaged, or not packed by gzip"),
        ("broken.jsonl", None, "is a link to nowhere, which does not exist"),
        ("pipe.jsonl", "pipe", "is no regular file but a pipe"),
    ],
)
@pytest.mark.parametrize("command", ["feedback", "recipe", "task", "eval"])
def test_odd_files_are_named_by_every_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | str | None,
    said: str,
    command: str,
) -> None:
    file = tmp_path / name
    if content is None:
        file.symlink_to("nowhere")
    elif isinstance(content, str):
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    recipe = tmp_path / "my.toml"
    recipe.write_text(f"seed = 1\n[data]\nconversations = [{str(file)!r}]\n[tokenizer]\n")
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    lines = {
        "feedback": ["feedback", "import", str(file), "--database", str(tmp_path / "f.db")],
        "recipe": ["run", str(recipe), "--folder", str(tmp_path / "run")],
        "task": ["tasks", "add", "mine", "About?", str(file)],
        "eval": ["tasks", "show", str(file)],
    }
    assert main(lines[command]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert name in shown
    assert "Traceback" not in shown


def test_paths_that_are_not_there_say_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    for words in (
        ["chat", "runs/absent"],
        ["run", "absent.toml"],
        ["report", "runs/absent"],
        ["tasks", "show", "absent.jsonl"],
        ["feedback", "import", "absent.jsonl", "--database", "f.db"],
        ["feedback", "stats", "--database", "absent.db"],
        ["tasks", "add", "mine", "About?", "absent.jsonl"],
    ):
        assert main(words) == 2, words
        path = next(word for word in words if "absent" in word)
        assert f"(looked for {tmp_path}/{path})" in capsys.readouterr().err, words
