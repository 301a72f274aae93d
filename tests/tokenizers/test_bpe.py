"""The tokenizer gives every text back, never makes a control token, and trains the same twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.chat_format import SPECIAL_TOKENS

CORPUS = [
    "Hello there, how are you doing today? I'm doing well, thanks.\n\nWhat's up?",
    "你好，世界。今天天气怎么样？我很好，谢谢你。今天天气很好。",
    "Numbers 1234 and 5678; emoji 😀😀👩‍👩‍👧; code: x <|end| y |> <|> <|endoftext|>",
] * 8

VOCABULARY_SIZE = 400


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, VOCABULARY_SIZE)


TOKENIZER = Tokenizer.train(CORPUS, VOCABULARY_SIZE)

characters = st.characters(exclude_categories=["Cs"])
pieces = st.one_of(
    st.text(characters, max_size=6),
    st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "end", "今天天气", " ", "\n", "\r\n", "\x00"]),
)
texts = st.lists(pieces, max_size=12).map("".join)


@given(texts)
def test_any_text_round_trips_and_never_makes_a_control_token(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(len(SPECIAL_TOKENS) <= token < TOKENIZER.vocabulary_size for token in ids)
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()


@given(st.lists(texts, max_size=5))
def test_a_batch_is_its_texts_one_by_one(batch: list[str]) -> None:
    assert TOKENIZER.encode_batch(batch) == [TOKENIZER.encode(text) for text in batch]


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_text_that_spells_a_control_token_stays_text_after_loading(
    special: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for text in (special, f"a{special}b", f" {special}\n{special}"):
        ids = loaded.encode(text)
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert loaded.decode(ids) == text
        assert loaded.encode_batch([text]) == [ids]


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\ufffd b"
    assert tokenizer.decode(tokenizer.encode_batch(["\udc80"])[0]) == "\ufffd"
    assert Tokenizer.train(["a\ud83d b"], 300).vocabulary_size >= 261


def test_control_tokens_have_the_lowest_ids(tokenizer: Tokenizer) -> None:
    ids = [
        tokenizer.end_of_text,
        *map(tokenizer.role_token, ("system", "user", "assistant")),
        tokenizer.end_of_turn,
    ]
    assert ids == [0, 1, 2, 3, 4]
    assert [tokenizer.token_bytes(token) for token in ids] == [b""] * 5


def test_decode_leaves_control_tokens_out_unless_asked(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.role_token("user"), *tokenizer.encode("hi"), tokenizer.end_of_turn]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, special=True) == "<|user|>hi<|end|>"


def test_token_bytes_agree_with_the_library(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for token in range(5, tokenizer.vocabulary_size):
        replaced = tokenizer.token_bytes(token).decode(errors="replace")
        assert backend.decode([token]) == replaced


@pytest.mark.parametrize("token", [-1, VOCABULARY_SIZE])
def test_an_id_outside_the_vocabulary_is_an_error(token: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id"):
        tokenizer.token_bytes(token)


def test_the_vocabulary_has_the_size_asked_for_or_as_many_as_the_text_gives() -> None:
    assert Tokenizer.train(CORPUS, 300).vocabulary_size == 300
    assert Tokenizer.train(["ab ab"], 4096).vocabulary_size == 256 + 5 + 1  # "ab"
    assert Tokenizer.train([], 4096).vocabulary_size == 256 + 5


@pytest.mark.parametrize("size", [0, 260, 10**9])
def test_an_impossible_vocabulary_size_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="must be between 261"):
        Tokenizer.train(CORPUS, size)


def test_saving_and_loading_keeps_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("tokenizer.json", "chat.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    from_file = Tokenizer.load(tmp_path / "a" / "tokenizer.json")
    assert from_file.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


def test_training_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from lmsmith.tokenizers import Tokenizer\n"
        "Tokenizer.train(json.loads(sys.argv[1]), 400).save(sys.argv[2])\n"
    )
    written = set()
    for number, (hash_seed, threads) in enumerate([("0", "1"), ("12345", "4")]):
        folder = tmp_path / str(number)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "RAYON_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        subprocess.run(
            [sys.executable, "-c", program, json.dumps(CORPUS), str(folder)],
            check=True,
            env=environment,
        )
        written.add((folder / "tokenizer.json").read_bytes())
    assert len(written) == 1


def _break(folder: Path, change: str) -> None:
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    match change:
        case "truncated":
            path.write_bytes(path.read_bytes()[:1000])
            return
        case "not text":
            path.write_bytes(b"\xff\xfe\x00")
            return
        case "missing":
            path.unlink()
            return
        case "a list":
            description = [1]
        case "no control tokens":
            description["added_tokens"] = []
        case "control tokens elsewhere":
            description["added_tokens"][0]["id"] = 77
        case "another model":
            description["model"]["type"] = "WordPiece"
        case "prefix space":
            description["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
        case "removes spaces":
            description["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"
        case "ids with holes":
            last = max(description["model"]["vocab"].values())
            name = next(k for k, v in description["model"]["vocab"].items() if v == last)
            description["model"]["vocab"][name] = last + 7
        case "not byte-level":
            vocabulary = description["model"]["vocab"]
            vocabulary["世"] = vocabulary.pop("Ā")
        case "broken merges":
            description["model"]["merges"] = [["zzz", "qqq"]]
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "change",
    [
        "truncated",
        "not text",
        "missing",
        "a list",
        "no control tokens",
        "control tokens elsewhere",
        "another model",
        "prefix space",
        "removes spaces",
        "ids with holes",
        "not byte-level",
        "broken merges",
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_name(
    change: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    _break(tmp_path, change)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_another_chat_template_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "chat.json"
    path.write_text(path.read_text().replace("lmsmith-1", "chatml"))
    with pytest.raises(UserError, match="chatml"):
        Tokenizer.load(tmp_path)


@given(st.lists(st.integers(0, TOKENIZER.vocabulary_size - 1), max_size=40))
def test_a_stream_of_any_ids_gives_the_same_text_as_decoding_at_once(ids: list[int]) -> None:
    stream = StreamDecoder(TOKENIZER)
    assert "".join([*map(stream.push, ids), stream.flush()]) == TOKENIZER.decode(ids)


@given(texts)
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    stream = StreamDecoder(TOKENIZER)
    shown = ""
    for token in TOKENIZER.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)
    assert stream.flush() == ""
    assert shown == text


def test_flush_shows_what_was_held_back_and_starts_anew(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    first_byte = next(t for t in range(400) if tokenizer.token_bytes(t) == b"\xf0")
    assert stream.push(first_byte) == ""
    assert stream.flush() == "\ufffd"
    assert "".join(map(stream.push, tokenizer.encode("ok"))) == "ok"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("I don't know", ["I", " don't", " know"]),
        ("a?\n\nb\nc", ["a", "?", "\n\n", "b", "\n", "c"]),
        ("in 12345 days", ["in", " 123", "45", " days"]),
        ("你好，今天天气好。Ok!", ["你好", "，", "今天天气好", "。", "Ok", "!"]),
        ("नमस्ते जी", ["नमस्ते", " जी"]),
        ("❤️hello", ["❤️", "hello"]),
        ("a   b  ", ["a", "  ", " b", "  "]),
    ],
)
def test_where_text_is_cut(text: str, pieces: list[str], tokenizer: Tokenizer) -> None:
    cutter = tokenizer._backend.pre_tokenizer
    assert cutter is not None
    spans = [span for _, span in cutter.pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == pieces


@pytest.mark.parametrize("text", [" ", "\n", "a", "好", "1", "!", " \n", "a'", "\u0301"])
def test_a_very_long_run_of_one_thing_is_encoded(text: str, tokenizer: Tokenizer) -> None:
    long = text * 100_000
    assert tokenizer.decode(tokenizer.encode(long)) == long
