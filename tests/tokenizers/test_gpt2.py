"""GPT-2's tokenizer from its own files: the ids of tiktoken and of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.gpt import load_gpt2
from lmsmith.tokenizers.token_bytes import written_bytes

from .oracle_texts import oracle_texts

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""As tiktoken's openai_public.py has it."""


@pytest.fixture(scope="module")
def gpt2(public_data: Callable[[str], Path]) -> Tokenizer:
    return load_gpt2(public_data("gpt2_vocab"))


def test_ids_are_tiktokens(gpt2: Tokenizer, public_data: Callable[[str], Path]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ids = json.loads(public_data("gpt2_vocab/encoder.json").read_text(encoding="utf-8"))
    end = ids.pop("<|endoftext|>")
    oracle = tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={written_bytes(written): token for written, token in ids.items()},
        special_tokens={"<|endoftext|>": end},
    )
    for name, text in oracle_texts(public_data).items():
        assert gpt2.encode(text) == oracle.encode_ordinary(text), name
        assert gpt2.decode(gpt2.encode(text)) == text, name


def test_ids_are_those_of_transformers(gpt2: Tokenizer, public_data: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = public_data("gpt2_vocab")
    oracle = transformers.GPT2TokenizerFast(
        vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe")
    )
    for name, text in oracle_texts(public_data).items():
        assert gpt2.encode(text) == oracle.encode(text, add_special_tokens=False), name


def test_its_control_token_is_the_last_and_text_never_makes_it(gpt2: Tokenizer) -> None:
    assert gpt2.vocabulary_size == 50_257
    assert gpt2.start_of_text == gpt2.end_of_text == gpt2.end_of_turn == 50_256
    assert gpt2.stop_tokens == (50_256,)
    ids = gpt2.encode("a<|endoftext|>b")
    assert 50_256 not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"


def test_a_conversation_is_written_in_words(gpt2: Tokenizer) -> None:
    talk = [{"role": "user", "content": "Hi<|endoftext|>"}, {"role": "assistant", "content": "Ho"}]
    encoded = gpt2.encode_chat(talk, ask=False)
    written = "User:\nHi<|endoftext|>\n\nAssistant:\nHo<|endoftext|>\n\n"
    assert gpt2.decode(encoded.tokens, special=True) == written
    assert encoded.tokens.count(gpt2.end_of_text) == 1
    learnt = [t for t, author in zip(encoded.tokens, encoded.authors, strict=True) if author == 1]
    assert learnt == [*gpt2.encode("Ho"), gpt2.end_of_turn]
    asked = gpt2.encode_chat(talk[:1], ask=True).tokens
    assert encoded.tokens[: len(asked)] == asked


def test_it_is_saved_and_loaded(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.format == gpt2.format
    text = "Hello, 你好 😀"
    assert loaded.encode(text) == gpt2.encode(text)
    stream = StreamDecoder(loaded)
    assert "".join([*map(stream.push, loaded.encode(text)), stream.flush()]) == text


def _write(folder: Path, vocabulary: str, merges: str) -> Path:
    (folder / "vocab.json").write_text(vocabulary)
    (folder / "merges.txt").write_text(merges)
    return folder


@pytest.mark.parametrize(
    ("vocabulary", "merges", "problem"),
    [
        ("[]", "", "expected an object of ids"),
        ('{"a": 0, "b": 1}', "#version: 0.2\na b c\n", "merge 1: expected two tokens"),
        ('{"a": 0, "b": 1}', "a b\n", "do not belong together"),
    ],
)
def test_damaged_files_are_refused(
    vocabulary: str, merges: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        load_gpt2(_write(tmp_path, vocabulary, merges))


def test_a_folder_without_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no encoder\.json and no vocab\.json"):
        load_gpt2(tmp_path)
