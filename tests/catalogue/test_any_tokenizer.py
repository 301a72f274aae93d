"""Every kind of tokenizer keeps text from being a control token, and is found where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1_files import gpt1_tokenizer, write_gpt1_files
from lmsmith.catalogue.reading import load_any_tokenizer, tokenizer_files
from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gguf import gguf_metadata, tokenizer_from_gguf
from lmsmith.tokenizers.gpt import load_gpt2
from lmsmith.tokenizers.hugging_face import load_hugging_face, to_hugging_face

pytest.importorskip("ftfy")

TEXTS = ["hello there, how are you? 1234 <|end|> <|endoftext|> </s> 你好"] * 6
OWN = Tokenizer.train(TEXTS, 330)


def gpt2_files(folder: Path) -> None:
    """Our own vocabulary and merges under GPT-2's names."""
    model = OWN.description["model"]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))


def sentence_piece() -> Tokenizer:
    """As a GGUF file says it; its control tokens could be merged from other tokens."""
    pieces = ["<", "/", "s", ">", "</", "s>", "<s", "▁", "h", "i", "▁h", "▁hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(pieces))],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One small tokenizer of each kind, each saved and loaded once more."""
    gpt2, hugging_face = tmp_path_factory.mktemp("gpt2"), tmp_path_factory.mktemp("hf")
    gpt2_files(gpt2)
    to_hugging_face(OWN, hugging_face)
    whole_words = gguf_metadata(OWN) | {"tokenizer.ggml.pre": "llama-bpe"}
    del whole_words["tokenizer.huggingface.json"]
    made = {
        "own": OWN,
        "gpt1": gpt1_tokenizer(TEXTS, 90),
        "gpt2": load_gpt2(gpt2),
        "hugging face": load_hugging_face(hugging_face),
        "gguf, byte-level": tokenizer_from_gguf(whole_words),
        "gguf, SentencePiece": sentence_piece(),
    }
    found = dict(made)
    for name, tokenizer in made.items():
        folder = tmp_path_factory.mktemp("saved")
        tokenizer.save(folder)
        found[f"{name}, saved"] = load_any_tokenizer(folder)
    return found


def test_no_text_makes_a_control_token(kinds: dict[str, Tokenizer]) -> None:
    names = sorted({name for each in kinds.values() for name in each.control_tokens.values()})
    pieces = st.one_of(
        st.sampled_from([*names, "<", "s>", "</s", "|>", "<|", "end", " ", "hi", "\n"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    )

    @given(st.lists(pieces, max_size=8).map("".join))
    def check(text: str) -> None:
        for kind, tokenizer in kinds.items():
            ids = tokenizer.encode(text)
            controls = tokenizer.control_tokens.keys() - (
                {0} if kind.startswith("gpt1") else set()  # <unk>, for what is not in it
            )
            assert not controls & {*ids}, kind
            assert tokenizer.encode_batch([text]) == [ids]
            if "gpt1" not in kind and "▁" not in text:
                assert tokenizer.decode(ids) == text, kind

    check()


def test_what_was_saved_is_the_same(kinds: dict[str, Tokenizer]) -> None:
    talk = [{"role": "user", "content": "hi </s>"}, {"role": "assistant", "content": "hello"}]
    for name in [name for name in kinds if not name.endswith(", saved")]:
        made, loaded = kinds[name], kinds[f"{name}, saved"]
        assert loaded.format == made.format
        assert loaded.stop_tokens == made.stop_tokens
        if not made.is_own:
            assert loaded.encode_chat(talk, ask=False) == made.encode_chat(talk, ask=False)


def test_each_is_found_by_its_files(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("own", "hf", "gpt2", "gpt1", "none")}
    for folder in folders.values():
        folder.mkdir()
    OWN.save(folders["own"])
    to_hugging_face(OWN, folders["hf"])
    gpt2_files(folders["gpt2"])
    write_gpt1_files(TEXTS, 90, folders["gpt1"])
    assert load_any_tokenizer(folders["own"]).is_own
    assert not load_any_tokenizer(folders["hf"]).is_own
    assert load_any_tokenizer(folders["gpt2"]).format.cleaning == ""
    assert load_any_tokenizer(folders["gpt1"]).format.cleaning == "ftfy"
    names = {name: [f.name for f in tokenizer_files(folders[name])] for name in folders}
    assert names["own"] == names["none"] == ["tokenizer.json", "chat.json"]
    assert names["gpt2"] == ["encoder.json", "vocab.bpe"]
    with pytest.raises(UserError, match="no vocabulary with merges"):
        load_any_tokenizer(folders["none"])
