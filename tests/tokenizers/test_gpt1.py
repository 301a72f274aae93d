"""GPT-1's tokenizer: the ids of transformers' class for the same vocabulary and merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt1_files import gpt1_tokenizer, write_gpt1_files
from lmsmith.core.errors import UserError
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.gpt import UNKNOWN, load_gpt1

ftfy = pytest.importorskip("ftfy")

TEXTS = [
    "“It’s the café,” said Ann; the other thing is there, and the weather is a fine one.",
    "The quick brown fox — and the other foxes — 1234 times! l’Hôtel <unk> â€œmojibakeâ€\x9d",
] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return gpt1_tokenizer(TEXTS, 150)


def test_ids_are_those_of_transformers_on_real_text(
    public_data: Callable[[str], Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    text = public_data("lm/tinyshakespeare.txt").read_text()
    write_gpt1_files([text[:200_000]], 2_000, tmp_path)
    oracle = transformers.OpenAIGPTTokenizer(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt")
    )
    ours = load_gpt1(tmp_path)
    wiki = public_data("lm/wikitext2.test.txt").read_text(encoding="utf-8")[:100_000]
    for each in (text[200_000:400_000], wiki.replace(UNKNOWN, "unknown"), *TEXTS[:1]):
        cleaned = ftfy.fix_text(each)
        ids = ours.encode(each)
        assert ids == oracle.encode(cleaned, add_special_tokens=False)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_text_is_mended_lower_cased_and_cut_at_punctuation(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("“It’s a CAFÉ,”")) == '" it \' s a cafe , "'
    assert tokenizer.decode(tokenizer.encode("â€œthe foxâ€\x9d")) == '" the fox "'


def test_text_never_makes_a_control_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the <unk> and <|endoftext|>")
    assert not tokenizer.control_tokens.keys() & {*ids} - {tokenizer.encode("☃")[0]}
    assert tokenizer.end_of_text not in ids


def test_the_end_of_text_is_one_more_token_or_none(tmp_path: Path) -> None:
    write_gpt1_files(TEXTS, 150, tmp_path)
    with_end, without = load_gpt1(tmp_path), load_gpt1(tmp_path, end_of_text=None)
    assert with_end.vocabulary_size == without.vocabulary_size + 1
    assert with_end.end_of_text == without.vocabulary_size
    assert without.control_tokens == {0: UNKNOWN}


def test_a_stream_gives_the_decoded_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the other thing, is it?")
    stream = StreamDecoder(tokenizer)
    for _ in range(2):
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


def test_it_is_saved_and_loaded_with_its_cleaning(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="no <unk>"):
        load_gpt1(tmp_path)
